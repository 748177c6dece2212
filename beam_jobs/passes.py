"""A pass of the job: one Beam pipeline that gives every unit of work to some worker and collects a small result each.

Results travel through files next to the output, one for each chunk, renamed when complete. So the job knows from
the files, on any runner, what has been done; a chunk whose result is missing was lost, and the job says so. The
user's mistake that a worker meets travels in the same way: raised, every runner would wrap it in pages of traceback.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter  # type: ignore[attr-defined]

from afm_ctr.errors import RunError, UserError, find_user_error, in_graph
from afm_ctr.process_setup import share_memory
from beam_jobs import files
from beam_jobs.output import Output
from beam_jobs.runners import Engine

Progress = Callable[[str, int, int], None]
_NAMESPACE = "afm_ctr"
_FAILED = "failed"
_AT_ONCE = 16  # results read side by side


class Piece(Protocol):
    """What a unit of work consists of: a chunk of the input, mostly. ``rows`` is what it adds to the progress."""

    @property
    def number(self) -> int: ...
    @property
    def rows(self) -> int: ...


P = TypeVar("P", bound=Piece)
R = TypeVar("R")
P_contra = TypeVar("P_contra", bound=Piece, contravariant=True)


@dataclass
class Done:
    """The result of one piece, and what it adds to the job's Beam counters."""

    number: int
    result: bytes
    counters: dict[str, int] = field(default_factory=dict)


class Task(Protocol[P_contra]):
    """The work of a pass. Beam takes it to the workers; units and results go through files, which hold no pickles."""

    def setup(self) -> None:
        """Once a worker, before its first unit."""

    @staticmethod
    def pack(unit: Sequence[P_contra]) -> bytes:
        """A unit as the content of a file."""

    @staticmethod
    def unpack(content: bytes) -> Sequence[Any]:
        """The unit again."""

    def run(self, unit: Sequence[P_contra]) -> Iterator[Done]:
        """The work of one unit: a result for each of its pieces."""


class WorkFn(beam.DoFn):
    """Runs a task on units, which it gets by their numbers, and files the results.

    Args:
        units: the file that holds the units: in the pipeline itself those of a large input would be beyond what a
            runner takes.
        folder: for the results.
    """

    def __init__(self, task: Task[Any], units: str, folder: str) -> None:
        self._task = task
        self._units = units
        self._folder = folder

    def setup(self) -> None:
        share_memory()
        files.share_client()
        self._task.setup()

    def process(self, number: int) -> Iterator[int]:
        failed = files.join(self._folder, _FAILED)
        if files.exists(failed):
            return
        try:
            with whole(self._units):
                unit = self._task.unpack(files.item(self._units, number))
            yield from do(self._task, unit, self._folder)
        except (UserError, RunError) as error:
            try:
                files.write(failed, str(error).encode())
            except UserError:
                # Runners pass on the text of an error and not its class: mark it, so that it is known again.
                raise RuntimeError(in_graph(str(error))) from error


def do(task: Task[Any], unit: Sequence[Any], folder: str) -> Iterator[int]:
    """Do the work of a unit: file the result of each piece, count, and give the piece's number."""
    for done in task.run(unit):
        files.write(files.join(folder, _name(done.number)), done.result, durable=False)
        for name, count in done.counters.items():
            Metrics.counter(_NAMESPACE, name).inc(count)
        yield done.number


def _name(number: int) -> str:
    return f"{number:08d}"


