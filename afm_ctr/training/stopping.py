"""Signals that ask a run to end."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from afm_ctr.distributed import World
from afm_ctr.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_EVERY_STEPS = 10  # several ranks must agree on the step, which costs a small exchange


class StopSignals:
    """While it is entered, SIGTERM and SIGINT let the step under way end and the state be saved.

    A second signal does what the first one would have done without this. Outside the main thread, and in an elastic
    job, whose launcher ends ranks by SIGTERM one by one, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread() and os.environ.get("HOROVOD_ELASTIC") != "1":
            self._before = {one: signal.signal(one, self._receive) for one in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}

    def agreed(self, world: World, step: int) -> bool:
        """Whether the run ends after this step; all ranks ask alike and are told alike."""
        if world.size == 1:
            return self.received is not None
        if step % _EVERY_STEPS:
            return False
        number = world.agree(self.received or 0)
        if number:
            self.received = signal.Signals(number)
        return bool(number)

    def stopped(self, step: int, folder: object) -> Stopped:
        """What ends the run then."""
        assert self.received is not None
        return Stopped(
            f"stopped by {self.received.name} after step {step:,}: the state is saved in {folder}, the same command "
            "goes on from there",
            128 + self.received,
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._before[self.received])
