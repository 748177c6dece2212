"""Transforms for custom pipelines: rows from any source, as dicts, to data sets; and raw logs to rows.

A row is a dict (or a ``beam.Row``, or a NamedTuple) of the columns that the schema reads, by their names in the log:
``header`` if the schema gives one, else the column's name. Values may be of the types in docs/cells.md; an absent
column is missing. Other columns are ignored.

Rows are assigned to shards by a hash of their cells and sorted within each. So the same rows give the same bytes for
any source, order, runner and number of workers; ids, vocabularies and statistics are those that ``prepare`` computes
from a log of these rows. The bytes of the shards differ from those of ``prepare``, which keeps the order of lines.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics  # type: ignore[attr-defined]
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.transforms.window import GlobalWindows

from afm_ctr.errors import UserError
from afm_ctr.io.paths import refuse_text
from afm_ctr.rawlog import LineParser
from afm_ctr.rawlog.log import truncated
from afm_ctr.schema import FeatureSchema, ResolvedSchema, columns_of
from beam_jobs import staging
from beam_jobs.options import PrepareOptions
from beam_jobs.passes import NAMESPACE, marked
from beam_jobs.plan import learns, read_schema
from beam_jobs.results import AnalysedChunks, ConvertedChunks, Join
from beam_jobs.rows import BATCH_ROWS
from beam_jobs.sources import CHUNK_BYTES, Chunk, discover, pieces_to_count, read_piece
from beam_jobs.splits import input_files, parse_rule
from beam_jobs.vocabularies import Vocabularies

Schema = str | Path | FeatureSchema | ResolvedSchema
_NOT_HERE = {"inputs", "chunk_bytes", "chunk_lines", "beam_args", "progress", "load_tensorflow"}


class Prepare(beam.PTransform):  # type: ignore[type-arg]  # not generic at run time
    """Writes a bounded PCollection of rows as a prepared data set: vocabularies and statistics, shards, manifest.

    Invalid rows become rejects, as in a log; the manifest is written last, once all rows are accounted for:
    rows in = rows out + rejects + sampled out. One worker holds all rows of a shard in memory.

    Args:
        schema: as for :class:`PrepareOptions`; any format except libfm.
        output: folder of the data set, local or on a file system that Beam supports; every worker must reach it.
        split: ``hash:COLUMN:80/10/10`` or ``column:NAME``; None: all rows are ``train``.
        shards: number of shards of each split; empty ones are not written.
        **options: ``labelled``, ``parent_schema``, ``overwrite``, ``max_rejects_kept``, ``max_reject_share``,
            ``sample_rows``, ``compression`` and ``seed`` of :class:`PrepareOptions`.

    Returns:
        A PCollection of one :class:`PrepareSummary`.

    Raises:
        UserError: ``output`` holds a data set (without ``overwrite``), an invalid schema, split or option, or an
            unbounded PCollection. While the pipeline runs: no rows, or too many rejects; nothing is published.

    Example:
        >>> rows | Prepare("schema.yaml", "data", split="hash:user:80/10/10")
    """

    def __init__(
        self, schema: Schema, output: str, *, split: str | None = None, shards: int = 16, **options: Any
    ) -> None:
        super().__init__()
        if unknown := sorted(_NOT_HERE & options.keys()):
            raise UserError(f"{unknown[0]} is an option of prepare that does not apply to rows of a pipeline")
        self._options = PrepareOptions(schema=schema, inputs=(), output=output, split=split, **options)
        self._command = shlex.join(sys.argv)
        self._job = staging.plan_rows(self._options, shards)

    def expand(self, rows: Any) -> Any:
        if not rows.is_bounded:
            raise UserError(f"{self.label}: the rows are unbounded; a data set has an end: read a part of the source")
        job, options = self._job, self._options
        started = rows.pipeline | "Begin" >> beam.Create([None]) | beam.ParDo(staging.Begin(options))
        output = AsSingleton(started)
        chunks = (
            rows
            | "One window" >> beam.WindowInto(GlobalWindows())
            | "Lines" >> beam.ParDo(staging.ToLine(job))
            | "By shard" >> beam.GroupByKey()
            | "Stage" >> beam.ParDo(staging.Stage(job), output)
        )
        state = (
            rows.pipeline
            | "Once" >> beam.Create([None])
            | "Plan" >> beam.ParDo(staging.Planned(job, options), output, AsIter(chunks))
        )
        units = state | "Chunks" >> beam.FlatMap(staging.units_of)
        learned: list[Any] = []
        if learns(job):
            task = state | "Analysis" >> beam.ParDo(staging.AnalysisTask(options))
            analysed = (
                units
                | "To analyse" >> beam.Reshuffle()
                | "Analyse" >> beam.ParDo(staging.Work(AnalysedChunks), AsSingleton(task))
            )
            facts = analysed | "Analysed" >> beam.CombineGlobally(Join(AnalysedChunks)).without_defaults()
            counts = analysed | Vocabularies(job.spec.vocabulary_spaces) | beam.Values()
            learned = [AsSingleton(facts), AsIter(counts)]
        task = state | "Resolve" >> beam.ParDo(staging.ConversionTask(job, options), *learned)
        converted = (
            units
            | "To convert" >> beam.Reshuffle()
            | "Convert" >> beam.ParDo(staging.Work(ConvertedChunks), AsSingleton(task))
            | "Converted" >> beam.CombineGlobally(Join(ConvertedChunks)).without_defaults()
        )
        publish = staging.Publish(job, options, self._command)
        return state | "Publish" >> beam.ParDo(publish, AsSingleton(task), AsSingleton(converted))


class WriteRecords(Prepare):
    """:class:`Prepare` with a resolved schema: its ids are used, and nothing is learned from the rows.

    Args:
        schema: a resolved schema, its file, or the folder of a data set or model.
        output: as for :class:`Prepare`.
        **options: as for :class:`Prepare`.

    Returns:
        A PCollection of one :class:`PrepareSummary`.

    Raises:
        UserError: the schema is not resolved; and as in :class:`Prepare`.

    Example:
        >>> rows | WriteRecords("model", "data", split="column:part")
    """

    def __init__(self, schema: str | Path | ResolvedSchema, output: str, **options: Any) -> None:
        super().__init__(schema, output, **options)
        if self._job.resolved is None:
            raise UserError(
                "WriteRecords takes a resolved schema, such as the folder of a data set; Prepare learns one"
            )


class ReadRawLogs(beam.PTransform):  # type: ignore[type-arg]
    """Reads raw logs as rows: dicts of texts, as :class:`Prepare` takes them.

    A row has every column that the schema reads, including label, weight, group and key, by its name in the log; the
    value is the cell's text (docs/cells.md), empty if missing. The rows are unordered. Lines that are not rows are
    left out and counted by the counters ``rejects_<reason>``. Cells are not checked; :class:`Prepare` does that.

    Args:
        schema: as for :class:`PrepareOptions`; its side tables are not joined.
        inputs: paths and globs, as for ``prepare``; expanded when the pipeline is constructed.
        labelled: False: the logs have no label.
        rejects: also return the rejected lines.

    Returns:
        A PCollection of rows; with ``rejects`` a pair of it and a PCollection of rejected lines, each a dict of
        ``source``, ``reason``, ``detail`` and ``raw``.

    Raises:
        UserError: a glob without files, or a missing column. While the pipeline runs: a file has changed.

    Example:
        >>> rows = pipeline | ReadRawLogs("schema.yaml", ["logs/*.csv.gz"])
    """

    def __init__(
        self, schema: Schema, inputs: Iterable[str], *, labelled: bool = True, rejects: bool = False
    ) -> None:
        super().__init__()
        refuse_text(inputs)
        spec, _ = read_schema(schema)
        found, _ = input_files(parse_rule(None), list(inputs))
        self._fn = _Rows(spec, labelled)
        logs = discover(found, spec)
        for log in {log.header: log for log in logs}.values():
            self._fn.parser_of(Chunk(0, log, 0, 0))
        # Row groups are not needed here, and there may be thousands.
        self._pieces = [
            replace(piece, file=replace(piece.file, groups=())) for piece in pieces_to_count(logs, CHUNK_BYTES)
        ]
        self._rejects = rejects

    def expand(self, begin: Any) -> Any:
        found = (
            begin
            | "Pieces" >> beam.Create(self._pieces, reshuffle=True)
            | "Rows" >> beam.ParDo(self._fn).with_outputs("rejects", main="rows")
        )
        return (found.rows, found.rejects) if self._rejects else found.rows


@beam.typehints.with_output_types(dict[str, str])
class _Rows(beam.DoFn):
    """The rows of a piece of a log."""

    def __init__(self, spec: FeatureSchema, labelled: bool) -> None:
        self._labelled = labelled and spec.label is not None
        names = staging.columns_read(spec, self._labelled)
        self._headers = staging.headers(spec, names)
        # Cells are returned as in the log, without joins; drop fields that read side tables' columns.
        fields = tuple(field for field in spec.fields if not set(columns_of(field)) - set(names))
        self._spec = spec.model_copy(update={"side_tables": {}, "fields": fields})

    def parser_of(self, piece: Chunk) -> LineParser:
        """A parser for a piece's file. Raises UserError: a column is missing."""
        return piece.file.parser(self._spec, self._labelled, list(self._headers))

    def process(self, piece: Chunk) -> Iterator[Any]:
        with marked():
            yield from self._rows(piece)

    def _rows(self, piece: Chunk) -> Iterator[Any]:
        parser = self.parser_of(piece)
        for batch in read_piece(piece, BATCH_ROWS, parser.reads):
            parsed = parser.parse(batch.lines, piece.file.source, batch.first_line)
            texts = [[cell.decode() for cell in parsed.extra[name]] for name in self._headers]
            for row in zip(*texts, strict=True):
                yield dict(zip(self._headers.values(), row, strict=True))
            rejects = [*parsed.rejects]
            if batch.broken is not None:
                rejects.append(truncated(piece.file.source, batch.first_line, batch.broken))
            Metrics.counter(NAMESPACE, "rows_read").inc(len(parsed))
            for reject in rejects:
                Metrics.counter(NAMESPACE, f"rejects_{reject.reason}").inc()
                line = reject._asdict() | {"raw": reject.raw.decode("utf-8", "backslashreplace")}
                yield beam.pvalue.TaggedOutput(
                    "rejects", {name: line[name] for name in ("source", "reason", "detail", "raw")}
                )
