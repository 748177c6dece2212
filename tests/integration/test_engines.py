"""prepare on Flink and on Spark: clusters on this machine, started by ``scripts/clusters.py``.

They run where Java and the downloads are; ``python scripts/clusters.py fetch`` brings those.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from afm_ctr.errors import RunError, UserError
from afm_ctr.records import Manifest
from beam_jobs import Prepare, PrepareOptions, ReadRawLogs, prepare
from tests import raw_logs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import clusters

ENGINES = ("flink", "spark")


def needs(engine: str) -> None:
    if why := clusters.unavailable(engine):
        pytest.skip(why)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_the_same_bytes(
    tmp_path: Path, engine: str, logs: dict[str, Any], whole: dict[str, Any]
) -> None:
    needs(engine)
    with clusters.running(engine, tmp_path / "cluster") as cluster:
        with urllib.request.urlopen(cluster.web, timeout=30) as page:
            assert page.status == 200
        summary = prepare(PrepareOptions(**logs, output=str(tmp_path / "data"), beam_args=cluster.beam_args))
        names = set(cluster.processes)
    assert raw_logs.contents(tmp_path / "data") == whole
    assert summary.metrics["rows"] == summary.rows_out
    assert len([name for name in names if name.startswith(("taskmanager", "worker"))]) == 2
    assert not any(map(cluster.alive, names)) and not (tmp_path / "cluster" / "cluster.json").exists()


def shards(out: Path) -> list[tuple[str, str]]:
    return [(shard.file, shard.sha256) for shard in Manifest.load(out).shards]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_a_pipeline_are_prepared_on_an_engine(tmp_path: Path, engine: str, logs: dict[str, Any]) -> None:
    needs(engine)
    options = {"split": logs["split"], "shards": 4, "max_reject_share": 0.02}
    with clusters.running(engine, tmp_path / "cluster") as cluster:
        for name, args in (("here", ["--runner=FnApiRunner"]), ("there", cluster.beam_args)):
            with beam.Pipeline(options=PipelineOptions(args)) as pipeline:
                rows = pipeline | ReadRawLogs(logs["schema"], logs["inputs"])
                _ = rows | Prepare(logs["schema"], str(tmp_path / name), **options)
    assert shards(tmp_path / "there") == shards(tmp_path / "here") and len(shards(tmp_path / "here")) == 12
    here, there = (Manifest.load(tmp_path / name) for name in ("here", "there"))
    assert there.schema_id == here.schema_id and there.rejects == here.rejects and there.rows_in == here.rows_in


RUN = """
import json, sys
from beam_jobs import PrepareOptions, prepare
prepare(PrepareOptions(**json.loads(sys.argv[1])))
"""


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["analyse", "convert"])
def test_a_killed_submitter_leaves_no_data_set_and_the_next_run_finishes(
    tmp_path: Path, stage: str, logs: dict[str, Any], whole: dict[str, Any]
) -> None:
    needs("flink")
    out = tmp_path / "data"
    with clusters.running("flink", tmp_path / "cluster") as cluster:
        options = {**logs, "output": str(out), "beam_args": cluster.beam_args}
        submitter = subprocess.Popen([sys.executable, "-c", RUN, json.dumps(options)], stderr=subprocess.DEVNULL)
        when(out, stage, submitter.kill).result()
        assert submitter.wait(60) == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
        # The engine may be at work for the dead run still.
        prepare(PrepareOptions(**options))
    assert raw_logs.contents(out) == whole


# What is killed, in which pass.
KILLS = [
    *(
        ("flink", victim, stage)
        for victim in ("taskmanager-1", "pool", "job-server")
        for stage in ("analyse", "convert")
    ),
    *(("spark", victim, stage) for victim in ("worker-1", "pool", "job-server") for stage in ("analyse", "convert")),
]


def when(folder: Path, stage: str, do: Callable[[], None]) -> Future[None]:
    """Do something once a pass of the job in ``folder`` has marked a chunk as done and the job is at work still."""

    def look() -> None:
        end = time.monotonic() + 300
        while not list(folder.glob(f"attempt-*/work/{stage}/0*")):
            assert time.monotonic() < end, f"{stage} has done nothing"
            time.sleep(0.02)
        do()

    return ThreadPoolExecutor(1).submit(look)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("engine", "victim", "stage"), KILLS)
def test_a_killed_process_costs_no_byte(
    tmp_path: Path, engine: str, victim: str, stage: str, logs: dict[str, Any], whole: dict[str, Any]
) -> None:
    needs(engine)
    out = tmp_path / "data"
    with clusters.running(engine, tmp_path / "cluster") as cluster:
        killer = when(out, stage, lambda: cluster.kill(victim, signal.SIGKILL))
        try:
            prepare(PrepareOptions(**logs, output=str(out), beam_args=cluster.beam_args))
        except (UserError, RunError) as error:
            assert len(str(error).splitlines()) == 1
            assert not (out / "manifest.json").exists()
        else:
            assert raw_logs.contents(out) == whole
        killer.result()  # else it came too late
        assert not cluster.alive(victim)
    with clusters.running(engine, tmp_path / "again") as cluster:
        prepare(PrepareOptions(**logs, output=str(out), beam_args=cluster.beam_args, overwrite=True))
    assert raw_logs.contents(out) == whole
