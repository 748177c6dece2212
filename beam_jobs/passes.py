"""Passes of the job: a pass is one Beam pipeline that distributes units of work and joins the results.

Results are typed elements of the pipeline; joined, they reach the submitter as one file, since a pipeline returns
nothing. A UserError in a worker becomes a dead letter: if raised, runners would wrap it in pages of traceback.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import apache_beam as beam
import grpc
from apache_beam.metrics import Metrics, MetricsFilter  # type: ignore[attr-defined]

from afm_ctr.errors import RunError, UserError, find_user_error, in_graph
from afm_ctr.process_setup import share_memory
from beam_jobs import files
from beam_jobs.output import Output
from beam_jobs.results import Found, Join
from beam_jobs.runners import WORKER_LOST, Engine
from beam_jobs.sources import Chunk, Unit

Progress = Callable[[str, int, int], None]
NAMESPACE = "afm_ctr"
_FAILED = "failed"
_WORKER_EXIT = "Worker subprocess exited"  # Beam's message

F = TypeVar("F", bound=Found[Any])
R = TypeVar("R")
F_co = TypeVar("F_co", bound=Found[Any], covariant=True)


class Task(Protocol[F_co]):
    """The work of a pass. Picklable: Beam sends it to the workers."""

    @property
    def finds(self) -> type[F_co]:
        """The type of its results."""

    def setup(self) -> None:
        """Called once per worker, before its first unit."""

    def run(self, unit: Sequence[Chunk]) -> Iterator[F_co]:
        """Process one unit: yields a result for each of its chunks."""


def work(task: Task[F], unit: bytes) -> Iterator[F]:
    """Run a task on a packed unit and update Beam's counters."""
    for found in task.run(Unit.from_bytes(unit).chunks):
        for chunk in found.chunks:
            for name, count in chunk.counters.items():
                Metrics.counter(NAMESPACE, name).inc(count)
        yield found


@contextmanager
def marked() -> Iterator[None]:
    """Mark the texts of our errors so that they can be recognised: runners pass on only the text."""
    try:
        yield
    except (UserError, RunError) as error:
        raise type(error)(in_graph(str(error))) from None


class Step(beam.DoFn):
    """A DoFn that reads or writes files."""

    def setup(self) -> None:
        share_memory()
        files.share_client()


