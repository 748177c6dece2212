"""The REST port against callers that mean harm: framing, floods, slow connections, packed bodies, the end."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from serving.server.http_server import Limits, RestServer

CHUNKED = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"


def echo(method: str, path: str, body: bytes) -> tuple[int, bytes]:
    return 200, json.dumps({"method": method, "path": path, "body": body.decode("latin-1")}).encode()


@contextmanager
def serving(handler: Callable[[str, str, bytes], tuple[int, bytes]] = echo, **limits: float) -> Iterator[RestServer]:
    server = RestServer("127.0.0.1", 0, 2, handler, Limits(**limits))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[RestServer]:
    with serving() as running:
        yield running


def connect(server: RestServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes; it must."""
    answer = b""
    while more := connection.recv(65536):
        answer += more
    return answer


def ask(server: RestServer, data: bytes) -> tuple[list[int], bytes]:
    """Send and hear all that comes back: the statuses in it, and the text."""
    with connect(server) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = everything(connection)
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]], answer


@pytest.mark.parametrize(
    "head",
    [
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 5\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4 4\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: \xc2\xb2\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length : 4\r\n",
        b"POST /x HTTP/1.1\r\n Content-Length: 4\r\nHost: x\r\n",
        CHUNKED + b"Content-Length: 4\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        CHUNKED + b"Transfer-Encoding: chunked\r\n",
        CHUNKED + b"Transfer-Encoding: identity\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n",
        b"POST /x HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 4\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 4\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nA: b\x00c\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nA b: c\r\n",
        b"POST /x y HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n",
        b"POST /x HTTP/9.9\r\nHost: x\r\nContent-Length: 4\r\n",
        b"POST  /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n",
        b"\xff\xfe /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n",
    ],
)
def test_a_head_of_two_meanings_is_refused_and_ends_the_connection(server: RestServer, head: bytes) -> None:
    """What comes behind is never taken for a request of its own: that is how requests are smuggled."""
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    statuses, answer = ask(server, head + b"\r\n4\r\nabcd\r\n0\r\n\r\n" + smuggled)
    assert statuses == [400], answer
    assert b"smuggled" not in answer and b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "chunks",
    [
        b"-4\r\nabcd\r\n0\r\n\r\n",
        b"+4\r\nabcd\r\n0\r\n\r\n",
        b"0x4\r\nabcd\r\n0\r\n\r\n",
        b"4_0\r\nabcd\r\n0\r\n\r\n",
        b" 4\r\nabcd\r\n0\r\n\r\n",
        b"\r\nabcd\r\n0\r\n\r\n",
        b"g\r\nabcd\r\n0\r\n\r\n",
        b"ffffffffffffffffffffff\r\nabcd\r\n0\r\n\r\n",
        b"4\r\nabcdXX0\r\n\r\n",
        b"4\r\nabcdef\r\n0\r\n\r\n",
        b"4\r\nabcd\r\n0\r\n bad\x00 trailer\r\n\r\n",
    ],
)
def test_a_chunk_of_no_size_is_refused_and_ends_the_connection(server: RestServer, chunks: bytes) -> None:
    statuses, answer = ask(server, CHUNKED + b"\r\n" + chunks + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert statuses == [400], answer
    assert b"smuggled" not in answer


def test_what_is_right_is_answered_one_after_the_other(server: RestServer) -> None:
    two = b"2\r\nab\r\n2;note=x\r\ncd\r\n0\r\nTrailer: x\r\n\r\n"
    statuses, answer = ask(
        server,
        CHUNKED + b"\r\n" + two
        + b"GET /second?a=b HTTP/1.1\r\nHost: x\r\n\r\n"
        + b"POST /third HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nxy"
        + b"HEAD /fourth HTTP/1.1\r\nHost: x\r\n\r\n"
        + b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )  # fmt: skip
    assert statuses == [200] * 5, answer
    assert b'"abcd"' in answer and b"/second?a=b" in answer and b'"xy"' in answer and b"/fourth" not in answer


def test_a_caller_that_waits_to_be_asked_for_its_body(server: RestServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"ab")
        assert b'"ab"' in connection.recv(65536)


def test_a_body_that_grows_out_of_gzip_is_bounded() -> None:
    def post(server: RestServer, body: bytes) -> tuple[list[int], bytes]:
        head = f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        return ask(server, head.encode() + body)

    asked = []

    def handler(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        asked.append(len(body))
        return 200, b"{}"

    with serving(handler, unpacked_bytes=1000) as server:
        assert post(server, gzip.compress(b"x" * 1000))[0] == [200]
        assert post(server, gzip.compress(b"x" * 400) + gzip.compress(b"y" * 600))[0] == [200]
        assert asked == [1000, 1000]
        for bomb in (
            gzip.compress(b"x" * 1001),
            gzip.compress(bytes(50_000_000)),
            gzip.compress(b"x" * 400) * 3,
        ):
            statuses, answer = post(server, bomb)
            assert statuses == [413] and b"larger than 1000 bytes when unpacked" in answer
        for broken in (b"x", gzip.compress(b"abc")[:-4], gzip.compress(b"abc") + b"junk", b"\x1f\x8b"):
            statuses, answer = post(server, broken)
            assert statuses == [400] and b"not gzip" in answer
    assert asked == [1000, 1000], "no handler saw the others"


def test_a_body_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with serving(body_bytes=10) as server:
        with connect(server) as connection:
            connection.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n")
            assert b" 413 " in everything(connection)
        statuses, _ = ask(server, CHUNKED + b"\r\n6\r\nabcdef\r\n6\r\nabcdef\r\n0\r\n\r\n")
        assert statuses == [413]
        statuses, _ = ask(server, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 15 + b"\r\n\r\n")
        assert statuses == [413]
    with serving() as server:
        statuses, _ = ask(server, b"GET /x HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 300_000 + b"\r\n\r\n")
        assert statuses == [431]


@pytest.mark.parametrize("start", [b"G", b"GET /x HTTP/1.1\r\nHost: x\r\n", CHUNKED + b"\r\n4\r\na"])
def test_a_caller_that_sends_byte_after_byte_is_cut_off(start: bytes) -> None:
    """By the time of the whole, not by the pause between two bytes."""
    with serving(head_seconds=0.3, body_seconds=0.3) as server, connect(server) as connection:
        connection.sendall(start)
        answered = threading.Event()

        def drip() -> None:
            while not answered.wait(0.02):
                try:
                    connection.sendall(b"b")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            answer = connection.recv(65536)
        finally:
            answered.set()
            thread.join()
    assert answer.startswith(b"HTTP/1.1 408 ") or (start[-1:] == b"a" and b" 400 " in answer), answer


def test_an_idle_connection_is_closed() -> None:
    with serving(idle_seconds=0.1) as server, connect(server) as connection:
        assert everything(connection) == b""


def test_more_connections_than_allowed_are_turned_away() -> None:
    with serving(connections=3) as server:
        kept = [connect(server) for _ in range(3)]
        for connection in kept:
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in connection.recv(65536)
        with connect(server) as one_more:
            assert b" 503 " in everything(one_more)
        kept.pop().close()
        end = time.monotonic() + 20
        while True:
            with connect(server) as again:
                again.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if b" 200 " in everything(again):
                    break
            assert time.monotonic() < end
        for connection in kept:
            connection.close()


class Slow:
    """Answers when it is let; says when a request is inside."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.go = threading.Event()

    def __call__(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        self.inside.set()
        self.go.wait(20)
        return 200, b'{"answer": 1}'


def test_the_end_waits_for_what_is_inside_and_closes_what_is_idle() -> None:
    slow = Slow()
    server = RestServer("127.0.0.1", 0, 2, slow)
    server.start()
    with connect(server) as idle, connect(server) as busy, connect(server) as late:
        slow.go.set()
        for connection in (idle, late):
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b'{"answer": 1}' in connection.recv(65536)
        slow.go.clear()
        slow.inside.clear()
        busy.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert slow.inside.wait(20)
        late.sendall(b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")  # half of a request
        time.sleep(0.05)
        stopping = threading.Thread(target=server.stop, args=(20,))
        stopping.start()
        assert everything(idle) == b""
        with pytest.raises(OSError):
            connect(server).close()
        late.sendall(b"b")
        assert b" 503 " in everything(late)
        assert stopping.is_alive()
        slow.go.set()
        answer = everything(busy)
        assert b'{"answer": 1}' in answer and b"connection: close" in answer.lower()
        stopping.join(20)
        assert not stopping.is_alive()


def test_the_end_is_bounded() -> None:
    slow = Slow()
    server = RestServer("127.0.0.1", 0, 2, slow)
    server.start()
    with connect(server) as busy:
        busy.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.inside.wait(20)
        server.stop(0.1)
        assert everything(busy) == b""
        slow.go.set()
