"""How a job is run where the user has not said so."""

from __future__ import annotations

from pathlib import Path

import pytest

from afm_ctr.errors import RunError
from beam_jobs import PrepareOptions, prepare, runners
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
    with pytest.raises(RunError, match=r"the runner ended in the pass 'count': .*prepare again$") as failed:
        prepare(options)
    assert len(str(failed.value).splitlines()) == 1
    assert list((tmp_path / "out").glob("*")) == []
