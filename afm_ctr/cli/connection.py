"""The options of commands that talk to a model server: which version they ask, and TLS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from afm_ctr.cli.app import path_option
from afm_ctr.errors import UserError

if TYPE_CHECKING:
    import grpc

_LARGEST = 2**63 - 1  # versions are int64 on the wire

ModelName = Annotated[
    str, typer.Option("--model-name", "--model_name", metavar="NAME", help="Name of the served model.")
]
ModelVersion = Annotated[
    int | None,
    typer.Option(min=0, max=_LARGEST, metavar="N", help="Ask this version of the model; default: the latest."),
]
VersionLabel = Annotated[
    str | None, typer.Option(metavar="NAME", help="Ask the version of this label; not with --model-version.")
]
CaFile = Annotated[
    Path | None, path_option(metavar="FILE", help="TLS: PEM file of who signed the server's certificate.")
]
CertFile = Annotated[
    Path | None, path_option(metavar="FILE", help="Mutual TLS: the client's certificate, PEM; needs --key.")
]
KeyFile = Annotated[Path | None, path_option(metavar="FILE", help="Mutual TLS: its private key, PEM.")]

Wait = Annotated[
    float, typer.Option(min=0, max=86_400, metavar="SECONDS", help="Wait at most so long for the model to be served.")
]


class Connection(TypedDict):
    """What :func:`serving.score.score_file` and :func:`serving.load.load_test` are given of the connection."""

    version: int | None
    label: str | None
    credentials: grpc.ChannelCredentials | None


def chosen(
    version: int | None, label: str | None, ca: Path | None, cert: Path | None, key: Path | None
) -> Connection:
    """The options together. TLS is spoken as soon as one of its files is given.

    Call it before anything imports gRPC, which would log failures by itself.

    Raises:
        UserError: options that exclude or need each other, or a file that cannot be used.
    """
    if version is not None and label is not None:
        raise UserError("give --model-version or --label, not both")
    if (cert is None) != (key is None):
        raise UserError("--cert and --key go together: give both or neither")
    credentials = None
    if ca is not None or cert is not None:
        # Read when gRPC is imported: it would log each handshake that fails, next to the line that we print.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from serving.channel import tls_credentials

        try:
            credentials = tls_credentials(ca, cert, key)
        except OSError as error:
            raise UserError(f"TLS: cannot read {error.filename}: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(f"TLS: {error}") from error
    return Connection(version=version, label=label, credentials=credentials)


def await_model(target: str, model_name: str, seconds: float, server: Connection) -> None:
    """Return as soon as the model is served, at once where ``seconds`` is 0.

    Raises:
        UserError: it was not in time; says what was seen last.
    """
    if not seconds:
        return
    from serving.client import Client
    from serving.errors import ServingError

    try:
        with Client(target, model_name, **server) as client:
            client.wait_ready(seconds)
    except (ServingError, ValueError) as error:
        raise UserError(f"{target}: {error}") from error
