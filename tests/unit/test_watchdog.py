"""How long a watchdog allows: more before the first step, which may trace for minutes, than after it."""

from __future__ import annotations

import threading

import pytest
from fake_world import FakeWorld

from afm_ctr.distributed import Watchdog


class Noting(Watchdog):
    """Notes the line in place of ending the process."""

    def __init__(self, timeout: float, first_timeout: float) -> None:
        super().__init__(FakeWorld(), timeout, first_timeout)
        self.barked = threading.Event()

    def _end(self, line: str) -> None:
        self.barked.set()


def test_before_the_first_step_the_first_timeout_counts() -> None:
    dog = Noting(timeout=0.02, first_timeout=3600)
    dog.start()
    try:
        assert not dog.barked.wait(0.3)
        dog.beat()  # a validation batch is no step
        assert not dog.barked.wait(0.3)
        dog.beat(1)
        assert dog.barked.wait(20)
    finally:
        dog.stop()


@pytest.mark.parametrize(("timeout", "first", "expected"), [(10, 900, 900), (1200, 900, 1200)])
def test_the_first_timeout_is_never_the_shorter_one(timeout: float, first: float, expected: float) -> None:
    dog = Noting(timeout, first)
    assert dog.allowed == expected
    dog.beat(1)
    assert dog.allowed == timeout
