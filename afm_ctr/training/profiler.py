"""A profile of some steps: TensorBoard's, and a table of the time per part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from afm_ctr.io.files import write_json
from afm_ctr.training.progress import Say

WARM_UP = 10  # the first step traces, the next ones allocate memory, and input has been prefetched
STEP = "train_step"  # the scope of a step's operations; those of the input pipeline's threads have none
PARTS = ("input", "merge", "lookup", "interaction", "exchange", "optimizer", "idle", "other")
"""The parts of a step's time; ``other`` is the loss, the metric, callbacks, Python, and idle time on a CPU.

``input`` is the wait for a batch that is not ready, ``merge`` finding the batch's distinct ids, ``lookup`` reading
their rows and adding up their gradients, ``interaction`` the model, both ways; ``exchange`` is summing over the ranks
with the wait for them, ``optimizer`` everything after that. On a GPU the times are the GPU's, and ``idle`` is when it
waits for the host to launch the next operation: a larger batch uses it better.
"""
MARK = "profiled steps"
_OPERATION = re.compile(r"([^:]+):\w+")
# The operation hands over to a thread and ends.
_NEXT_BATCH = re.compile(r"IteratorGetNext\w*::DoCompute")
_NUMBER = re.compile(r"_\d+$")  # TensorFlow numbers a scope that is entered again


class StepProfile(keras.callbacks.Callback):
    """Profiles a number of steps of a run, after some warm-up steps, all within one epoch.

    It comes last among the callbacks, so that theirs is part of a step's time. Profiling itself adds some time to
    every step.

    Args:
        steps: how many; in a shorter epoch as many as there are.
        file: where the table is written, as JSON.
    """

    def __init__(self, steps: int, folder: Path, file: Path, batch_size: int, say: Say) -> None:
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
        # Levels of the host's and Python's tracers: trace operations, no Python calls.
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
        tf.profiler.experimental.start(str(self._folder), options)
        self._mark = tf.profiler.experimental.Trace(MARK)
        self._mark.__enter__()

    def _finish(self) -> None:
        self._mark.__exit__(None, None, None)
        tf.profiler.experimental.stop()
        self.done = True
        trace = max(self._folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        spans, begin, end, on_gpu = spans_of(trace)
        picoseconds = divide(spans, begin, end, "idle" if on_gpu else "other")
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
            if part == "idle" and not took:
                continue  # no GPU
            self._say(f"  {part:<12}{took:9.2f} {took / whole:8.1%}")


class Span(NamedTuple):
    """An operation of a thread, in picoseconds."""

    begin: int
    end: int
    part: str


def part_of(event: str) -> str | None:
    """The part that an event of the trace belongs to; None if it is not an operation of a step.

    Example:
        >>> part_of("gradient_tape/train_step/ctr/interaction/afm/MatMul:MatMul")
        'interaction'
    """
    if _NEXT_BATCH.fullmatch(event):
        return "input"
    operation = _OPERATION.fullmatch(event)
    scopes = [] if operation is None else [_NUMBER.sub("", scope) for scope in operation[1].split("/")]
    if STEP not in scopes:
        return None
    return next((scope for scope in reversed(scopes) if scope in PARTS), "other")


def divide(spans: Iterable[Span], begin: int, end: int, gaps: str = "other") -> dict[str, int]:
    """Divide the time from ``begin`` to ``end`` by part; operations that run at the same time share it.

    Time in which nothing runs counts as exchange if one has begun in this step and the next operation belongs to it
    or to the optimizer, since the ranks' exchanges run on their own threads; otherwise as the part ``gaps``.

    Returns:
        Picoseconds by part; their sum is ``end - begin``.
    """
    changes = sorted(
        change
        for span in spans
        if span.end > begin and span.begin < end
        for change in ((max(span.begin, begin), 1, span.part), (min(span.end, end), -1, span.part))
    )
    shares = dict.fromkeys(PARTS, 0.0)
    running = dict.fromkeys(PARTS, 0)
    now, exchanging = begin, False
    for time, change, part in [*changes, (end, 0, "other")]:
        count = sum(running.values())
        for name, number in running.items() if count else ():
            shares[name] += (time - now) * number / count
        if not count:
            waited = exchanging and part in ("exchange", "optimizer")
            shares["exchange" if waited else gaps] += time - now
        running[part] += change
        exchanging = part == "exchange" or (exchanging and part != "input")
        now = time
    return {name: round(share) for name, share in shares.items()}


def spans_of(trace: Path) -> tuple[list[Span], int, int, bool]:
    """The operations of the marked steps, with begin and end of the mark, and whether they are a GPU's.

    For a CPU they are each thread's innermost ones. With a GPU they are the GPU's, and of the CPU only the wait for
    input and the exchange, which may run on the host: for the rest the host only launches kernels.

    Raises:
        ValueError: the mark is not in the trace.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(trace.read_bytes())
    found = [span for plane in space.planes if plane.name.startswith("/device:GPU") for span in _on_gpu(plane)]
    on_gpu = bool(found)
    mark: tuple[int, int] | None = None
    for plane in space.planes:
        if not plane.name.startswith("/host:CPU"):
            continue
        names = {number: metadata.name for number, metadata in plane.event_metadata.items()}
        parts = {number: part_of(name) for number, name in names.items()}
        for line in plane.lines:
            events: list[Span] = []
            for event in line.events:
                begin = line.timestamp_ns * 1000 + event.offset_ps
                if names[event.metadata_id] == MARK:
                    mark = begin, begin + event.duration_ps
                part = parts[event.metadata_id]
                if part is not None:
                    events.append(Span(begin, begin + event.duration_ps, part))
            found += [span for span in _innermost(events) if not on_gpu or span.part in ("input", "exchange")]
    if mark is None:
        raise ValueError(f"{trace} has no {MARK!r}")
    return found, *mark, on_gpu


def _on_gpu(plane: Any) -> Iterator[Span]:
    """What ran on a GPU, by the operation that launched it."""
    names = {number: metadata.name for number, metadata in plane.stat_metadata.items()}
    for line in plane.lines:
        for event in line.events:
            begin = line.timestamp_ns * 1000 + event.offset_ps
            for stat in event.stats:
                if names[stat.metadata_id] == "tf_op":
                    part = part_of(stat.str_value or names.get(stat.ref_value, ""))
                    yield Span(begin, begin + event.duration_ps, part or "other")


def _innermost(events: list[Span]) -> Iterator[Span]:
    """A thread's time without overlaps: where operations nest, it is the inner one's."""
    open_: list[Span] = []
    now = 0
    for event in sorted(events, key=lambda span: (span.begin, -span.end)):
        while open_ and open_[-1].end <= event.begin:
            outer = open_.pop()
            yield Span(now, outer.end, outer.part)
            now = outer.end
        if open_:
            yield Span(now, event.begin, open_[-1].part)
        now = event.begin
        open_.append(event)
    while open_:
        outer = open_.pop()
        yield Span(now, max(now, outer.end), outer.part)
        now = max(now, outer.end)
