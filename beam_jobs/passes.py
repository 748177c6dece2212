"""A pass of the job: one Beam pipeline that gives every unit of work to some worker and collects a small result each.

Results travel through files beside the output, one for each chunk, written aside and renamed. So the job knows from
the files, on any runner, what has been done; a chunk whose result is missing was lost, and the job says so. The
user's mistake that a worker meets travels in the same way: raised, every runner would wrap it in pages of traceback.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.metrics import Metrics

from afm_ctr.errors import UserError, find_user_error, in_graph
from beam_jobs import files
from beam_jobs.runners import Engine
from beam_jobs.sources import Chunk

Progress = Callable[[str, int, int], None]
_FAILED = "failed"
_AT_ONCE = 16  # results read side by side


@dataclass
class Done:
    """The result of one chunk, and what it adds to the job's Beam counters."""

    number: int
    result: bytes
    counters: dict[str, int] = field(default_factory=dict)


class Task(Protocol):
    """The work of a pass; pickled to the workers."""

    def setup(self) -> None:
        """Once a worker, before its first unit."""

    def run(self, unit: Sequence[Chunk]) -> Iterator[Done]:
        """The work of one unit: a result for each of its chunks."""


class WorkFn(beam.DoFn):
    """Runs a task on units and files the results."""

    def __init__(self, task: Task, folder: str) -> None:
        self._task = task
        self._folder = folder

    def setup(self) -> None:
        self._task.setup()

    def process(self, unit: list[Chunk]) -> Iterator[int]:
        failed = files.join(self._folder, _FAILED)
        if files.exists(failed):
            return
        try:
            for done in self._task.run(unit):
                files.write(files.join(self._folder, _name(done.number)), done.result)
                for name, count in done.counters.items():
                    Metrics.counter("afm_ctr", name).inc(count)
                yield done.number
        except UserError as error:
            try:
                files.write(failed, str(error).encode())
            except UserError:
                # Runners pass on the text of an error and not its class: mark it, so that it is known again.
                raise RuntimeError(in_graph(str(error))) from error


def _name(number: int) -> str:
    return f"{number:08d}"


def run_pass(
    stage: str,
    task: Task,
    units: Sequence[list[Chunk]],
    folder: str,
    engine: Engine,
    progress: Progress | None = None,
    rows_of: Callable[[int, Callable[[], bytes]], int] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Run a task over all units.

    Args:
        stage: name of the pass, for Beam and for the progress.
        folder: where results are filed; must be empty.
        engine: how pipelines run.
        progress: called with (stage, rows done, rows in all; 0 = not known).
        rows_of: rows of a chunk, by its number and a function that reads its result; by default ``Chunk.rows``.

    Returns:
        The number and the result of every chunk, ascending, read as they are asked for: the results of an analysis
        may be as large as its input.

    Raises:
        UserError: a worker met the user's mistake.
        RuntimeError: a result is missing.
    """
    chunks = {chunk.number: chunk for unit in units for chunk in unit}
    if not chunks:
        return iter(())

    def rows(number: int, result: Callable[[], bytes]) -> int:
        return rows_of(number, result) if rows_of else chunks[number].rows

    total = sum(chunk.rows for chunk in chunks.values())
    with _watch(stage, folder, total, rows, progress):
        try:
            pipeline = engine.pipeline()
            _ = (
                pipeline
                | f"{stage}: units" >> beam.Create(list(units), reshuffle=True)
                | stage >> beam.ParDo(WorkFn(task, folder))
            )
            outcome = pipeline.run()
            outcome.wait_until_finish()
        except Exception as error:
            found = find_user_error(error)
            if found is not None:
                raise UserError(re.sub(r"\s*\[while running .*", "", str(found))) from error
            raise
    there = set(files.names(folder))
    if _FAILED in there:
        raise UserError(files.read(files.join(folder, _FAILED)).decode())
    missing = sorted(set(map(_name, chunks)) - there)
    if missing:
        chunk = chunks[int(missing[0])]
        raise RuntimeError(
            f"{stage}: the runner lost {len(missing)} of {len(chunks)} chunks, the first is number {chunk.number} "
            f"of {chunk.file.path}"
        )
    return _results(folder, sorted(chunks))


def _results(folder: str, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(numbers), _AT_ONCE):
        some = numbers[at : at + _AT_ONCE]
        paths = [files.join(folder, _name(number)) for number in some]
        yield from zip(some, files.in_threads(files.read, paths), strict=True)


@contextmanager
def _watch(stage: str, folder: str, total: int, rows: Any, progress: Progress | None) -> Iterator[None]:
    """Report the rows of filed results now and then, by whatever worker, until the block ends."""
    if progress is None:
        yield
        return
    seen: set[str] = set()
    done = 0
    ended = threading.Event()

    def look() -> None:
        nonlocal done
        for name in files.names(folder):
            if name not in seen and name != _FAILED:
                seen.add(name)
                done += rows(int(name), lambda name=name: files.read(files.join(folder, name)))
        progress(stage, done, total)

    def repeat() -> None:
        while not ended.wait(10.0 if files.is_remote(folder) else 0.5):
            look()

    progress(stage, 0, total)
    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    look()
