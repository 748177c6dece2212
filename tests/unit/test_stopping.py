"""A run that is asked to stop, or that fails: on which step, on how many ranks, and what is said of it."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afm_ctr.distributed import SingleWorld
from afm_ctr.errors import RunError, UserError
from afm_ctr.training import TrainConfig, supervisor
from afm_ctr.training.supervisor import StopSignals, Supervisor, check_same, on_chief
from tests.unit.fake_world import FakeWorld


class Agreeing(FakeWorld):
    """Another rank has received ``theirs``."""

    theirs = 0

    def agree(self, n: int, op: Any = "max") -> int:
        return max(n, self.theirs)


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_the_exit_code_names_it(received: signal.Signals) -> None:
    before = signal.getsignal(received)
    with StopSignals() as signals:
        assert not signals.agreed(SingleWorld(), 7)
        os.kill(os.getpid(), received)
        assert signals.agreed(SingleWorld(), 7), "one rank asks nobody"
    assert signal.getsignal(received) == before
    stopped = signals.stopped(7, "runs/one")
    assert stopped.code == 128 + received
    assert f"stopped by {received.name} after step 7: the state is saved in runs/one" in str(stopped)


@pytest.mark.parametrize("seconds, count", [(0.5, 0), (1.5, 1)], ids=["the same request", "a person who waited"])
def test_a_second_signal_ends_the_run_at_once_unless_it_is_the_same_request(
    monkeypatch: pytest.MonkeyPatch, seconds: float, count: int
) -> None:
    """A process group and a launcher inside it both deliver one request: that must not cut off the saving."""
    now, ended = [100.0], []
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert not ended and signals.received is signal.SIGTERM
            now[0] += seconds
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM] * count
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ranks_agree_every_ten_steps_and_on_the_signal() -> None:
    signals, world = StopSignals(), Agreeing(size=2)
    assert not signals.agreed(world, 20)
    world.theirs = signal.SIGTERM
    assert not signals.agreed(world, 21)
    assert signals.agreed(world, 30)
    assert signals.received is signal.SIGTERM, "known on this rank, too"


def test_a_signal_of_this_rank_waits_for_the_step_that_all_ask_on() -> None:
    signals, world = StopSignals(), Agreeing(size=2)
    signals.received = signal.SIGINT
    assert not signals.agreed(world, 29)
    assert signals.agreed(world, 30)


def test_nothing_changes_in_an_elastic_job_or_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def look() -> None:
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    look()
    assert found == [before, before]


class Relayed(FakeWorld):
    """What rank 0 sends arrives as it is; ``sent`` holds it, or on another rank what rank 0 had sent."""

    def __init__(self, rank: int, sent: Any = None) -> None:
        super().__init__(rank)
        self.sent = sent

    def broadcast_object(self, obj: Any) -> Any:
        if self.is_chief:
            self.sent = obj
        return self.sent


def refuse() -> None:
    raise UserError("the disk is full")


def test_rank_0_works_and_every_rank_has_the_result_or_the_mistake() -> None:
    assert on_chief(SingleWorld(), lambda: 7) == 7
    chief = Relayed(0)
    assert on_chief(chief, lambda: 8) == 8
    assert on_chief(Relayed(1, chief.sent), refuse) == 8  # type: ignore[comparison-overlap]
    with pytest.raises(UserError, match="the disk is full"):
        on_chief(chief, refuse)
    with pytest.raises(UserError, match="the disk is full"):
        on_chief(Relayed(1, chief.sent), lambda: 9)


def test_what_is_said_of_an_error(tmp_path: Path) -> None:
    """None where the exception itself says it, or it was not foreseen."""
    reader: Any = SimpleNamespace(mistake_behind=lambda error: None)
    supervisor = Supervisor(TrainConfig(watchdog=None), SingleWorld(), tmp_path, reader)
    full = supervisor.explain(OSError(28, "No space left on device"))
    assert isinstance(full, UserError)
    assert str(tmp_path) in str(full)
    assert supervisor.explain(RunError("rank 3 is gone")) is None
    assert supervisor.explain(KeyError("a bug")) is None


def test_ranks_that_were_given_different_things_are_refused_everywhere() -> None:
    given = {"optimizer.learning_rate": 0.1, "schema of the data": "a"}
    world = FakeWorld(size=3)
    check_same(world, given)
    for other, said in (
        (
            given | {"optimizer.learning_rate": 0.2},
            "rank 2 has another optimizer.learning_rate than rank 0: 0.2, not 0.1",
        ),
        (given | {"schema of the data": "b"}, "rank 2 has another schema of the data than rank 0: 'b', not 'a'"),
        (given | {"more": 1}, "rank 2 has another more than rank 0: 1, not None"),
        ({}, "rank 2 has another optimizer.learning_rate than rank 0: None, not 0.1"),
    ):
        world.others = [given, other]
        with pytest.raises(UserError, match=re.escape(said)):
            check_same(world, given)
