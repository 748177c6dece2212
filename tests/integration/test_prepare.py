"""Prepare with processes: several give the same bytes, and a killed run leaves nothing that looks complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from beam_jobs import PrepareOptions, PrepareSummary, prepare
from beam_jobs.sources import units
from tests import raw_logs

PROCESSES = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


def test_one_process_and_several_give_the_same_bytes(
    tmp_path: Path,
    logs: dict[str, Any],
    one: PrepareSummary,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = prepare(PrepareOptions(**logs, output=str(tmp_path / "several"), beam_args=PROCESSES))
    threads = ["--direct_num_workers=3", "--direct_running_mode=multi_threading"]
    prepare(PrepareOptions(**logs, output=str(tmp_path / "threads"), beam_args=threads))
    assert whole == raw_logs.contents(tmp_path / "several") == raw_logs.contents(tmp_path / "threads")
    assert one.rows_in == several.rows_in == 4000 + 25 + 17
    assert one.rows_out + one.sampled_out == several.rows_out + several.sampled_out == 4000
    assert sum(one.rejects.values()) == 25 + 17 and len(one.rejects) >= 4
    assert max(one.rejects_kept.values()) == 9 and one.shards > 30 and one.sampled_out > 200
    # What Beam counted, wherever: the same.
    assert one.metrics == several.metrics and one.metrics["rows"] == one.rows_out
    assert one.metrics["bytes"] == one.bytes
    assert {f"rejects_{reason}": count for reason, count in one.rejects.items()}.items() <= one.metrics.items()
    # Work handed out in another order and in other pieces.
    monkeypatch.setattr("beam_jobs.job.units", lambda chunks, workers: list(reversed(units(chunks, 5))))
    prepare(PrepareOptions(**logs, output=str(tmp_path / "other")))
    assert raw_logs.contents(tmp_path / "other") == whole


RUN = """
import json, sys
from beam_jobs import PrepareOptions, PrepareSummary, prepare
prepare(PrepareOptions(**json.loads(sys.argv[1])))
"""


def test_killed_worker_processes_leave_no_data_set_and_the_next_run_finishes(
    tmp_path: Path, logs: dict[str, Any], whole: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    options = json.dumps({**logs, "output": str(out), "beam_args": PROCESSES})
    process = subprocess.Popen([sys.executable, "-c", RUN, options], env=os.environ, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if len(list(out.glob("attempt-*/work/convert/*"))) >= 2:
                break
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "manifest.json").exists()
    assert list(out.glob("attempt-*/train/*.tfrecord"))
    prepare(PrepareOptions(**logs, output=str(out)))
    assert raw_logs.contents(out) == whole
    assert len(list(out.glob("attempt-*"))) == 1
    assert not list(out.rglob(".tmp-*")) and not list(out.rglob("work"))


def test_the_command(tmp_path: Path, logs: dict[str, Any]) -> None:
    command = [str(Path(sys.executable).with_name("afm-ctr")), "prepare", "--schema", logs["schema"]]
    command += ["--input", logs["inputs"][0], "--output", str(tmp_path / "out"), "--json"]
    command += ["--max-reject-share", "0.02"]
    done = subprocess.run([*command, "--split", "tail:0.1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["splits"]["test"]["rows"] <= 242 and summary["rows_in"] == 2425
    again = subprocess.run([*command, "--overwrite", "--direct_num_wokers=2"], capture_output=True, text=True)
    assert again.returncode == 2 and "--direct_num_wokers=2" in again.stderr and "Traceback" not in again.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


def test_criteo_rows(tmp_path: Path, shared_data: Path, root: Path) -> None:
    schema = root / "examples" / "criteo" / "schema.yaml"
    if not schema.exists():
        pytest.skip("examples/criteo is not there")
    summary = prepare(
        PrepareOptions(
            schema=schema,
            inputs=[str(shared_data / "criteo" / "criteo_120k.tsv.gz")],
            output=str(tmp_path / "out"),
            split="tail:0.1/0.1",
        )
    )
    assert summary.rows_in == 120_000 == summary.rows_out + sum(summary.rejects.values())
    assert [summary.splits[name]["rows"] for name in ("valid", "test")] == [12_000, 12_000]
