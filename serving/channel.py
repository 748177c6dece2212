"""Channels: targets, TLS credentials and proxies."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

_OPTIONS: list[tuple[str, Any]] = [
    # Use all addresses of a name. The client retries calls itself: gRPC cannot tell a server that is shutting down
    # from one that is overloaded.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in fact the timeout of a connection attempt
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Otherwise clients in one process would share connections.
    ("grpc.use_local_subchannel_pool", 1),
]
_RESOLVED_BY_GRPC = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):.+")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s\[\]:/,@?#]+):([0-9]+)", re.ASCII)
# Environment variables that gRPC reads; the first one set wins.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")


def tls_credentials(
    ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
) -> grpc.ChannelCredentials:
    """Credentials for :class:`serving.client.Client`, from PEM files.

    Args:
        ca: Root certificates that sign the servers' certificates; default: the roots bundled with gRPC.
        certificate: The client's certificate chain, for servers that require one (mutual TLS).

    Raises:
        ValueError: a certificate without key or a key without certificate, or a file that is not PEM; the message
            names it.
        OSError: a file cannot be read.
    """
    if (certificate is None) != (key is None):
        raise ValueError("give both certificate and key, or neither")
    root, chain, private = (None if path is None else _pem(path) for path in (ca, certificate, key))
    _check(ca, certificate, key)
    return grpc.ssl_channel_credentials(root, private, chain)


def read_targets(target: str | Sequence[str]) -> list[str]:
    """Check and split targets: one, several separated by commas, or a list.

    Raises:
        ValueError: no target, or one that is neither host:port nor a name that gRPC resolves, such as ``dns:///afm``.
    """
    if isinstance(target, str):
        several = not target.startswith(("ipv4:", "ipv6:"))  # these contain commas themselves
        targets = [part.strip() for part in target.split(",")] if several else [target]
    else:
        targets = [str(part).strip() for part in target or ()]
    if not targets:
        raise ValueError("no target: give host:port of a server")
    for one in targets:
        _check_target(one)
    return targets


def open_channels(
    targets: Sequence[str], credentials: grpc.ChannelCredentials | None, server_name: str | None
) -> list[grpc.Channel]:
    """Open one channel per server, so that each server's certificate is checked against its own name.

    Args:
        targets: From :func:`read_targets`. Requests are also spread over all addresses of a name.
        server_name: The name that the servers' certificates must contain, if it is not the target's.
    """
    options = list(_OPTIONS)
    if server_name is not None:
        options.append(("grpc.default_authority", server_name))
        if credentials is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
    if credentials is None:
        return [grpc.insecure_channel(target, options=options) for target in targets]
    return [grpc.secure_channel(target, credentials, options=options) for target in targets]


def proxy_in_the_way(targets: Sequence[str]) -> str:
    """The environment variable that sends gRPC calls through a proxy, as ``http_proxy=http://proxy:3128``; or "".

    User and password are removed.
    """
    name = next((name for name in _PROXIES if os.environ.get(name)), None)
    if name is None:
        return ""
    excepted = next(filter(None, (os.environ.get(name) for name in _NO_PROXIES)), "")
    suffixes = tuple(part.strip() for part in excepted.split(",") if part.strip())
    hosts = [one.rpartition(":")[0].rpartition("/")[2].strip("[]") for one in targets if not one.startswith("unix")]
    if not any("*" not in suffixes and not host.endswith(suffixes) for host in hosts):
        return ""
    return f"{name}={re.sub(r'//[^/]*@', '//', os.environ[name])}"


def _check_target(target: str) -> None:
    if _RESOLVED_BY_GRPC.fullmatch(target):
        return
    if not target:
        raise ValueError("a target is empty: give host:port of a server")
    if "://" in target:
        rest = target.partition("://")[2].rstrip("/")
        raise ValueError(f"target {target} is a URL; the gRPC API has none: give host:port, such as {rest}")
    found = _HOST_AND_PORT.fullmatch(target)
    if found is None:
        hint = f"{target}:8500" if re.fullmatch(r"[\w.-]+", target) else "localhost:8500 or [::1]:8500"
        raise ValueError(f"target {target} is not host:port; give such as {hint}")
    if not 1 <= int(found[2][:6]) <= 65535:
        raise ValueError(f"target {target}: the port must be from 1 to 65535")


def _check(ca: str | Path | None, certificate: str | Path | None, key: str | Path | None) -> None:
    """Check PEM files with Python's TLS: gRPC takes any text, and later fails its calls without saying why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # the required key strength is up to client and server
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
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a device may have no end
        raise ValueError(f"{path} is not a file")
    try:
        text = path.read_bytes()
    except OSError as error:  # one of reading has no name
        raise OSError(error.errno, error.strerror, str(path)) from None
    if b"-----BEGIN " not in text:
        raise ValueError(f"{path} is not a PEM file")
    return text
