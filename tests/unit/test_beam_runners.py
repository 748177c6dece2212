"""How a job is run where the user has not said so."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
import yaml
from apache_beam.options.pipeline_options import DirectOptions, S3Options
from apache_beam.testing.util import assert_that, equal_to

from afm_ctr.errors import RunError
from afm_ctr.schema import FeatureSchema
from beam_jobs import PrepareOptions, prepare, runners
from beam_jobs.analyse import Counting
from beam_jobs.output import Output
from beam_jobs.passes import Passes, quiet_threads
from beam_jobs.runners import Engine
from beam_jobs.sources import discover, pieces_to_count
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
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
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


def test_little_is_read_here_and_more_of_it_where_workers_are_of_this_machine() -> None:
    here, cluster = Engine(["--direct_num_workers=4"]), Engine(["--runner=FlinkRunner", "--parallelism=5"])
    assert [here.is_little(size) for size in (1 << 20, 64 << 20, 2 << 30)] == [True, True, False]
    assert [cluster.is_little(size) for size in (1 << 20, 64 << 20, 2 << 30)] == [True, False, False]


def test_all_views_of_the_options_see_what_one_of_them_sets() -> None:
    options = Engine(["--s3_region_name=eu", "--direct_num_workers=3"]).pipeline().options
    assert options.view_as(S3Options).s3_region_name == "eu"
    options.view_as(DirectOptions).direct_num_workers = 5
    again = pickle.loads(pickle.dumps(options))
    for one in (options, options.view_as(S3Options), again, again.view_as(S3Options)):
        assert one.view_as(DirectOptions).direct_num_workers == 5
        assert one.get_all_options()["s3_region_name"] == "eu"


def test_counting_is_the_same_in_a_pipeline_and_without_one(tmp_path: Path) -> None:
    raw_logs.make_log(tmp_path / "a.csv", 100, 1)
    raw_logs.make_log(tmp_path / "b.csv.gz", 50, 2)
    spec = FeatureSchema.model_validate(yaml.safe_load(raw_logs.SCHEMA))
    logs = discover([(str(path), path.stat().st_size) for path in sorted(tmp_path.glob("*csv*"))], spec)
    units = [[piece] for piece in pieces_to_count(logs, 700)]
    found, metrics = [], []
    stages: list[tuple[str, int, int]] = []
    for number, how in enumerate((Passes.run, Passes.run_here)):
        output = Output(str(tmp_path / f"out{number}"), overwrite=False)
        passes = Passes(Engine(), output, lambda *progress: stages.append(progress))
        with output.lock():
            output.begin()
            found.append(how(passes, "count", Counting(), units).in_order())
        metrics.append(passes.metrics)
        assert stages[0] == ("count", 0, 0)
    assert found[0] == found[1] and len(found[0]) > 5
    assert metrics[0] == metrics[1] == {"lines": sum(piece.rows for piece in found[0])}


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


def test_a_lost_worker_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Beam raises where a worker process of its in-process runner is killed."""

    def run(self: object) -> None:
        raise RuntimeError("Channel closed prematurely.")

    (tmp_path / "schema.yaml").write_text(raw_logs.SCHEMA)
    raw_logs.make_log(tmp_path / "a.csv", 30, 1)
    monkeypatch.setattr(beam.Pipeline, "run", run)
    inputs, out = [str(tmp_path / "a.csv")], tmp_path / "out"
    with pytest.raises(RunError, match=r"^a worker process was lost in the pass 'analyse'.*prepare again.*$"):
        prepare(PrepareOptions(schema=str(tmp_path / "schema.yaml"), inputs=inputs, output=str(out)))
    assert list(out.glob("*")) == []


def test_a_worker_process_that_never_connects_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam waited for ever for one that was killed while it started."""
    monkeypatch.setattr(runners.sys, "executable", "/bin/false")
    workers = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    (tmp_path / "schema.yaml").write_text(raw_logs.SCHEMA)
    raw_logs.make_log(tmp_path / "a.csv", 30, 1)
    inputs, out = [str(tmp_path / "a.csv")], tmp_path / "out"
    options = PrepareOptions(schema=str(tmp_path / "schema.yaml"), inputs=inputs, output=str(out), beam_args=workers)
    with pytest.raises(RunError, match=r"^a worker process was lost in the pass 'analyse'.*prepare again.*$"):
        prepare(options)
    assert list(out.glob("*")) == []


def test_of_a_lost_job_server_the_main_thread_alone_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        raise error

    heard: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: heard.append(failed.exc_value))
    lost, other = grpc.RpcError(), ValueError()
    exited = RuntimeError("Worker subprocess exited with return code 137")
    with quiet_threads():
        for error in (lost, exited, other):
            (thread := threading.Thread(target=fail, args=[error])).start()
            thread.join()
    assert heard == [other]


def test_a_worker_process_has_no_shell_around_it(tmp_path: Path) -> None:
    """Beam's shell, killed without its worker, left the job waiting for ever."""
    engine = Engine(["--direct_num_workers=1", "--direct_running_mode=multi_processing"])
    with engine.pipeline() as pipeline:
        parent = pipeline | beam.Create([None]) | beam.Map(lambda _: __import__("os").getppid())
        assert_that(parent, equal_to([os.getpid()]))
