"""New versions every second under load: no failed request, and every answer is that of the version it names."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from served import local_server
from tiny_model import export

from serving.client import Client
from serving.errors import ServingError

CLIENTS = 8
ZERO = {"feature_ids": np.zeros((1, 2), np.int64), "feature_vals": np.zeros((1, 2), np.float32)}


class Load:
    """Closed loop: each client asks again as soon as it has its answer, which is the version's number."""

    def __init__(self, target: str):
        self.answers: list[list[tuple[int, float]]] = [[] for _ in range(CLIENTS)]
        self.failed: list[ServingError] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(target, kept)) for kept in self.answers]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, target: str, kept: list[tuple[int, float]]) -> None:
        with Client(target, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    outputs = client.predict(ZERO, "serving_default")
                    kept.append((outputs.version, float(outputs["logit"][0])))
                except ServingError as error:
                    self.failed.append(error)


def swap(folder: Path, seconds: int) -> None:
    """``seconds`` versions, one a second; in the middle one that is broken and one that is half there."""
    ready, base = folder / "ready", folder / "base"
    ready.mkdir()
    base.mkdir()
    last = seconds + 1
    for version in range(1, last + 1):
        export(ready, version)
    (ready / "1").rename(base / "1")
    with local_server(base, file_system_poll_wait_seconds=0.1) as server:
        load = Load(f"127.0.0.1:{server.grpc_port}")
        try:
            for version in range(2, last + 1):
                time.sleep(1)
                (ready / str(version)).rename(base / str(version))
                if version == last // 2:
                    (base / "1000").mkdir()
                    (base / "1000" / "saved_model.pb").write_bytes(b"not a model")
                    (base / "1001").mkdir()
                    shutil.copy(base / str(version) / "saved_model.pb", base / "1001")
                for old in range(1, version - 1):
                    shutil.rmtree(base / str(old), ignore_errors=True)
            end = time.monotonic() + 30
            while server.watcher.version != last and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.5)
        finally:
            load.finish()
        ended = {item.version: item.error_code for item in server.watcher.states() if item.version >= 1000}
    answers = [answer for kept in load.answers for answer in kept]
    wrong = [answer for answer in answers if answer[0] != answer[1]]
    assert load.failed == []
    assert wrong == []
    assert set(ended) == {1000, 1001}
    assert all(ended.values()), "the broken ones say why"
    seen = {version for version, _ in answers}
    assert last in seen, "the last version serves"
    assert len(seen) > seconds // 2
    print(f"{len(answers)} answers of {len(seen)} versions by {CLIENTS} clients in {seconds} s, none failed")


def test_a_new_version_every_second_for_10_s(tmp_path: Path) -> None:
    swap(tmp_path, 10)


@pytest.mark.soak
def test_a_new_version_every_second_for_60_s(tmp_path: Path) -> None:
    swap(tmp_path, 60)
