"""``--ssl_config_file``: gRPC credentials from the real server's text file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import text_format

from afm_ctr.errors import UserError
from afm_ctr.io.inputs import read_settings
from serving.protos.ssl_config_pb2 import SSLConfig

_FLAG = "serve: --ssl_config_file"


def server_credentials(path: str) -> grpc.ServerCredentials:
    """Read an SSLConfig in text format: ``server_key``, ``server_cert``, ``custom_ca`` (PEM text, not paths) and
    ``client_verify`` (mutual TLS: clients without a certificate signed by ``custom_ca`` are refused).

    As in the real server, only the gRPC API uses TLS; the REST API stays plain.

    Raises:
        UserError: the file cannot be read or does not parse, or gRPC refuses its key and certificates.
    """
    config = SSLConfig()
    try:
        text_format.Parse(read_settings(path).decode(), config)
    except OSError as error:
        raise UserError(f"{_FLAG}={path}: {error.strerror or error}") from None
    except text_format.ParseError as error:
        # The parser's message quotes the text, which may be the key.
        where = f"line {error.GetLine()}, column {error.GetColumn()}" if error.GetLine() else "no place known"
        raise UserError(f"{_FLAG}={path}: not an SSLConfig in text format ({where})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{_FLAG}={path}: not an SSLConfig in text format (byte {error.start} is no UTF-8)") from None
    needed = ["server_key", "server_cert"] + ["custom_ca"] * config.client_verify
    for name in needed:
        if "-----BEGIN " not in getattr(config, name):
            raise UserError(f"{_FLAG}={path}: {name} must be the PEM text itself, not empty and not a path")
    credentials = grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
    probe = grpc.server(ThreadPoolExecutor(1))
    try:
        probe.add_secure_port("127.0.0.1:0", credentials)  # gRPC checks them only here
    except RuntimeError:
        raise UserError(
            f"{_FLAG}={path}: gRPC does not accept this key and certificate; do they belong together?"
        ) from None
    finally:
        probe.stop(None)
    return credentials
