"""How a job is run where the user has not said so."""

from __future__ import annotations

import pytest

from beam_jobs import runners
from beam_jobs.runners import Engine

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
