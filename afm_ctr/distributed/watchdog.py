"""Ends a job that hangs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from afm_ctr.distributed.world import World
from afm_ctr.errors import UserError


class Watchdog(keras.callbacks.Callback):
    """End this process with code 1, and thereby the job, when no step finishes within a time limit.

    An exchange waits forever for a rank that is stuck or has left. A thread watches the time since the last
    :meth:`beat`; when the limit is reached, it prints one line (rank, last step, where the main thread is) and exits
    by ``os._exit``, whereupon ``horovodrun`` ends the other ranks.

    Under ``fit`` every training, validation and prediction batch is a beat. Wrap other long work (a checkpoint, a
    custom evaluation) in ``with watchdog.paused():`` or call ``beat()`` now and then.

    Args:
        world: with one rank the watchdog does nothing.
        timeout: seconds that a step may take.
        first_timeout: seconds until the first step has finished, which includes tracing; at least ``timeout``.
        explain: called at the limit; returns what is known of the other ranks.
    """

    def __init__(
        self,
        world: World,
        timeout: float = 300.0,
        first_timeout: float = 900.0,
        explain: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__()
        if timeout <= 0:
            raise UserError(f"watchdog: a timeout of {timeout:g} s is not above 0")
        self.world = world
        self.timeout = timeout
        self.first_timeout = max(timeout, first_timeout)
        self.explain = explain
        self.step = 0
        self.allowed = self.first_timeout
        self._last = time.monotonic()
        self._pauses = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, step: int | None = None) -> None:
        """Restart the time. ``step`` is the last finished one, for the message."""
        if step is not None:
            self.step = step
            self.allowed = self.timeout
        self._last = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no time is counted."""
        self._pauses += 1
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._pauses -= 1

    def start(self) -> None:
        """Start watching; ``fit`` calls it."""
        self._last = time.monotonic()
        if self.world.size > 1 and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name="afm-ctr-watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching; ``fit`` calls it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.timeout / 4)):
            idle = time.monotonic() - self._last
            if not self._pauses and idle > self.allowed:
                others = self.explain()
                self._end(
                    f"afm-ctr: rank {self.world.rank} of {self.world.size}: no step finished for {idle:.0f} s (last "
                    f"finished step: {self.step}; at {main_thread_place()}{'; ' if others else ''}{others or ''}): "
                    "ending the job"
                )
                return

    def _end(self, line: str) -> None:
        sys.stdout.flush()
        os.write(2, (line + "\n").encode())
        os._exit(1)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.beat(self.step + 1)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.beat()

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.beat()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.stop()


def main_thread_place() -> str:
    """``file:line function`` of the main thread's innermost frame, outside installed packages if there is one."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and ("site-packages" in frame.f_code.co_filename or "<" in frame.f_code.co_filename):
        frame = frame.f_back
    shown = frame or innermost
    if shown is None:
        return "an unknown place"
    return f"{os.path.basename(shown.f_code.co_filename)}:{shown.f_lineno} {shown.f_code.co_name}"
