"""The steps of :mod:`beam_jobs.transforms`: rows are written as JSON Lines to the attempt's folder, one chunk per
shard, and processed by the passes of :func:`beam_jobs.job.prepare` in the caller's pipeline.

Runners may repeat steps; each then writes the same files again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import apache_beam as beam

from afm_ctr.errors import UserError
from afm_ctr.rawlog import offers, written_twice
from afm_ctr.rawlog.jsonl import getter
from afm_ctr.rawlog.tokenizers import list_separators
from afm_ctr.records.manifest import MANIFEST_NAME, Manifest
from afm_ctr.schema import FeatureSchema, JsonlFormat, LibfmFormat
from beam_jobs import files
from beam_jobs.analyse import Analysing, Learned
from beam_jobs.convert import Conversion
from beam_jobs.job import PrepareSummary, publish
from beam_jobs.options import PrepareOptions
from beam_jobs.output import Output, load_schema
from beam_jobs.passes import Step, marked, work
from beam_jobs.plan import Plan, resolve_schema, schemas, side_tables
from beam_jobs.results import AnalysedChunks, ConvertedChunks, Found
from beam_jobs.rows import RowReader
from beam_jobs.sources import Chunk, LogFile, Unit
from beam_jobs.splits import parse_rule
from beam_jobs.vocabularies import ValueCounts
from serving.cell_text import BadList, NoCell, cell_text, shown

_ROWS = "rows"


@dataclass
class RowsPlan(Plan):
    """A job over rows of a pipeline."""

    read_as: FeatureSchema  # the schema, of JSON Lines
    shards: int  # number of shards of each split
    headers: dict[str, str]  # column names of the schema to their names in rows


def plan_rows(options: PrepareOptions, shards: int) -> RowsPlan:
    """Plan when the pipeline is constructed. Raises UserError: see :class:`beam_jobs.transforms.Prepare`."""
    if not isinstance(shards, int) or shards < 1:
        raise UserError(f"shards={shards!r} must be a whole number of at least 1")
    spec, resolved, parent = schemas(options)
    if isinstance(spec.format, LibfmFormat):
        raise UserError("a schema of libfm text has one column of pairs; rows have columns of their own")
    rule = parse_rule(options.split)
    if rule.kind not in ("all", "hash", "column"):
        raise UserError(f"--split {rule.text}: rows of a pipeline have no files and no order; use hash: or column:")
    longest = getattr(spec.format, "max_line_bytes", JsonlFormat(kind="jsonl").max_line_bytes)
    separator = getattr(spec.format, "list_separator", "|")
    columns = spec.format.columns
    layout = JsonlFormat(kind="jsonl", columns=columns, list_separator=separator, max_line_bytes=longest)
    read_as = spec.model_copy(update={"format": layout})
    if rule.kind == "hash" and rule.column == "key" and not offers(read_as, None, "key", _ROWS):
        rule = replace(rule, column=None)
    files.share_client()
    Output(options.output, options.overwrite)
    names = [*columns_read(spec, options.labelled), *([rule.column] if rule.column else [])]
    return RowsPlan(
        spec=spec,
        resolved=resolved,
        parent=parent,
        tables=side_tables(options.schema, spec),
        logs=[],
        rule=rule,
        chunk_bytes=options.chunk_bytes,
        chunk_lines=options.chunk_lines,
        read_as=read_as,
        shards=shards,
        headers=headers(spec, names),
    )


def columns_read(spec: FeatureSchema, labelled: bool) -> list[str]:
    """The log's columns that a schema reads, without repeats."""
    label = spec.label.column if spec.label is not None else None
    others = [label, spec.weight, spec.group] if labelled else []
    return [name for name in dict.fromkeys([*spec.log_columns, *others, spec.key]) if name]


def headers(spec: FeatureSchema, names: Iterable[str]) -> dict[str, str]:
    """Columns' names in the log, by the schema's names."""
    columns = () if isinstance(spec.format, LibfmFormat) else spec.format.columns
    given = {column.name: column.header or column.name for column in columns}
    return {name: given.get(name, name) for name in names}


class Begun(NamedTuple):
    """The output of this run, and its start in seconds since 1970."""

    output: Output
    started: float


@dataclass(frozen=True)
class State:
    """The job's state once all rows are staged."""

    begun: Begun
    chunks: list[Chunk]  # ascending
    reader: RowReader  # of their rows

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


@beam.typehints.with_output_types(Begun)
class Begin(Step):
    """Creates the attempt's folder. A repetition creates another; the last one published removes the others."""

    def __init__(self, options: PrepareOptions) -> None:
        self._folder, self._overwrite = options.output, options.overwrite

    def process(self, _: None) -> Iterator[Begun]:
        with marked():
            output = Output(self._folder, self._overwrite)
            with output.lock():
                output.begin()
        yield Begun(output, time.time())


@beam.typehints.with_output_types(tuple[int, bytes])
class ToLine(Step):
    """The shard and the line of a row: a JSON object of the cells to read."""

    def __init__(self, job: RowsPlan) -> None:
        self._shards = job.shards
        self._columns: list[tuple[str, Callable[[Any], Any], tuple[bytes, ...]]] = [
            (header, getter(header), list_separators(job.read_as, name)) for name, header in job.headers.items()
        ]

    def process(self, row: Any) -> Iterator[tuple[int, bytes]]:
        line = self._line(row)
        place = int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little") % self._shards
        yield place, line

    def _line(self, row: Any) -> bytes:
        # Invalid rows and cells are written as values that the parser rejects.
        content: Any
        try:
            for method in ("as_dict", "_asdict"):
                row = getattr(row, method)() if hasattr(row, method) else row
            content = f"no dict: {shown(row, 200)}"
            if isinstance(row, Mapping):
                content = {name: _cell(get(row), separators) for name, get, separators in self._columns}
        except Exception as error:  # raised by the row's class
            content = f"no dict: {shown(error, 200)}"
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _cell(value: Any, separators: tuple[bytes, ...]) -> Any:
    try:
        return cell_text(value, separators).decode("utf-8", "surrogateescape")
    except BadList:
        return [_cell(item, ()) for item in value]
    except NoCell as error:
        return {"no cell": str(error).encode("utf-8", "backslashreplace").decode()}


