"""The load test against the local server: what it counts, what it writes, and its exit codes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import local_server

from afm_ctr.errors import UserError
from serving.load import Slo, load_test
from serving.load.senders import Bounds
from tests.integration.conftest import AFM_CTR, last_json
from tests.tiny_model import export

SCHEMA = {
    "name": "tiny",
    "format": {"kind": "delimited", "delimiter": ",", "header": True},
    "label": {"column": "click", "kind": "binary"},
    "fields": [
        {"name": "A", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}},
        {"name": "B", "kind": "numeric", "encoding": {"kind": "value"}},
    ],
}
SHORT = Bounds(duration=1.0, timeout=5.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export(folder, 1)
    return folder


@pytest.fixture(scope="module")
def target(base: Path) -> Iterator[str]:
    with local_server(base) as server:
        yield f"127.0.0.1:{server.grpc_port}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Schema and log: 50 rows, and a line that is none."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    lines = ["A,B,click", *(f"user{i},{i / 2},0" for i in range(50)), "too,few"]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder / "schema.yaml", folder / "log.csv"


def test_open_loop_is_answered_at_the_rate(target: str, rows: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = load_test(
        target, "afm", *rows, rate=40, batch_size=8, bounds=SHORT, output=tmp_path / "deep" / "load",
        slo=Slo.parse(["p50=60s"]), progress=lambda *told: seen.append(told),
    )  # fmt: skip
    told = json.loads((tmp_path / "deep" / "load" / "load.json").read_text())
    assert (told["requests"], told["answered"], told["errors"]) == (40, 40, {})
    assert told["rate"] == 40 and told["rows_per_second"] == pytest.approx(8 * told["requests_per_second"])
    assert sum(told["histogram"]["counts"]) == 40
    assert told["latency_ms"]["p50"] <= told["latency_ms"]["p99.9"] <= told["latency_ms"]["max"]
    assert (told["distinct_rows"], told["lines_left_out"]) == (48, 1)
    assert told["holds"] is report.holds is True and told["slo"][0]["limit"] == "p50 <= 60000 ms"
    assert (tmp_path / "deep" / "load" / "histogram.png").read_bytes().startswith(b"\x89PNG")
    assert seen[-1] == ("40.0 requests/s", 320, 320)
    assert "answered 40 of 40 requests" in str(report) and "p50 <= 60000 ms: holds" in str(report)


def test_closed_loop_and_a_log_smaller_than_a_batch(target: str, rows: tuple[Path, Path]) -> None:
    report = load_test(target, "afm", *rows, concurrency=3, batch_size=120, bounds=Bounds(0.5, max_requests=200))
    figures = report.to_json()
    assert figures["concurrency"] == 3 and 0 < figures["answered"] <= 200 and not figures["errors"]
    assert report.traffic.rows == 50 and report.result.rows_per_request == 120


def test_a_promise_that_cannot_hold_is_exit_3(target: str, rows: tuple[Path, Path], tmp_path: Path) -> None:
    command = [str(AFM_CTR), "load-test", "--target", target, "--schema", str(rows[0]), "--input", str(rows[1]),
               "--concurrency", "2", "--duration", "0.5", "--slo", "p99=1us", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    told = last_json(done)
    assert told["holds"] is False and "MISSED" in done.stdout and told["answered"] > 0
    done = subprocess.run([*command[:-2], "fast", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "p99=20ms" in done.stderr and len(done.stderr.splitlines()) == 1


def test_sweep_finds_a_rate_and_draws_it(target: str, rows: tuple[Path, Path], tmp_path: Path) -> None:
    """The limit is generous: the search ends at its last step, or where the machine does."""
    report = load_test(
        target, "afm", *rows, sweep=True, slo=Slo.parse(["p50=200ms"]), rate=20, output=tmp_path,
        bounds=Bounds(duration=0.2, timeout=2.0, max_requests=60),
    )  # fmt: skip
    assert report.highest is not None and report.highest >= 20 and report.holds
    assert len(report.tried) <= 14 and report.result.asked == report.highest
    assert (tmp_path / "latency-by-rate.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "load.json").read_text())
    assert told["highest_rate"] == report.highest and len(told["sweep"]) == len(report.tried)


def test_a_server_that_dies_is_counted_not_hidden(base: Path, rows: tuple[Path, Path]) -> None:
    with local_server(base) as server:
        told: list[bool] = []

        def stop_once(what: str, done: int, total: int) -> None:
            if not told and done:
                told.append(True)
                server.stop(grace=0)

        began = time.monotonic()
        report = load_test(
            f"127.0.0.1:{server.grpc_port}", "afm", *rows, rate=50, bounds=Bounds(1.5, timeout=1.0),
            slo=Slo.parse(["p99=10s"]), progress=stop_once,
        )  # fmt: skip
    figures = report.to_json()
    assert figures["requests"] == 75 and 0 < figures["answered"] < 75
    assert set(figures["errors"]) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
    assert not report.holds and "a failed request" in str(report)
    assert time.monotonic() - began < 30


def test_mistakes_are_one_line(target: str, rows: tuple[Path, Path], tmp_path: Path) -> None:
    schema, log = rows
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
    empty = tmp_path / "empty.csv"
    empty.write_text("A,B,click\n")
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**SCHEMA, "fields": SCHEMA["fields"][:1]}))
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((nobody, "afm", schema, log), nobody),
        ((target, "nope", schema, log), "nope"),
        ((target, "afm", schema, empty), "no row"),
        ((target, "afm", schema, tmp_path / "absent.csv"), "absent.csv"),
        ((target, "afm", other, log), "the model also needs B"),
    ]
    for arguments, says in cases:
        with pytest.raises(UserError, match=says) as caught:
            load_test(*arguments, rate=10, bounds=Bounds(1.0, timeout=2.0))
        assert "\n" not in str(caught.value)


def test_the_generator_needs_no_tensorflow() -> None:
    code = "import sys, serving.load, serving.load.run; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