@beam.typehints.with_output_types(bytes)
class ReadUnits(Step):
    """Reads the units from a file: inside the pipeline, those of a large input would exceed runners' limits."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, _: bytes) -> Iterator[bytes]:
        with marked(), whole(self._path):
            for unit in files.items(self._path):
                Unit.from_bytes(unit)
                yield unit


@beam.typehints.with_input_types(bytes)
class Work(Step, Generic[F]):
    """Runs a task on units. A UserError or RunError becomes a dead letter and ends the pass.

    Args:
        folder: for dead letters, and for an empty file per finished chunk, from which progress is computed.
    """

    def __init__(self, task: Task[F], folder: str) -> None:
        self._task = task
        self._folder = folder

    def setup(self) -> None:
        super().setup()
        with marked():
            self._task.setup()

    def process(self, unit: bytes) -> Iterator[Any]:
        if files.exists(files.join(self._folder, _FAILED)):
            return
        try:
            for found in work(self._task, unit):
                for chunk in found.chunks:
                    mark = f"{chunk.number:08d}-{chunk.rows}"
                    files.write(files.join(self._folder, mark), b"", durable=False)
                yield found
        except (UserError, RunError) as error:
            yield beam.pvalue.TaggedOutput(_FAILED, (_FAILED, str(error).encode()))

    def default_type_hints(self) -> Any:
        return super().default_type_hints().with_output_types(self._task.finds)  # type: ignore[no-untyped-call]


@beam.typehints.with_input_types(tuple[str, bytes])
class Write(Step):
    """Writes files, given as name and content, into a folder. A failed write becomes a dead letter.

    Args:
        letters: the folder for dead letters, which are small enough for a full disk. If raised, Beam would print the
            error with its traceback.
    """

    def __init__(self, folder: str, letters: str) -> None:
        self._folder = folder
        self._letters = letters

    def process(self, named: tuple[str, bytes]) -> None:
        try:
            files.write(files.join(self._folder, named[0]), named[1], durable=False)
        except UserError as error:
            with marked():
                files.write(files.join(self._letters, _FAILED), str(error).encode(), durable=False)


@dataclass
class Passes:
    """Runs the passes of one job."""

    engine: Engine
    output: Output
    progress: Progress | None = None  # called with (stage, rows done, rows in all; 0: not known)
    metrics: dict[str, int] = field(default_factory=dict)  # Beam's counters of all passes, if the runner reports them

    def run(
        self, stage: str, task: Task[F], units: Sequence[Sequence[Chunk]], more: Callable[[Any], None] | None = None
    ) -> F:
        """Run a task over all units.

        Args:
            more: adds further steps on the PCollection of results.

        Returns:
            The joined results of all chunks.

        Raises:
            UserError: a worker found a mistake of the user.
            RuntimeError: a chunk is missing, or the result was not written by a worker of this run.
        """
        folder, result = self.output.work(stage), f"{stage}-found"
        listed = self.output.work(f"{stage}-units")
        files.write(listed, files.joined([Unit(tuple(unit)).to_bytes() for unit in units]), durable=False)
        rows = sum(chunk.rows for unit in units for chunk in unit)
        with _watch(stage, folder, rows, self.progress):
            pipeline = self.engine.pipeline()
            done = (
                pipeline
                | f"{stage}: start" >> beam.Impulse()
                | f"{stage}: units" >> beam.ParDo(ReadUnits(listed))
                | f"{stage}: to workers" >> beam.Reshuffle()
                | stage >> beam.ParDo(Work(task, folder)).with_outputs(_FAILED, main="found")
            )
            _ = done[_FAILED] | f"{stage}: dead letters" >> beam.ParDo(Write(folder, folder))
            _ = (
                done.found
                | f"{stage}: together" >> beam.CombineGlobally(Join(task.finds)).without_defaults()
                | f"{stage}: result" >> beam.Map(lambda found: (result, found)).with_output_types(tuple[str, bytes])
                | f"{stage}: hand over" >> beam.ParDo(Write(self.output.work(""), folder))
            )
            if more is not None:
                more(done.found)
            self._run(stage, pipeline)
        if files.exists(failed := files.join(folder, _FAILED)):
            raise UserError(files.read(failed).decode())
        path = self.output.work(result)
        return _complete(stage, units, read(path, task.finds.from_bytes) if files.exists(path) else None)

    def run_here(self, stage: str, task: Task[F], units: Sequence[Sequence[Chunk]]) -> F:
        """Like :meth:`run`, but in this process without a pipeline, one unit after the other."""
        if self.progress is not None:
            self.progress(stage, 0, sum(chunk.rows for unit in units for chunk in unit))
        found: F | None = None
        task.setup()
        for unit in units:
            for part in task.run(unit):
                for chunk in part.chunks:
                    self._count(chunk.counters)
                if found is None:
                    found = part
                else:
                    found.add(part)
        return _complete(stage, units, found)

    def _run(self, stage: str, pipeline: beam.Pipeline) -> None:
        try:
            with quiet_threads():
                outcome = pipeline.run()
                outcome.wait_until_finish()
        except Exception as error:
            found = find_user_error(error)
            if found is not None:
                raise UserError(re.sub(r"\s*\[while running .*", "", str(found))) from error
            if self.engine.in_process and str(error) == WORKER_LOST:
                raise RunError(
                    f"a worker process was lost in the pass {stage!r}, perhaps killed for lack of memory; nothing is "
                    "published: prepare again, with fewer workers if memory was short"
                ) from error
            if self.engine.in_process or "Traceback" in str(error):
                raise
            # The runner itself failed; its Java traceback is pages long.
            raise RunError(
                f"the runner ended in the pass {stage!r}: {_first_line(error)}; its logs say more, and nothing is "
                "published: run prepare again"
            ) from error
        for counter in _counters(outcome):
            self._count({counter.key.metric.name: counter.result})

    def _count(self, counters: Mapping[str, int]) -> None:
        for name, count in counters.items():
            self.metrics[name] = self.metrics.get(name, 0) + count


def _complete(stage: str, units: Sequence[Sequence[Chunk]], found: F | None) -> F:
    """``found``, after checking that no chunk is missing."""
    there = set() if found is None else {chunk.number for chunk in found.chunks}
    if missing := sorted({chunk.number for unit in units for chunk in unit} - there):
        raise RuntimeError(f"{stage}: the runner lost {len(missing)} pieces of work, the first is {missing[0]}")
    assert found is not None
    return found


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Silence Beam's watcher threads about a lost job server or worker, which the main thread reports."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        lost = isinstance(failed.exc_value, grpc.RpcError) or str(failed.exc_value).startswith(_WORKER_EXIT)
        if not lost:
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _first_line(error: Exception) -> str:
    details = getattr(error, "details", None)  # of a gRPC call
    lines = str((details() if callable(details) else None) or error or repr(error)).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _counters(outcome: Any) -> list[Any]:
    try:
        return list(outcome.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"])
    except (NotImplementedError, AttributeError, KeyError):  # a runner without metrics
        return []


@contextmanager
def whole(path: str) -> Iterator[None]:
    """Parse a file written by this run inside this block.

    Raises:
        RunError: the content does not parse, so another process has written there.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RunError(
            f"{path} is not what this run wrote ({error}): somebody else writes below --output; prepare again, into "
            "a folder that only you may write to"
        ) from error


def read(path: str, make: Callable[[bytes], R]) -> R:
    """Read and parse a file of this run. Raises RunError if another process has written it."""
    content = files.read(path)
    with whole(path):
        return make(content)


@contextmanager
def _watch(stage: str, folder: str, total: int, progress: Progress | None) -> Iterator[None]:
    """Report the rows of finished chunks at intervals until the block ends."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def look() -> None:
        done = dict(name.split("-") for name in files.names(folder) if name != _FAILED)
        progress(stage, sum(map(int, done.values())), total)

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
