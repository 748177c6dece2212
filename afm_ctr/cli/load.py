"""``load-test``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_ctr.cli import connection
from afm_ctr.cli.app import JsonFlag, app, path_option, report_summary
from afm_ctr.cli.progress import row_progress

SLO_MISSED = 3


@app.command(
    "load-test",
    epilog="Example: afm-ctr load-test --target localhost:8500 --model-name afm --schema data/schema.yaml "
    "--input new.tsv --rate 200 --batch-size 32 --duration 30 --slo p99=20ms --output load/",
)
def load_test(
    target: Annotated[str, typer.Option(help="HOST:PORT of the gRPC server.")],
    schema: Annotated[Path, path_option(help="The feature schema of the raw rows.")],
    input: Annotated[Path, path_option(help="Raw log file; its first 20,000 rows are sent over and over.")],
    model_name: connection.ModelName = "afm",
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Open loop: requests/s, whatever comes back.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Closed loop: callers that ask, wait and ask again.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Find the highest rate that keeps --slo; --rate is the first tried.")
    ] = False,
    slo: Annotated[
        list[str] | None, typer.Option(help="Limit on a quantile, such as p99=20ms; failed requests break it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a request.")] = 1,
    duration: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds of sending; of each rate.")] = 10.0,
    timeout: Annotated[float, typer.Option(min=0.001, max=3600, help="Deadline of each request, seconds.")] = 10.0,
    max_requests: Annotated[int, typer.Option(min=1, max=10_000_000, help="At most this many.")] = 1_000_000,
    output: Annotated[Path | None, path_option(help="Folder for load.json and the pictures.")] = None,
    model_version: connection.ModelVersion = None,
    label: connection.VersionLabel = None,
    wait: connection.Wait = 0.0,
    ca: connection.CaFile = None,
    cert: connection.CertFile = None,
    key: connection.KeyFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a model server under load: latency, throughput, errors, and whether a promise is kept.

    Open loop (--rate): latency counts from when a request was due, so a stall of the server is not hidden.
    Exit code 0: every --slo holds (or none was given). 3: one is missed, or nothing was answered.
    """
    server = connection.chosen(model_version, label, ca, cert, key)
    from serving.load import Slo
    from serving.load import load_test as run
    from serving.load.senders import Bounds

    limits = Slo.parse(slo or [])
    connection.await_model(target, model_name, wait, server)
    with row_progress("load") as progress:
        result = run(
            target,
            model_name,
            schema,
            input,
            rate=rate,
            concurrency=concurrency,
            sweep=sweep,
            slo=limits,
            batch_size=batch_size,
            bounds=Bounds(duration, timeout, max_requests),
            output=output,
            progress=progress,
            **server,
        )
    report_summary(as_json, result)
    if not result.holds:
        raise typer.Exit(SLO_MISSED)