@dataclass
class Passes:
    """Runs the passes of one job.

    Attributes:
        engine: how pipelines run.
        output: keeps the results.
        progress: called with (stage, rows done, rows in all; 0 = not known).
        metrics: Beam's counters of all passes so far, as far as the runner reports them.
    """

    engine: Engine
    output: Output
    progress: Progress | None = None
    metrics: dict[str, int] = field(default_factory=dict)

    def run(
        self,
        stage: str,
        task: Task[P],
        units: Sequence[Sequence[P]],
        read: Callable[[bytes], R],
        engine: Engine | None = None,
        rows_of: Callable[[int, Callable[[], R]], int] | None = None,
    ) -> Iterator[tuple[int, R]]:
        """Run a task over all units.

        Args:
            stage: name of the pass, for Beam and for the progress.
            read: makes something of a result's bytes; raises ValueError where they are no result.
            engine: another one than that of the job.
            rows_of: rows of a piece, by its number and a function that reads its result; by default ``Piece.rows``.

        Returns:
            The number and the result of every piece, ascending, read as they are asked for: the results of an
            analysis may be as large as its input.

        Raises:
            UserError: a worker met the user's mistake.
            RuntimeError: a result is missing, or is not what a worker of this run wrote.
        """
        pieces = {piece.number: piece for unit in units for piece in unit}
        if not pieces:
            return iter(())
        folder = self.output.work(stage)

        def rows(number: int, result: Callable[[], R]) -> int:
            return rows_of(number, result) if rows_of else known[number]

        known: Counter[int] = Counter()
        for unit in units:
            for piece in unit:
                known[piece.number] += piece.rows
        total = sum(known.values())
        with _watch(stage, folder, total, rows, read, self.progress):
            listed = self.output.work(f"{stage}-units")
            files.write(listed, files.joined([task.pack(unit) for unit in units]), durable=False)
            self._run(stage, WorkFn(task, listed, folder), len(units), engine or self.engine)
        return _filed(stage, folder, pieces, read)

    def _run(self, stage: str, work: WorkFn, units: int, engine: Engine) -> None:
        try:
            pipeline = engine.pipeline()
            _ = pipeline | f"{stage}: units" >> beam.Create(range(units), reshuffle=True) | stage >> beam.ParDo(work)
            outcome = pipeline.run()
            outcome.wait_until_finish()
        except Exception as error:
            found = find_user_error(error)
            if found is not None:
                raise UserError(re.sub(r"\s*\[while running .*", "", str(found))) from error
            if engine.in_process or "Traceback" in str(error):
                raise
            # The runner has lost what it cannot do without; Java's account of it is pages long.
            raise RunError(
                f"the runner ended in the pass {stage!r}: {_first_line(error)}; its logs say more, and nothing is "
                "published: run prepare again"
            ) from error
        for counter in _counters(outcome):
            name = counter.key.metric.name
            self.metrics[name] = self.metrics.get(name, 0) + counter.result


class AnyPasses(Protocol):
    """What the steps between the passes ask of :class:`Passes` and of :class:`Ran`."""

    @property
    def output(self) -> Output: ...

    def run(
        self, stage: str, task: Task[P], units: Sequence[Sequence[P]], read: Callable[[bytes], R]
    ) -> Iterator[tuple[int, R]]: ...


@dataclass
class Ran:
    """The passes of a job whose pipeline is somebody else's: it has run some, and their results are read here.

    Attributes:
        output: keeps the results.
        stages: the passes that have run; the work of others is done here.
    """

    output: Output
    stages: Sequence[str]

    def run(
        self, stage: str, task: Task[P], units: Sequence[Sequence[P]], read: Callable[[bytes], R]
    ) -> Iterator[tuple[int, R]]:
        """The results of a pass, as :meth:`Passes.run` gives them."""
        folder = self.output.work(stage)
        if stage not in self.stages:
            task.setup()
            for unit in units:
                for _ in do(task, unit, folder):
                    pass
        return _filed(stage, folder, {piece.number: piece for unit in units for piece in unit}, read)


def _filed(
    stage: str, folder: str, pieces: Mapping[int, Piece], read: Callable[[bytes], R]
) -> Iterator[tuple[int, R]]:
    """The results of all pieces, ascending. Raises as :meth:`Passes.run` does."""
    there = set(files.names(folder))
    if _FAILED in there:
        raise UserError(files.read(files.join(folder, _FAILED)).decode())
    missing = sorted(set(map(_name, pieces)) - there)
    if missing:
        raise RuntimeError(
            f"{stage}: the runner lost {len(missing)} of {len(pieces)} pieces of work, the first is "
            f"{pieces[int(missing[0])]}"
        )
    return _results(folder, sorted(pieces), read)


def _first_line(error: Exception) -> str:
    details = getattr(error, "details", None)  # of a call of gRPC
    lines = str((details() if callable(details) else None) or error or repr(error)).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _counters(outcome: Any) -> list[Any]:
    try:
        return list(outcome.metrics().query(MetricsFilter().with_namespace(_NAMESPACE))["counters"])
    except (NotImplementedError, AttributeError, KeyError):  # a runner without metrics
        return []


@contextmanager
def whole(path: str) -> Iterator[None]:
    """Something is made of a file that a process of this run wrote.

    Raises:
        RunError: for any ValueError or the like: somebody else has written there.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RunError(
            f"{path} is not what this run wrote ({error}): somebody else writes below --output; prepare again, into "
            "a folder that only you may write to"
        ) from error


def _read(path: str, read: Callable[[bytes], R]) -> R:
    content = files.read(path)
    with whole(path):
        return read(content)


def _results(folder: str, numbers: Sequence[int], read: Callable[[bytes], R]) -> Iterator[tuple[int, R]]:
    for at in range(0, len(numbers), _AT_ONCE):
        some = numbers[at : at + _AT_ONCE]
        paths = [files.join(folder, _name(number)) for number in some]
        yield from zip(some, files.in_threads(lambda path: _read(path, read), paths), strict=True)


@contextmanager
def _watch(stage: str, folder: str, total: int, rows: Any, read: Any, progress: Progress | None) -> Iterator[None]:
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
                done += rows(int(name), lambda name=name: _read(files.join(folder, name), read))
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
