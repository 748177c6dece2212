"""``serve`` and ``score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_ctr.cli import connection
from afm_ctr.cli.app import JsonFlag, app, console, path_option, report_summary
from afm_ctr.cli.quiet_imports import load_tensorflow


@app.command(
    "serve",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,  # ours lists the server's flags too
    epilog="Example: afm-ctr serve --model_name=afm --model_base_path=$PWD/serving-models/afm "
    "--port=8500 --rest_api_port=8501",
)
def serve(context: typer.Context) -> None:
    """Serve a SavedModel over gRPC and REST: TF Serving's API and flags, for a laptop, tests and CI.

    Takes the flags of tensorflow_model_server that are listed below, by their own names, and refuses the others.
    """
    from serving.server import flags

    if "--help" in context.args:
        print(context.get_help())
        print(flags.usage(console.width))
        return
    chosen = flags.parse(context.args)
    from serving.server.ports import HeldPort

    # Loading TensorFlow takes seconds, and a port that is taken should say so at once.
    for flag, port in (("--port", chosen.port), ("--rest_api_port", chosen.rest_api_port)):
        if port is not None:
            HeldPort(chosen.host, port, flag).release()
    load_tensorflow()
    from serving.server import app as server

    server.run(chosen)


@app.command(
    "score",
    epilog="Example: afm-ctr score --target localhost:8500 --model-name afm --schema data/schema.yaml "
    "--input new.tsv --output scores.jsonl",
)
def score(
    target: Annotated[str, typer.Option(help="HOST:PORT of the gRPC server.")],
    schema: Annotated[Path, path_option(help="The feature schema of the raw rows.")],
    input: Annotated[Path, path_option(help="Raw log file.")],
    output: Annotated[Path, path_option(help="JSON Lines file to write: one object an input line, in order.")],
    model_name: connection.ModelName = "afm",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a request.")] = 512,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of each request, seconds.")] = 10.0,
    model_version: connection.ModelVersion = None,
    label: connection.VersionLabel = None,
    wait: connection.Wait = 0.0,
    ca: connection.CaFile = None,
    cert: connection.CertFile = None,
    key: connection.KeyFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Score raw rows through TF Serving's gRPC API."""
    server = connection.chosen(model_version, label, ca, cert, key)
    from serving.score import score_file

    with console.status(f"scoring {input} by {target}"):
        connection.await_model(target, model_name, wait, server)
        summary = score_file(target, model_name, schema, input, output, batch_size, timeout=timeout, **server)
    report_summary(as_json, summary)
