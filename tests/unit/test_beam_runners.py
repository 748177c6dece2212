"""How a job is run where the user has not said so."""

from __future__ import annotations

import threading
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import S3Options

from afm_ctr.errors import RunError
from beam_jobs import PrepareOptions, prepare, runners
from beam_jobs.passes import quiet_threads
from beam_jobs.runners import Engine
from tests import raw_logs

LARGE = 1 << 30


@pytest.mark.parametrize(
    ("args", "cores", "size", "workers"),
    [
        ([], 2, LARGE, 2),
        ([], 64, LARGE, 2),
        ([], 1, LARGE, 1),
        ([], 2, 1 << 20, 1),
        (["--runner=DirectRunner"], 2, LARGE, 2),
        (["--direct_num_workers=1"], 2, LARGE, 1),
        (["--direct_num_workers=3", "--direct_running_mode=multi_processing"], 2, LARGE, 3),
    ],
)
def test_two_threads_where_nothing_speaks_against_them(
    monkeypatch: pytest.MonkeyPatch, args: list[str], cores: int, size: int, workers: int
) -> None:
    monkeypatch.setattr(runners, "_cores", lambda: cores)
    engine = Engine(args)
    chosen = engine.for_input(size)
    assert chosen.workers == workers and chosen.in_process
    assert chosen.workers_are_threads == ("--direct_running_mode=multi_processing" not in args)
    # Told, or with nothing to choose, it stays as it is.
    assert (chosen is engine) == (workers != 2)


def test_other_runners_choose_for_themselves() -> None:
    engine = Engine(["--runner=PortableRunner", "--job_endpoint=localhost:8099"])
    assert engine.for_input(LARGE) is engine
    assert engine.workers is None
    assert Engine(["--runner=FlinkRunner", "--parallelism=5"]).workers == 5


def test_a_pass_of_little_work_starts_no_workers_and_keeps_the_options() -> None:
    for args in (
        ["--runner=FlinkRunner", "--parallelism=5", "--environment_type=EXTERNAL", "--s3_region_name=eu"],
        ["--direct_num_workers=4", "--direct_running_mode=multi_processing", "--s3_region_name=eu"],
    ):
        engine = Engine(args)
        little = engine.for_little(1 << 20)
        assert little.in_process and little.workers == 1 and little.workers_are_threads
        with little.pipeline() as pipeline:
            _ = pipeline | beam.Create([1])
            assert pipeline.options.view_as(S3Options).s3_region_name == "eu"
        assert engine.for_little(2 << 30) is engine
        assert (engine.for_little(64 << 20) is engine) != engine.in_process


def test_a_lost_runner_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(raw_logs.SCHEMA)
    raw_logs.make_log(tmp_path / "a.csv", 30, 1)
    lost = ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:9", "--job_server_timeout=1"]
    options = PrepareOptions(
        schema=str(tmp_path / "schema.yaml"),
        inputs=[str(tmp_path / "a.csv")],
        output=str(tmp_path / "out"),
        beam_args=[*lost, "--environment_type=EXTERNAL", "--environment_config=127.0.0.1:9"],
    )
    with pytest.raises(RunError, match=r"the runner ended in the pass 'analyse': .*prepare again$") as failed:
        prepare(options)
    assert len(str(failed.value).splitlines()) == 1
    assert list((tmp_path / "out").glob("*")) == []


def test_of_a_lost_job_server_the_main_thread_alone_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        raise error

    heard: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: heard.append(failed.exc_value))
    lost, other = grpc.RpcError(), ValueError()
    with quiet_threads():
        for error in (lost, other):
            (thread := threading.Thread(target=fail, args=[error])).start()
            thread.join()
    assert heard == [other]