@beam.typehints.with_output_types(Chunk)
class Stage(Step):
    """Writes the lines of a shard in sorted order."""

    def __init__(self, job: RowsPlan) -> None:
        assert isinstance(job.read_as.format, JsonlFormat)
        self._longest = job.read_as.format.max_line_bytes

    def process(self, group: tuple[int, Iterable[bytes]], begun: Begun) -> Iterator[Chunk]:
        number, lines = group[0], sorted(group[1])
        called = f"{_ROWS}/part-{number:05d}.jsonl"
        path, content = begun.output.work(called), b"".join(line + b"\n" for line in lines)
        with marked():
            files.write(path, content, durable=False)
        log = LogFile(path, len(content), "plain", None, b"", self._longest, called=called)
        yield Chunk(number, log, 0, len(content), len(lines))


@beam.typehints.with_output_types(State)
class Planned(Step):
    """Numbers the rows of all chunks."""

    def __init__(self, job: RowsPlan, options: PrepareOptions) -> None:
        self._job, self._labelled = replace(job, resolved=None, parent=None), options.labelled

    def process(self, _: None, begun: Begun, staged: Iterable[Chunk]) -> Iterator[State]:
        job, chunks, rows = self._job, list[Chunk](), 0
        for chunk in sorted(staged, key=lambda chunk: chunk.number):
            chunks.append(replace(chunk, first_row=rows))
            rows += chunk.rows
        with marked():
            if not rows:
                raise UserError("no row: the PCollection is empty")
            tables = None if job.tables is None else begun.output.save_tables(job.tables)
        yield State(begun, chunks, RowReader(job.read_as, self._labelled, job.rule.with_rows(rows), tables))


def units_of(state: State) -> Iterator[bytes]:
    """Packed units of one chunk each."""
    for chunk in state.chunks:
        yield Unit((chunk,)).to_bytes()


class Work(Step):
    """Runs a pass on a chunk.

    Args:
        finds: the type of the pass's results.
    """

    def __init__(self, finds: type[Found[Any]]) -> None:
        self._finds = finds
        self._task: Any = None

    def process(self, unit: bytes, task: Any) -> Iterator[Found[Any]]:
        with marked():
            if task != self._task:
                task.setup()
                self._task = task
            yield from work(task, unit)

    def default_type_hints(self) -> Any:
        return super().default_type_hints().with_output_types(self._finds)  # type: ignore[no-untyped-call]


@beam.typehints.with_output_types(Analysing)
class AnalysisTask(beam.DoFn):
    """The analysis pass of a state."""

    def __init__(self, options: PrepareOptions) -> None:
        self._rejects_kept = options.max_rejects_kept

    def process(self, state: State) -> Iterator[Analysing]:
        logs = [chunk.file for chunk in state.chunks]
        yield Analysing.of(state.reader, logs, state.begun.output, self._rejects_kept)


@beam.typehints.with_output_types(Conversion)
class ConversionTask(Step):
    """The conversion pass of a state; resolves the schema from the results of the analysis."""

    def __init__(self, job: RowsPlan, options: PrepareOptions) -> None:
        self._job, self._options = job, replace(options, schema=job.spec)

    def process(self, state: State, found: bytes = b"", counts: Iterable[bytes] = ()) -> Iterator[Conversion]:
        output, options = state.begun.output, self._options
        with marked():
            learned = None
            if found:
                learned = Learned.of(AnalysedChunks.from_bytes(found), map(ValueCounts.from_bytes, counts))
            schema = resolve_schema(self._job, learned, output, options.max_rejects_kept)
            for line in written_twice(schema):
                options.warn(line)
            yield Conversion.of(options, state.reader, schema, output, state.rows)


@beam.typehints.with_output_types(PrepareSummary)
class Publish(Step):
    """Publishes the data set; the manifest is written last."""

    def __init__(self, job: RowsPlan, options: PrepareOptions, command: str) -> None:
        self._job = replace(job, resolved=None, parent=None)
        self._options, self._command = replace(options, schema=job.spec), command

    def process(self, state: State, task: Conversion, found: bytes) -> Iterator[PrepareSummary]:
        output, started = state.begun
        with marked(), output.lock():
            manifest = self._published(output)
            if manifest is None:
                schema = load_schema(task.schema)
                all_chunks = ConvertedChunks.from_bytes(found)
                manifest = publish(self._options, output, self._job, state.chunks, all_chunks, schema, self._command)
            schema = load_schema(output.folder)
        yield PrepareSummary.of(self._options.output, manifest, schema, time.time() - started)

    @staticmethod
    def _published(output: Output) -> Manifest | None:
        """The manifest, if this step is repeated after it succeeded."""
        path = files.join(output.folder, MANIFEST_NAME)
        found = Manifest.model_validate_json(files.read(path)) if files.exists(path) else None
        return found if found is not None and found.attempt == output.attempt_name else None
