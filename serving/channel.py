"""Connections: where the servers are, how calls are spread, repeated and secured."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

# A call that nobody answered is safe to repeat: scoring changes nothing. gRPC does so itself, within the deadline.
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICES = [{"service": f"tensorflow.serving.{name}"} for name in ("PredictionService", "ModelService")]
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_retries", 1),
    ("grpc.per_rpc_retry_buffer_size", 1 << 28),  # the default of 256 kB silently gives up retries of larger requests
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in truth the time that an attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Clients of one process would otherwise share a connection, and a test or a tool could not count on its own.
    ("grpc.use_local_subchannel_pool", 1),
]


def tls_credentials(
    ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
) -> grpc.ChannelCredentials:
    """Credentials for :class:`serving.client.Client`, from PEM files.

    Args:
        ca: Who signs the servers' certificates; default: the authorities that gRPC brings along.
        certificate: The client's own certificate chain, for servers that ask for one (mutual TLS).
        key: Its private key.

    Raises:
        ValueError: a certificate without key or a key without certificate, or a file that
            holds something else; the message names it.
        OSError: a file that cannot be read.
    """
    if (certificate is None) != (key is None):
        raise ValueError("give both certificate and key, or neither")
    root, chain, private = (None if path is None else _pem(path) for path in (ca, certificate, key))
    _check(ca, certificate, key)
    return grpc.ssl_channel_credentials(root, private, chain)


def open_channel(
    targets: Sequence[str],
    credentials: grpc.ChannelCredentials | None,
    server_name: str | None,
    wait_for_ready: bool,
) -> grpc.Channel:
    """A channel to one or several servers.

    Args:
        targets: host:port each; a single one may be any name that gRPC resolves, such as ``dns:///afm:8500``.
            Requests go round all the addresses behind them. Several names are resolved once, now.
        credentials: TLS; None: plain.
        server_name: The name that the server's certificate must hold, where it is not the target's.
        wait_for_ready: Calls wait for a connection until their deadline, and do not fail while there is none.

    Raises:
        ValueError: no target, or one of several that is not host:port or has no address.
    """
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": _SERVICES, "waitForReady": wait_for_ready, "retryPolicy": _RETRY}],
    }
    options = [*_OPTIONS, ("grpc.service_config", json.dumps(config))]
    name = server_name or (targets[0].rpartition(":")[0] if len(targets) > 1 else None)
    if name and credentials is not None:
        options.append(("grpc.ssl_target_name_override", name))
    if name:
        options.append(("grpc.default_authority", name))
    address = _address(targets)
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def _address(targets: Sequence[str]) -> str:
    if not targets:
        raise ValueError("no target: give host:port of a server")
    if len(targets) == 1:
        return targets[0]
    found: list[str] = []
    for target in targets:
        host, _, port = target.rpartition(":")
        try:
            addresses = socket.getaddrinfo(host.strip("[]"), int(port), socket.AF_INET, socket.SOCK_STREAM)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"target {target}: of several, each must be host:port with an IPv4 address ({error})"
            ) from None
        found += [f"{item[4][0]!s}:{port}" for item in addresses]
    return "ipv4:" + ",".join(dict.fromkeys(found))


def _check(ca: str | Path | None, certificate: str | Path | None, key: str | Path | None) -> None:
    """gRPC takes any text, and only the calls fail, for reasons that it keeps to itself. Python's own TLS tells."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # how strong a key must be is for the two ends to say
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise ValueError(f"{ca} holds no certificate that can be read ({error.reason})") from None
    if certificate is not None and key is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, _Encrypted) as error:
            why = "the key has a password" if isinstance(error, _Encrypted) else error.reason
            raise ValueError(f"{certificate} and {key} are not a certificate and its key ({why})") from None


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _pem(path: str | Path) -> bytes:
    text = Path(path).read_bytes()
    if b"-----BEGIN " not in text:
        raise ValueError(f"{path} is not a PEM file")
    return text
