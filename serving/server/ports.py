"""Ports, bound at start and opened when the model is loaded, and the gRPC server.

Must not import TensorFlow.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from afm_ctr.errors import UserError

# TensorFlow Serving's limit for a message, also after gRPC has decompressed it.
_LARGEST_MESSAGE = (1 << 31) - 1


class HeldPort:
    """A port that is bound but not yet listening: connections are refused until the server is ready.

    Args:
        port: Port; 0: any free one.
        flag: The port's flag, for messages.

    Raises:
        UserError: the port is taken or not allowed.
    """

    def __init__(self, host: str, port: int, flag: str):
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise cannot_bind(flag, port, error.strerror) from None
        self.port = int(self._socket.getsockname()[1])

    def release(self) -> int:
        """Release the port to the server that opens it now, and return it."""
        self._socket.close()
        return self.port


def cannot_bind(flag: str, port: int, reason: object) -> UserError:
    """The error for a port that cannot be bound."""
    return UserError(f"serve: {flag}={port} cannot be used: {reason}; choose another port or stop the process on it")


def make_grpc_server(threads: int, arguments: tuple[tuple[str, int | str], ...]) -> grpc.Server:
    """A gRPC server without ports and services. ``arguments`` are gRPC channel arguments and override defaults."""
    options: dict[str, Any] = {
        "grpc.max_receive_message_length": _LARGEST_MESSAGE,
        "grpc.max_send_message_length": _LARGEST_MESSAGE,
        "grpc.so_reuseport": 0,  # else a second server could share the port and take half of the requests
    }
    options.update(arguments)
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="grpc")
    return grpc.server(pool, options=list(options.items()))


def open_grpc(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> None:
    """Listen and answer; with credentials, TLS only. Raises UserError: the port was taken in the meantime."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise cannot_bind("--port", port, error) from None
    server.start()
