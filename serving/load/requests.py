"""Requests of a load test: built from the rows of a log, and sent over gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.rawlog import parse_log
from afm_ctr.rawlog.side import side_tables_beside
from serving.client import Client
from serving.errors import ServingError
from serving.load.senders import Ended
from serving.score import check_columns, load_spec

SIGNATURE = "raw"
MAX_ROWS = 20_000

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_retries", 0),  # a retry would hide that the first attempt failed
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Traffic(NamedTuple):
    """Serialized Predict requests, sent over and over."""

    requests: list[bytes]  # ``rows_per_request`` rows each
    rows_per_request: int
    rows: int  # distinct rows in them
    rejected: int  # lines of the log that are not rows and were left out


def prepare(client: Client, schema_path: str | Path, input_path: str | Path, batch_size: int) -> Traffic:
    """Build requests from the rows of a log, and check one answer of the server.

    All requests are built beforehand, so that building them is not measured.

    Args:
        batch_size: rows per request; a log with fewer rows is repeated.

    Raises:
        UserError: the schema, the log or the server is missing, or they do not match.
    """
    columns, rejected = _read(schema_path, str(input_path), max(MAX_ROWS, batch_size))
    rows = len(next(iter(columns.values())))
    if not rows:
        raise UserError(f"load-test: {input_path} holds no row that the schema {schema_path} can read")
    try:
        check_columns("load-test", columns, client, schema_path)
        starts = range(0, max(rows - batch_size + 1, 1), batch_size)
        batches = [np.arange(start, start + batch_size) % rows for start in starts]
        messages = [client.build_request({n: c[batch] for n, c in columns.items()}, SIGNATURE) for batch in batches]
        _check_answer(client, {name: cells[batches[0]] for name, cells in columns.items()}, batch_size)
    except ServingError as error:
        raise UserError(f"load-test: {error}") from error
    return Traffic(
        [message.SerializeToString() for message in messages],
        batch_size,
        min(rows, len(batches) * batch_size),
        rejected,
    )


class GrpcWire:
    """Sends serialized requests over one connection and does not parse the answers. Close it.

    Args:
        requests: serialized PredictRequests; request n is ``requests[n % len(requests)]``.
    """

    def __init__(self, target: str, requests: Sequence[bytes], credentials: grpc.ChannelCredentials | None = None):
        self._channel = (
            grpc.insecure_channel(target, _OPTIONS)
            if credentials is None
            else grpc.secure_channel(target, credentials, _OPTIONS)
        )
        self._call = self._channel.unary_unary(_PREDICT, request_serializer=None, response_deserializer=None)
        self._requests = requests
        self._ended = threading.Event()
        self._calls: set[Any] = set()

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.perf_counter()

    def pause(self, until: float) -> None:
        """Wait until a time or until a call ends."""
        remaining = until - time.perf_counter()
        if remaining > 0 and self._ended.wait(remaining):
            self._ended.clear()

    def send(self, number: int, timeout: float, done: Callable[[Ended], None]) -> None:
        """Send without waiting."""
        call = self._call.future(self._requests[number % len(self._requests)], timeout=timeout)
        self._calls.add(call)

        def ended(call: Any) -> None:
            at = time.perf_counter()
            code = call.code().name
            done(Ended(code, at, "" if code == "OK" else call.details() or ""))
            self._calls.discard(call)
            self._ended.set()

        call.add_done_callback(ended)

    def cancel(self) -> None:
        """Cancel the calls in flight."""
        for call in list(self._calls):
            call.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _read(schema: str | Path, path: str, max_rows: int) -> tuple[dict[str, np.ndarray[Any, Any]], int]:
    spec = load_spec(schema)
    parts: list[dict[str, np.ndarray[Any, Any]]] = []
    rows = rejected = 0
    for parsed in parse_log(path, spec, labelled=False, tables=side_tables_beside(schema, spec)):
        parts.append(parsed.columns)
        rows += len(parsed)
        rejected += len(parsed.rejects)
        if rows >= max_rows:
            break
    empty = np.empty(0, object)
    return {
        name: np.concatenate([empty, *(part[name] for part in parts)])[:max_rows] for name in spec.raw_columns
    }, rejected


def _check_answer(client: Client, columns: dict[str, np.ndarray[Any, Any]], rows: int) -> None:
    outputs = client.predict(columns, SIGNATURE)
    short = sorted(name for name, array in outputs.items() if array.shape[:1] != (rows,))
    if short or not outputs:
        raise UserError(f"load-test: the model's {', '.join(short) or 'answer'} does not have one value per row")
