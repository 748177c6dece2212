"""The sockets: ports, a gRPC server and an HTTP server.

Nothing of TensorFlow is imported here.
"""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc

from afm_ctr.errors import UserError

log = logging.getLogger("serving.server")

# (HTTP method, path, body) to (HTTP status, JSON body)
RestHandler = Callable[[str, str, bytes], tuple[int, bytes]]

_IDLE_SECONDS = 60.0
_MAX_BODY = 1 << 30


class HeldPort:
    """A port that is ours, but not yet open: whoever connects is refused until the server is ready to answer.

    Args:
        host: Interface.
        port: Port; 0: any free one.
        flag: The flag it came from, for messages.

    Raises:
        UserError: the port is taken or not allowed.
    """

    def __init__(self, host: str, port: int, flag: str):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise cannot_bind(flag, port, error.strerror) from None
        self.port = int(self._socket.getsockname()[1])

    def release(self) -> int:
        """Let go of it, for the server that opens it now."""
        self._socket.close()
        return self.port


def cannot_bind(flag: str, port: int, reason: object) -> UserError:
    """A port that cannot be had."""
    return UserError(f"serve: {flag}={port} cannot be used: {reason}; choose another port or stop what holds it")


def make_grpc_server(threads: int, arguments: tuple[tuple[str, int | str], ...]) -> grpc.Server:
    """A gRPC server without ports and services. Messages of any size, unless the arguments say otherwise."""
    options: dict[str, Any] = {
        "grpc.max_receive_message_length": -1,
        "grpc.max_send_message_length": -1,
        "grpc.so_reuseport": 0,  # else a second server would share the port and take half of the requests
    }
    options.update(arguments)
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="grpc")
    return grpc.server(pool, options=list(options.items()))


def open_grpc(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> None:
    """Listen and answer; with credentials, TLS alone.

    Raises:
        UserError: somebody else took the port meanwhile.
    """
    try:
        if credentials is None:
            server.add_insecure_port(f"{host}:{port}")
        else:
            server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise cannot_bind("--port", port, error) from None
    server.start()


class RestServer(HTTPServer):
    """An HTTP/1.1 server that hands each request to one function; connections stay open between requests.

    Args:
        host: Interface.
        port: Port.
        threads: How many requests are answered at once; more of them wait.
        handler: Answers them.

    Raises:
        UserError: the port is taken or not allowed.
    """

    request_queue_size = 128

    def __init__(self, host: str, port: int, threads: int, handler: RestHandler):
        self._handler = handler
        self._slots = threading.BoundedSemaphore(threads)
        self._thread: threading.Thread | None = None
        try:
            super().__init__((host, port), _Request)
        except OSError as error:
            raise cannot_bind("--rest_api_port", port, error.strerror) from None

    def start(self) -> None:
        """Answer in threads."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="rest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, and free the port."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread a connection, so that an idle one holds up nobody."""
        threading.Thread(target=self._serve, args=(request, client_address), name="rest", daemon=True).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client went away
        except Exception:
            log.exception("a connection failed")
        finally:
            self.shutdown_request(request)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Hand a request on; at most so many at once."""
        with self._slots:
            return self._handler(method, path, body)


class _BadBody(Exception):
    """The body cannot be read; the connection is of no further use."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "afm-ctr"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True  # head and body go out apart; with Nagle's delay a call takes 44 ms
    server: RestServer

    def _handle(self) -> None:
        try:
            body = self._body()
        except _BadBody as error:
            self.close_connection = True
            self._reply(400, json.dumps({"error": str(error)}).encode())
            return
        try:
            status, answer = self.server.answer(self.command, self.path, body)
        except Exception as error:
            log.exception("a request failed")
            status, answer = 500, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        self._reply(status, answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = self._chunks()
        else:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or len(length) > 10 or int(length) > _MAX_BODY:
                raise _BadBody(f"Content-Length {length[:20]} is not possible here")
            body = self.rfile.read(int(length))
        if self.headers.get("Content-Encoding", "").lower() == "gzip":
            try:
                body = gzip.decompress(body)
            except (OSError, EOFError, zlib.error) as error:
                raise _BadBody(f"the body is not gzip: {error}") from None
        return body

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            try:
                size = int(self.rfile.readline(1024).partition(b";")[0].strip(), 16)
            except ValueError:
                raise _BadBody("a chunk of the body has no size") from None
            if not 0 <= size <= _MAX_BODY - len(body):
                raise _BadBody("the body is too large")
            if size == 0:
                while self.rfile.readline(65536).strip():
                    pass  # trailers
                return bytes(body)
            body += self.rfile.read(size)
            self.rfile.readline(1024)

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is not HTTP at all, or a method without a name: the client's mistake, in the API's own form."""
        self.close_connection = True
        said = f"Malformed request: {message or HTTPStatus(code).phrase}"
        self._reply(code if code < 500 else 400, json.dumps({"error": said}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a line a request is too much."""
