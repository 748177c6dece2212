"""A profile of some steps: TensorBoard's, and a table of where their time went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from afm_ctr.io.files import write_json
from afm_ctr.training.trace import MARK, PARTS, divide, spans_of

WARM_UP = 10  # the first step traces, the next ones find memory, and input is ready before it is needed


class StepProfile(keras.callbacks.Callback):
    """Profiles so many steps of a run, after some that warm up, all within one epoch.

    It comes last among the callbacks, so that theirs is part of a step's time. The profiler itself costs some time
    of every step that it looks at.

    Args:
        steps: how many; an epoch that is shorter gives what it has.
        folder: where TensorBoard finds its files.
        file: what the table is written to, as JSON.
        batch_size: rows of a step, over all ranks.
        say: takes the lines of the table.
    """

    def __init__(self, steps: int, folder: Path, file: Path, batch_size: int, say: Callable[[str], None]) -> None:
        super().__init__()
        self._wanted, self._folder, self._file, self._batch, self._say = steps, folder, file, batch_size, say
        self._before = self._taken = 0
        self._mark: Any = None
        self.done = False

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.done:
            return
        last = batch + 1 == self.params["steps"]
        if self._mark is None:
            self._before += 1
            if self._before >= WARM_UP and not last:
                self._begin()
            return
        self._taken += 1
        if last or self._taken == self._wanted:
            self._finish()

    def _begin(self) -> None:
        # The levels of the host's and Python's tracers: operations, and no Python calls.
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
        tf.profiler.experimental.start(str(self._folder), options)
        self._mark = tf.profiler.experimental.Trace(MARK)
        self._mark.__enter__()

    def _finish(self) -> None:
        self._mark.__exit__(None, None, None)
        tf.profiler.experimental.stop()
        self.done = True
        trace = max(self._folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        spans, begin, end = spans_of(trace)
        picoseconds = divide(spans, begin, end)
        step = {part: picoseconds[part] / 1e9 / self._taken for part in PARTS}
        whole = (end - begin) / 1e9 / self._taken
        profile = {
            "steps": self._taken,
            "batch_size": self._batch,
            "milliseconds": {**{part: round(step[part], 4) for part in PARTS}, "step": round(whole, 4)},
            "trace": str(trace.relative_to(self._file.parent)),
        }
        write_json(self._file, profile)
        self._say(f"profile of {self._taken} steps of {self._batch:,} rows, ms a step:")
        for part, took in [*step.items(), ("step", whole)]:
            self._say(f"  {part:<12}{took:9.2f} {took / whole:8.1%}")
