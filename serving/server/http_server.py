"""The REST port: HTTP/1.1 (framed by h11) in threads, with limits on size, time and connections.

Must not import TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11

from serving.server.ports import cannot_bind

log = logging.getLogger("serving.server")

# (HTTP method, path, body) to (HTTP status, JSON body)
RestHandler = Callable[[str, str, bytes], tuple[int, bytes]]

_HEAD_BYTES = 64 << 10
_READ_BYTES = 64 << 10


@dataclass(frozen=True)
class Limits:
    """Limits of the REST API."""

    connections: int = 1000  # open at once; one more gets 503
    idle_seconds: float = 60.0  # between two requests
    head_seconds: float = 20.0  # from the first byte of a request to the end of its headers
    body_seconds: float = 120.0  # from there to the end of its body
    body_bytes: int = 1 << 30  # of a body as sent
    unpacked_bytes: int = 10 << 20  # of a gzip body after unpacking; TensorFlow Serving's limit


class Refused(Exception):
    """A request that cannot be read: HTTP status and reason. The connection must be closed."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class RestServer:
    """Passes each request to one function; connections stay open between requests.

    Args:
        threads: Number of requests answered at once; others wait after their bodies are read.

    Raises:
        UserError: the port is taken or not allowed.
    """

    def __init__(self, host: str, port: int, threads: int, handler: RestHandler, limits: Limits = Limits()):
        self.limits = limits
        self.stopping = threading.Event()
        self._handler = handler
        self._slots = threading.BoundedSemaphore(threads)
        self._changed = threading.Condition()
        self._open: set[_Connection] = set()
        self._thread = threading.Thread(target=self._accept, name="rest", daemon=True)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listening = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise cannot_bind("--rest_api_port", port, error.strerror) from None
        self.port: int = self._listening.getsockname()[1]

    def start(self) -> None:
        """Start answering, in one thread per connection."""
        self._thread.start()

    def stop(self, grace: float = 0.0) -> None:
        """Free the port, close idle connections, and give requests in flight ``grace`` seconds."""
        self.stopping.set()
        if self._thread.is_alive():
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept()
            self._thread.join()
        self._listening.close()
        with self._changed:
            for connection in self._open:
                connection.hang_up(only_if_idle=True)
            self._changed.wait_for(lambda: not self._open, grace)
            for connection in self._open:
                connection.hang_up()
            self._changed.wait_for(lambda: not self._open, 1.0)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Call the handler; at most ``threads`` calls at once."""
        with self._slots:
            try:
                return self._handler(method, path, body)
            except Exception as error:
                log.exception("a request failed")
                return 500, error_body(f"{type(error).__name__}: {error}")

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                time.sleep(0.01)  # out of file descriptors, or stopping
                continue
            connection = _Connection(self, accepted)
            with self._changed:
                full = len(self._open) >= self.limits.connections
                if not full:
                    self._open.add(connection)
            if full:
                connection.turn_away()
            else:
                threading.Thread(target=self._serve, args=(connection,), name="rest", daemon=True).start()

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.run()
        except OSError:
            pass  # the client went away
        except Exception:
            log.exception("a connection failed")
        finally:
            connection.close()
            with self._changed:
                self._open.discard(connection)
                self._changed.notify_all()


class _Connection:
    """One connection: reads and answers requests one after the other."""

    def __init__(self, server: RestServer, accepted: socket.socket):
        self._server = server
        self._limits = server.limits
        self._socket = accepted
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        self._idle = threading.Event()

    def run(self) -> None:
        # Head and body of an answer may be sent separately; with Nagle's algorithm a call would take 44 ms.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self._wire.our_state is h11.IDLE:
            method = "GET"
            try:
                request = self._request()
                if request is None:
                    return
                method = request.method.decode("ascii")
                body = self._body(request)
            except h11.RemoteProtocolError as error:
                # h11 suggests 501 for some of the client's mistakes; here they are 4xx.
                status = error.error_status_hint if error.error_status_hint < 500 else 400
                self._reply(method, status, error_body(f"Malformed request: {error}"), close=True)
                return self._linger()
            except Refused as refused:
                self._reply(method, refused.status, error_body(str(refused)), close=True)
                return self._linger()
            if self._server.stopping.is_set():
                self._reply(method, 503, error_body("the server is stopping"), close=True)
                return
            status, answer = self._server.answer(method, request.target.decode("ascii"), body)
            self._reply(method, status, answer, close=self._server.stopping.is_set())
            if {self._wire.our_state, self._wire.their_state} == {h11.DONE}:
                self._wire.start_next_cycle()

    def turn_away(self) -> None:
        """Answer 503 (too many connections) without reading the request."""
        body = error_body("too many connections")
        head = f"HTTP/1.1 503 \r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        with contextlib.suppress(OSError):
            self._socket.settimeout(1.0)
            self._socket.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.close()

    def hang_up(self, *, only_if_idle: bool = False) -> None:
        """Shut the connection down from another thread; the thread that waits for bytes wakes and closes it."""
        if self._idle.is_set() or not only_if_idle:
            with contextlib.suppress(OSError):  # the client closed it first
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Shut down and close the socket."""
        self.hang_up()
        self._socket.close()

    def _request(self) -> h11.Request | None:
        """The head of the next request; None if there is none."""
        if not self._wire.trailing_data[0]:
            self._idle.set()
            try:
                if self._server.stopping.is_set() or not self._receive(self._limits.idle_seconds):
                    return None
            except TimeoutError:
                return None
            finally:
                self._idle.clear()
        event = self._event(time.monotonic() + self._limits.head_seconds, "the head of the request")
        return event if isinstance(event, h11.Request) else None

    def _body(self, request: h11.Request) -> bytes:
        headers = dict(request.headers)
        if request.http_version not in (b"1.0", b"1.1"):
            raise Refused(400, "this version of HTTP is not spoken here")
        chunked = b"transfer-encoding" in headers
        if chunked and (b"content-length" in headers or request.http_version == b"1.0"):
            raise Refused(400, "Transfer-Encoding does not go with Content-Length or HTTP/1.0")
        if int(headers.get(b"content-length", b"0")) > self._limits.body_bytes:
            raise Refused(413, f"the body is larger than {self._limits.body_bytes} bytes")
        if self._wire.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))
        end = time.monotonic() + self._limits.body_seconds
        body = bytearray()
        while isinstance(event := self._event(end, "the body"), h11.Data):
            body += event.data
            if len(body) > self._limits.body_bytes:
                raise Refused(413, f"the body is larger than {self._limits.body_bytes} bytes")
        if b"gzip" in headers.get(b"content-encoding", b"").lower():
            return unpack(bytes(body), self._limits.unpacked_bytes)
        return bytes(body)

    def _event(self, end: float, what: str) -> Any:
        while (event := self._wire.next_event()) is h11.NEED_DATA:
            try:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._receive(left)
            except TimeoutError:
                raise Refused(408, f"{what} did not arrive in time") from None
        return event

    def _receive(self, seconds: float) -> bytes:
        self._socket.settimeout(seconds)
        data = self._socket.recv(_READ_BYTES)
        self._wire.receive_data(data)
        return data

    def _reply(self, method: str, status: int, body: bytes, *, close: bool) -> None:
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        self._send(
            h11.Response(status_code=status, headers=headers + ([("Connection", "close")] if close else [])),
            *([] if method == "HEAD" else [h11.Data(data=body)]),
            h11.EndOfMessage(),
        )

    def _send(self, *events: h11.Event) -> None:
        self._socket.settimeout(self._limits.body_seconds)
        self._socket.sendall(b"".join(self._wire.send(event) or b"" for event in events))

    def _linger(self) -> None:
        """Let the client read the answer: closing with unread bytes would reset the connection."""
        end = time.monotonic() + 1.0
        self._socket.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            if not self._socket.recv(_READ_BYTES):
                return


def unpack(body: bytes, limit: int) -> bytes:
    """Decompress gzip.

    Raises:
        Refused: not gzip, or more than ``limit`` bytes; at most ``limit + 1`` bytes are unpacked.
    """
    unpacked = bytearray()
    while body:
        member = zlib.decompressobj(wbits=31)
        try:
            unpacked += member.decompress(body, limit + 1 - len(unpacked))
        except zlib.error as error:
            raise Refused(400, f"the body is not gzip: {error}") from None
        if len(unpacked) > limit:
            raise Refused(413, f"the body is larger than {limit} bytes when unpacked")
        if not member.eof:
            raise Refused(400, "the body is not gzip: it ends early")
        body = member.unused_data.lstrip(b"\0")
    return bytes(unpacked)


def error_body(text: str) -> bytes:
    """An error in the JSON form of TensorFlow Serving's REST API."""
    # A lone surrogate from the client's JSON has no UTF-8 form; as an escape it is valid JSON.
    return json.dumps({"error": text}, ensure_ascii=False).encode("utf-8", "backslashreplace")
