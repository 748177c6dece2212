"""Servers that die, hang or hang up: every call ends in time, with an answer of its own or with a clear error."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from served import free_port
from tiny_model import expected_logit, export

from serving import tensors
from serving.client import Client, Outputs
from serving.errors import DeadlineExceeded, ServingError, Unavailable
from serving.protos import wire_pb2 as wire

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"


# ---- a server that is killed and comes back ----


@contextmanager
def process(root: Path, base: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "serving.server", "--model_name=afm", f"--model_base_path={base}"]
    running = subprocess.Popen([*command, f"--port={port}"], cwd=root, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait(30)


def inputs_of(number: int) -> dict[str, Any]:
    """A request whose score tells its number."""
    return {"feature_ids": np.zeros((1, 2), np.int64), "feature_vals": np.array([[number, 0]], np.float32)}


def expected(number: int) -> float:
    found = inputs_of(number)
    return float(expected_logit(found["feature_ids"], found["feature_vals"], 1)[0])


class OpenLoop:
    """Sends numbered requests at a steady rate, whatever becomes of them; keeps what each came to, and when."""

    def __init__(self, client: Client, rate: float):
        self.ends: dict[int, list[tuple[float, Outputs | ServingError]]] = {}
        self._client = client
        self._rate = rate
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(64)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(1 / self._rate):
            self.ends[number] = []
            began, pending = time.monotonic(), self._client.submit(inputs_of(number), "serving_default")
            self._pool.submit(self._wait, number, began, pending)
            number += 1

    def _wait(self, number: int, began: float, pending: Any) -> None:
        try:
            result: Outputs | ServingError = pending.result()
        except ServingError as error:
            result = error
        self.ends[number].append((time.monotonic() - began, result))


def test_a_server_is_killed_and_restarted_under_load(root: Path, tmp_path: Path) -> None:
    """A patient client loses nothing; a hasty one is told in time; nobody gets an answer twice, or another's."""
    export(tmp_path, 1)
    target = f"127.0.0.1:{(port := free_port())}"
    with (
        Client(target, timeout=120, wait_for_ready=True) as patient,
        Client(target, timeout=1) as hasty,
    ):
        loops: list[OpenLoop] = []
        try:
            with process(root, tmp_path, port):
                patient.wait_ready(120)
                loops += [OpenLoop(patient, 20), OpenLoop(hasty, 20)]
                time.sleep(1)
            with process(root, tmp_path, port):
                patient.wait_ready(120)
                time.sleep(1)
                for loop in loops:
                    loop.finish()
        finally:
            for loop in loops:
                loop.finish()
    for loop, most in zip(loops, (120, 1), strict=True):
        assert all(len(ends) == 1 for ends in loop.ends.values())
        for number, [(seconds, result)] in loop.ends.items():
            assert seconds < most + 5
            if isinstance(result, Outputs):
                assert result["logit"].tolist() == pytest.approx([expected(number)], rel=1e-6)
            else:
                assert isinstance(result, (Unavailable, DeadlineExceeded)), result
    answered = [isinstance(ends[0][1], Outputs) for ends in loops[0].ends.values()]
    assert all(answered)
    assert not all(isinstance(ends[0][1], Outputs) for ends in loops[1].ends.values())


# ---- servers that are of no use ----


@contextmanager
def accepting(treat: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accepts connections and does one thing with each."""
    listening = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                kept.append(listening.accept()[0])
            except OSError:
                return
            treat(kept[-1])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for connection in kept:
            connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize(
    ("treat", "kinds", "wait_for_ready"),
    [
        (lambda connection: None, (Unavailable, DeadlineExceeded), False),
        (reset, (Unavailable, DeadlineExceeded), False),
        (reset, DeadlineExceeded, True),
    ],
    ids=["never answers", "resets", "resets, patient client"],
)
def test_every_call_ends_in_time(treat: Any, kinds: Any, wait_for_ready: bool) -> None:
    with accepting(treat) as target, Client(target, timeout=1, wait_for_ready=wait_for_ready) as client:
        for call in (
            lambda: client.predict(inputs_of(1)),
            lambda: list(client.score_rows([{"A": 1}])),
            client.status,
            client.metadata,
        ):
            began = time.monotonic()
            with pytest.raises(kinds, match=target):
                call()
            assert time.monotonic() - began < 5
        with pytest.raises(Unavailable, match=r"was not ready in 0\.5 s"):
            client.wait_ready(0.5)


# ---- servers that answer now and then ----


class Moody(grpc.GenericRpcHandler):
    """Answers with column A as logit; ``mood`` says whether it does, by the number of the call."""

    def __init__(self, mood: Callable[[int], bool]):
        self.calls = 0
        self._mood = mood
        self._lock = threading.Lock()

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._metadata if details.method == METADATA else self._predict)

    def _metadata(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        signature = wire.SignatureDef(method_name="tensorflow/serving/predict")
        signature.inputs["A"].dtype = wire.DT_STRING
        signature.inputs["A"].tensor_shape.dim.add(size=-1)
        response = wire.GetModelMetadataResponse()
        packed = wire.SignatureDefMap(signature_def={"raw": signature})
        response.metadata["signature_def"].value = packed.SerializeToString()
        return response.SerializeToString()

    def _predict(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.calls += 1
            number = self.calls
        if not self._mood(number):
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        cells = wire.PredictRequest.FromString(data).inputs["A"].string_val
        response = wire.PredictResponse()
        tensors.to_proto(np.array([float(cell) for cell in cells], np.float32), response.outputs["logit"])
        return response.SerializeToString()


@contextmanager
def serving(handler: Moody) -> Iterator[tuple[grpc.Server, str]]:
    server = grpc.server(ThreadPoolExecutor(8), handlers=[handler])
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield server, target
    finally:
        server.stop(None)


def test_repeated_calls_give_each_row_once_and_in_order() -> None:
    rows = [{"A": number} for number in range(300)]
    handler = Moody(lambda number: number % 3 != 0)
    with serving(handler) as (_, target), Client(target, timeout=60) as client:
        assert [row["logit"] for row in client.score_rows(rows, batch_size=5)] == list(range(300))
    assert handler.calls > 60


def test_the_load_goes_round_and_one_server_may_die() -> None:
    first, second = Moody(lambda number: True), Moody(lambda number: True)
    rows = [{"A": number} for number in range(100)]
    with serving(first) as (_, one), serving(second) as (dying, other), Client([one, other], timeout=60) as client:
        for _ in range(50):  # until both connections are there
            client.score(rows[:1])
            if first.calls and second.calls:
                break
            time.sleep(0.05)
        before = first.calls, second.calls
        assert client.score(rows, batch_size=1)["logit"].tolist() == list(range(100))
        assert (first.calls - before[0], second.calls - before[1]) == (50, 50)
        dying.stop(None)
        assert client.score(rows, batch_size=1)["logit"].tolist() == list(range(100))
        assert first.calls - before[0] >= 150


def test_targets_that_cannot_be() -> None:
    for targets, says in (([], "no target"), (["127.0.0.1:1", "b"], "target b is not host:port")):
        with pytest.raises(ValueError, match=says):
            Client(targets)
