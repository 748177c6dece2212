"""Versions that come, go and fail while requests run; warm-up; the server as a process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_log_pb2
from tiny_model import export

from serving.client import Client
from serving.errors import NotFound, ServingError
from serving.server.app import LocalServer
from serving.server.flags import ServerFlags

ONE_ROW = {"feature_ids": np.zeros((1, 2), np.int64), "feature_vals": np.zeros((1, 2), np.float32)}


def flags_of(base: Path, **changes: Any) -> ServerFlags:
    values: dict[str, Any] = {"model_name": "afm", "port": 0, "file_system_poll_wait_seconds": 0.05}
    return ServerFlags(model_base_path=str(base), **(values | changes))


@contextmanager
def serving(base: Path, **changes: Any) -> Iterator[tuple[LocalServer, Client]]:
    with (
        LocalServer(flags_of(base, **changes), "127.0.0.1") as server,
        Client(f"127.0.0.1:{server.grpc_port}", timeout=20) as client,
    ):
        yield server, client


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_versions_swap_under_load_without_a_failed_request(tmp_path: Path) -> None:
    """Each answer's logit is the bias of the version that it names; a broken version in between changes nothing."""
    ready = tmp_path / "ready"
    ready.mkdir()
    for version in (1, 2, 3):
        export(ready, version)
    base = tmp_path / "base"
    base.mkdir()
    (ready / "1").rename(base / "1")
    seen: list[tuple[int, float]] = []
    failed: list[ServingError] = []
    with serving(base) as (server, client):
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                try:
                    outputs = client.predict(ONE_ROW, "serving_default")
                    seen.append((outputs.version, float(outputs["logit"][0])))
                except ServingError as error:
                    failed.append(error)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(seen) > 20)
            (ready / "2").rename(base / "2")
            until(lambda: server.watcher.version == 2)
            shutil.rmtree(base / "1")
            (base / "7").mkdir()
            (base / "7" / "saved_model.pb").write_bytes(b"not a model")
            until(lambda: any(v.version == 7 and v.state == "END" for v in client.status()))
            (ready / "3").rename(base / "3")
            shutil.rmtree(base / "7")
            until(lambda: server.watcher.version == 3)
            at = len(seen)
            until(lambda: len(seen) > at + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []
        assert {version for version, _ in seen} == {1, 2, 3}
        assert all(logit == version for version, logit in seen)
        (broken,) = [v for v in client.status() if v.version == 7]
        assert broken.error_code
        assert "7" in broken.error_message


def predict_log(signature: str, **inputs: Any) -> bytes:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "afm", signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


def test_warm_up_runs_and_a_version_that_fails_it_is_not_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = predict_log("raw", A=[b"x"], B=[b"1"])
    export(tmp_path, 1, warm_up=(good, predict_log("serving_default", **ONE_ROW)))
    with caplog.at_level("INFO", "serving.server"), serving(tmp_path) as (server, client):
        assert "version 1: 2 warm-up requests" in caplog.text
        export(tmp_path, 2, warm_up=(good, predict_log("raw", A=[b"x"])))
        until(lambda: any(v.version == 2 and v.state == "END" for v in client.status()))
        assert server.watcher.version == 1
        (failed,) = [v for v in client.status() if v.version == 2]
        assert "tf_serving_warmup_requests: record 1: Signature input alias: B" in failed.error_message


def test_an_empty_folder_is_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, client), grpc.insecure_channel(client.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 2
        with pytest.raises(NotFound, match="Could not find any versions"):
            client.status()
        with pytest.raises(NotFound, match=r"Latest\(afm\)"):
            client.predict(ONE_ROW)
        export(tmp_path, 4)
        assert client.wait_ready(20).version == 4
        until(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1)


def test_an_oversized_message_is_refused_by_name(tmp_path: Path) -> None:
    export(tmp_path, 1)
    limit = (("grpc.max_receive_message_length", 1000),)
    with (
        serving(tmp_path, grpc_channel_arguments=limit) as (_, client),
        pytest.raises(ServingError, match="smaller batches") as caught,
    ):
        client.predict({"A": ["x" * 2000], "B": ["1"]})
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def test_memory_of_replaced_versions_is_freed(tmp_path: Path) -> None:
    """Twelve swaps between two versions of a 40 MB table: what is resident does not grow by six tables."""

    class Table(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = tf.Variable(tf.ones([10_000_000]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
        def ask(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logit": tf.gather(self.rows, ids)}

    model = Table()
    first = tmp_path / "aside"
    tf.saved_model.save(model, str(first), signatures={"serving_default": model.ask})
    base = tmp_path / "base"
    base.mkdir()
    shutil.copytree(first, base / "1")
    with serving(base, file_system_poll_wait_seconds=0) as (server, client):
        sizes = []
        for number in range(2, 14):
            (base / str(number - 1)).rename(base / str(number))
            server.watcher.look()
            assert client.predict({"ids": np.zeros(1, np.int64)}, "serving_default").version == number
            sizes.append(_resident_megabytes())
    assert sizes[-1] - sizes[1] < 160


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- the process ----


def start(root: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serving.server", *map(str, arguments)]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_signal_ends_the_process_in_good_order(root: Path, tmp_path: Path) -> None:
    export(tmp_path, 1)
    port, rest = free_port(), free_port()
    process = start(
        root, "--model_name=afm", "--model_base_path", tmp_path, f"--port={port}", "--rest_api_port", rest
    )
    try:
        with Client(f"127.0.0.1:{port}", timeout=20) as client:
            client.wait_ready(180)
            assert client.predict(ONE_ROW, "serving_default").version == 1
        with socket.create_connection(("127.0.0.1", rest), timeout=20) as kept:
            kept.sendall(b"GET /v1/models/afm HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"AVAILABLE" in kept.recv(65536)
            process.send_signal(signal.SIGTERM)
            assert kept.recv(65536) == b"", "a connection that was kept is closed"
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert f"afm: version 1 is ready; gRPC localhost:{port}, REST http://localhost:{rest}/v1/models/afm" in log
    assert log.count("listening on 127.0.0.1, for this machine only; for others: --host=0.0.0.0") == 1
    assert "Traceback" not in log


def test_mistakes_end_with_2_and_one_line(root: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, says in (
            (["--model_base_path", tmp_path, f"--port={port}"], f"--port={port} cannot be used"),
            (["--model_base_path", tmp_path, "--port=0", f"--rest_api_port={port}"], f"--rest_api_port={port}"),
            (["--model_base_path", tmp_path / "absent"], "no such folder"),
        ):
            process = start(root, *arguments)
            _, log = process.communicate(timeout=60)
            assert process.returncode == 2, log
            assert says in log
            assert log.count("\n") == 1, log


# ---- the real server ----


def test_the_real_server_gives_the_same_answers(tmp_path: Path) -> None:
    binary = shutil.which("tensorflow_model_server")
    if binary is None:
        pytest.skip("tensorflow_model_server is not on the PATH")
    export(tmp_path, 1)
    port = free_port()
    real = subprocess.Popen([binary, "--model_name=afm", f"--model_base_path={tmp_path}", f"--port={port}"])
    try:
        with serving(tmp_path) as (_, local), Client(f"127.0.0.1:{port}", timeout=20) as client:
            client.wait_ready(60)
            row = {"A": ["x"], "B": ["1.5"]}
            np.testing.assert_array_equal(client.predict(row)["logit"], local.predict(row)["logit"])
            assert client.metadata() == local.metadata()
    finally:
        real.terminate()
        real.wait(30)
