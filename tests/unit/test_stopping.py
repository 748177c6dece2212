"""A run that is asked to stop: on which step, on how many ranks, and with which exit code."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from afm_ctr.distributed import SingleWorld
from afm_ctr.training.supervisor import StopSignals
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
        assert signal.getsignal(received) == before, "a second signal does what it would have done"
    assert signal.getsignal(received) == before
    stopped = signals.stopped(7, "runs/one")
    assert stopped.code == 128 + received
    assert f"stopped by {received.name} after step 7: the state is saved in runs/one" in str(stopped)


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
