"""``serve``, ``score`` and ``load-test``, and the options of commands that call a model server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from afm_ctr.cli.app import JsonFlag, app, console, path_option, report_summary, working
from afm_ctr.cli.progress import row_progress
from afm_ctr.cli.quiet_imports import load_tensorflow
from afm_ctr.errors import UserError

if TYPE_CHECKING:
    import grpc

SLO_MISSED = 3
_LARGEST = 2**63 - 1  # versions are int64 on the wire

_LIKE_SERVE = {"token_normalize_func": lambda option: option.replace("_", "-")}  # --model_name, as of `serve`


def _known_version(value: int | None) -> int | None:
    if value is not None and value > _LARGEST:  # not by max=, whose 19 digits --help would print
        raise typer.BadParameter(f"{value} is more than a version can be, {_LARGEST}")
    return value


ModelName = Annotated[str, typer.Option(metavar="NAME", help="Name of the served model.")]
ModelVersion = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", callback=_known_version, help="Use this version of the model; default: the latest."
    ),
]
VersionLabel = Annotated[
    str | None, typer.Option(metavar="NAME", help="Use the version with this label; not with --model-version.")
]
CaFile = Annotated[
    Path | None, path_option(metavar="FILE", help="TLS: PEM file of the CA that signed the server's certificate.")
]
CertFile = Annotated[
    Path | None, path_option(metavar="FILE", help="Mutual TLS: the client's certificate, PEM; needs --key.")
]
KeyFile = Annotated[Path | None, path_option(metavar="FILE", help="Mutual TLS: its private key, PEM.")]

Wait = Annotated[
    float, typer.Option(min=0, max=86_400, metavar="SECONDS", help="How long to wait for the model to be served.")
]


class Connection(TypedDict):
    """The connection's arguments of :func:`serving.score.score_file` and :func:`serving.load.load_test`."""

    version: int | None
    label: str | None
    credentials: grpc.ChannelCredentials | None


def chosen_connection(
    version: int | None, label: str | None, ca: Path | None, cert: Path | None, key: Path | None
) -> Connection:
    """Check the options and combine them. TLS is used as soon as one of its files is given.

    Call it before anything imports gRPC, which would otherwise log failures.

    Raises:
        UserError: options that exclude or need each other, or an unusable file.
    """
    if version is not None and label is not None:
        raise UserError("give --model-version or --label, not both")
    if (cert is None) != (key is None):
        raise UserError("--cert and --key go together: give both or neither")
    credentials = None
    if ca is not None or cert is not None:
        # gRPC reads this when imported: it would log each failed handshake, next to the line that we print.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from serving.channel import tls_credentials

        try:
            credentials = tls_credentials(ca, cert, key)
        except OSError as error:
            raise UserError(f"TLS: cannot read {error.filename}: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(f"TLS: {error}") from error
    return Connection(version=version, label=label, credentials=credentials)


def await_model(target: str, model_name: str, seconds: float, server: Connection, schema: Path, log: Path) -> None:
    """Return as soon as the model is served, or at once if ``seconds`` is 0.

    Raises:
        UserError: the schema or the log cannot be read; or the model was not served in time: with its last state.
    """
    if not seconds:
        return
    from serving.score import check_log, load_spec

    load_spec(schema)
    check_log(log)
    from serving.client import Client
    from serving.errors import ServingError

    try:
        with Client(target, model_name, **server) as client:
            client.wait_ready(seconds)
    except (ServingError, ValueError) as error:
        raise UserError(f"{target}: {error}") from error


@app.command(
    "serve",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,  # our help lists the server's flags too
    epilog="Example: afm-ctr serve --model_name=afm --model_base_path=$PWD/serving-models/afm "
    "--port=8500 --rest_api_port=8501",
)
def serve(context: typer.Context) -> None:
    """Serve a SavedModel over gRPC and REST: TF Serving's API and flags, for a laptop, tests and CI.

    Accepts the flags of tensorflow_model_server listed below, under their own names, and refuses others.
    """
    from serving.server import flags

    if "--help" in context.args:
        print(context.get_help())
        print(flags.usage(console.width))
        return
    chosen = flags.parse(context.args)
    from serving.server import app as server

    server.run(chosen, load_tensorflow)


@app.command(
    "score",
    context_settings=_LIKE_SERVE,
    epilog="Example: afm-ctr score --target localhost:8500 --model-name afm --schema data/schema.yaml "
    "--input new.tsv --output scores.jsonl",
)
def score(
    target: Annotated[str, typer.Option(help="HOST:PORT of the gRPC server.")],
    schema: Annotated[Path, path_option(help="The feature schema of the raw rows.")],
    input: Annotated[Path, path_option(help="Raw log file.")],
    output: Annotated[
        Path, path_option(help="JSON Lines file to write or replace: one object per input line, in order.")
    ],
    model_name: ModelName = "afm",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per request.")] = 512,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of each request, seconds.")] = 10.0,
    model_version: ModelVersion = None,
    label: VersionLabel = None,
    wait: Wait = 0.0,
    ca: CaFile = None,
    cert: CertFile = None,
    key: KeyFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Score raw rows through TF Serving's gRPC API."""
    server = chosen_connection(model_version, label, ca, cert, key)
    from serving.score import score_file

    with working(f"scoring {input} by {target}"):
        await_model(target, model_name, wait, server, schema, input)
        summary = score_file(target, model_name, schema, input, output, batch_size, timeout=timeout, **server)
    report_summary(as_json, summary)


@app.command(
    "load-test",
    context_settings=_LIKE_SERVE,
    epilog="Example: afm-ctr load-test --target localhost:8500 --model-name afm --schema data/schema.yaml "
    "--input new.tsv --rate 200 --batch-size 32 --duration 30 --slo p99=20ms --output load/",
)
def load_test(
    target: Annotated[str, typer.Option(help="HOST:PORT of the gRPC server.")],
    schema: Annotated[Path, path_option(help="The feature schema of the raw rows.")],
    input: Annotated[Path, path_option(help="Raw log file; its first 20,000 rows are sent over and over.")],
    model_name: ModelName = "afm",
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Open loop: requests/s, regardless of answers.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Closed loop: callers that send, wait and send again.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Find the highest rate that meets --slo; --rate is the first tried.")
    ] = False,
    slo: Annotated[
        list[str] | None, typer.Option(help="Limit on a quantile, such as p99=20ms; failed requests break it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per request.")] = 1,
    duration: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds of sending, at each rate.")] = 10.0,
    timeout: Annotated[float, typer.Option(min=0.001, max=3600, help="Deadline of each request, seconds.")] = 10.0,
    max_requests: Annotated[int, typer.Option(min=1, max=10_000_000, help="At most this many.")] = 1_000_000,
    output: Annotated[Path | None, path_option(help="Folder for load.json and the pictures.")] = None,
    model_version: ModelVersion = None,
    label: VersionLabel = None,
    wait: Wait = 0.0,
    ca: CaFile = None,
    cert: CertFile = None,
    key: KeyFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Load-test a model server: latency, throughput, errors, and whether each --slo holds.

    Open loop (--rate): latency counts from when a request was due, so a stall of the server is not hidden.
    Exit code 0: every --slo holds (or none was given). 3: one is missed, or nothing was answered.
    """
    server = chosen_connection(model_version, label, ca, cert, key)
    from serving.load import Slo
    from serving.load import load_test as run
    from serving.load.senders import Bounds

    limits = Slo.parse(slo or [])
    await_model(target, model_name, wait, server, schema, input)
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
