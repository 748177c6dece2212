"""``prepare``: raw logs to a prepared data set.

Three passes over fixed chunks of the input: *count* (so that every chunk knows its first row), *analyse* (only if the
schema learns vocabularies or statistics, from the train split only), *convert* (one shard per split and chunk). The
bytes of the shards depend on the input, the schema, the split rule, the seed and the chunk sizes, but not on the
runner, its workers or its bundles. No row goes through a Beam shuffle, so memory stays flat.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from afm_ctr import native
from afm_ctr.errors import UserError
from afm_ctr.installed import versions_of
from afm_ctr.rawlog import written_twice
from afm_ctr.rawlog.layout import has_header
from afm_ctr.records.manifest import Manifest, TableInfo
from afm_ctr.schema import ResolvedSchema
from beam_jobs.options import PrepareOptions
from beam_jobs.output import Output
from beam_jobs.passes import Passes
from beam_jobs.plan import Plan, assemble, learns, plan, resolve_schema
from beam_jobs.results import ConvertedChunks
from beam_jobs.rows import RowReader
from beam_jobs.runners import Engine
from beam_jobs.sources import Chunk, units

__all__ = ["PrepareOptions", "PrepareSummary", "prepare"]


@dataclass(frozen=True)
class PrepareSummary:
    """Result of a run.

    Attributes:
        rows_in: data lines of the input: ``rows_out`` + the sum of ``rejects`` + ``sampled_out``.
        rejects: rejected rows, by reason.
        rejects_kept: the number of them in the data set's rejects.
        sampled_out: negatives of ``train`` that were sampled out.
        cut: for each multi-valued field with cells of more than ``max_values`` values, the number of dropped
            ``values``, and of ``rows`` with such a cell.
        splits: ``rows`` and ``positives`` of each split, train first.
        bytes: size of all shards.
        metrics: Beam's counters of all passes as the runner reports them: ``rows`` and ``bytes`` written,
            ``rejects_<reason>``, and so on; empty if the runner reports none, and too high if it repeated work.
        seconds: wall time.
        num_slots: F.
    """

    output: str
    rows_in: int
    rows_out: int
    rejects: dict[str, int]
    rejects_kept: dict[str, int]
    sampled_out: int
    cut: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]
    seconds: float
    schema_id: str
    feature_size: int
    num_slots: int
    shards: int
    bytes: int
    files: int
    metrics: dict[str, int]

    @classmethod
    def of(
        cls,
        output: str,
        manifest: Manifest,
        schema: ResolvedSchema,
        seconds: float,
        files: int = 0,
        metrics: Mapping[str, int] | None = None,
    ) -> PrepareSummary:
        """Summarise a manifest."""
        splits = {name: {"rows": 0, "positives": 0} for name in manifest.splits}
        for shard in manifest.shards:
            splits[shard.split]["rows"] += shard.rows
            splits[shard.split]["positives"] += shard.positives
        return cls(
            output=output,
            rows_in=manifest.rows_in,
            rows_out=manifest.rows_out,
            rejects=manifest.rejects,
            rejects_kept=manifest.rejects_kept,
            sampled_out=manifest.sampled_out,
            cut={name: info.model_dump() for name, info in manifest.cut.items()},
            splits=splits,
            seconds=round(seconds, 3),
            schema_id=schema.id,
            feature_size=schema.feature_size,
            num_slots=schema.num_slots,
            shards=len(manifest.shards),
            bytes=sum(shard.bytes for shard in manifest.shards),
            files=files,
            metrics=dict(sorted((metrics or {}).items())),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(self.__dict__)


def prepare(options: PrepareOptions) -> PrepareSummary:
    """Run the job.

    Raises:
        UserError: a mistake of the user, or too many rejects; nothing is published.
        RuntimeError: rows were lost; nothing is published.
    """
    started = time.monotonic()
    engine = Engine(options.beam_args)
    output = Output(options.output, options.overwrite)
    job = plan(options, output)
    passes = Passes(engine.for_input(sum(log.size for log in job.logs)), output, options.progress)
    with output.lock():
        output.begin()
        try:
            manifest, schema = _run(options, passes, output, job)
        except BaseException:
            output.abandon()
            raise
    seconds = time.monotonic() - started
    return PrepareSummary.of(options.output, manifest, schema, seconds, len(job.logs), passes.metrics)


def _run(options: PrepareOptions, passes: Passes, output: Output, job: Plan) -> tuple[Manifest, ResolvedSchema]:
    from beam_jobs.convert import Conversion

    chunks = job.count(passes)
    rows = sum(chunk.rows for chunk in chunks)
    if not rows:
        why = "there is nothing below the header line" if has_header(job.spec) else "the files are empty"
        raise UserError(f"no data row in {', '.join(options.inputs) or options.split}: {why}")
    tables = None if job.tables is None else output.save_tables(job.tables)
    reader = RowReader(job.spec, options.labelled, job.complete_rule(rows, output), tables)
    work = units(chunks, passes.engine.workers)
    learned, loads = None, passes.engine.workers_are_threads and not native.prepares()
    if learns(job):
        from beam_jobs.analyse import Analysing, analyse

        if loads:
            options.load_tensorflow()
        learned = analyse(Analysing.of(reader, job.logs, output, options.max_rejects_kept), work, passes)
    schema = resolve_schema(job, learned, output, options.max_rejects_kept)
    for line in written_twice(schema):
        options.warn(line)
    if loads:
        options.load_tensorflow()
    conversion = Conversion.of(options, reader, schema, output, rows)
    found = passes.run("convert", conversion, work)
    return publish(options, output, job, chunks, found, schema, shlex.join(sys.argv)), schema


def publish(
    options: PrepareOptions,
    output: Output,
    job: Plan,
    chunks: Sequence[Chunk],
    found: ConvertedChunks,
    schema: ResolvedSchema,
    command: str,
) -> Manifest:
    """Publish the results of the conversion as the data set.

    Raises:
        UserError: too many rejects, or a split without rows.
        RuntimeError: rows were lost.
    """
    rows = sum(chunk.rows for chunk in chunks)
    converted = assemble(chunks, found, schema, options.max_rejects_kept, options.sample_rows)
    if problem := converted.problem(job, rows, options.max_reject_share):
        raise UserError(problem + output.leave_rejects(converted.shares))
    manifest = Manifest(
        attempt=output.attempt_name,
        schema_id=schema.id,
        shards=converted.shards,
        rows_in=rows,
        rows_out=sum(shard.rows for shard in converted.shards),
        rejects=converted.rejects,
        rejects_kept=converted.kept,
        side_tables=TableInfo.of(job.tables),
        sampled_out=converted.sampled_out,
        cut=converted.cut,
        split_rule=options.split,
        command=command,
        versions=versions_of("afm-ctr", "apache-beam", "tensorflow", "numpy"),
        labelled=options.labelled and job.spec.label is not None,
        statistics=converted.statistics,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    output.publish(manifest, schema, converted.samples, converted.shares, job.tables)
    return manifest
