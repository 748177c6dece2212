"""Planning a job (schema, input files, chunks, split rule), and assembling its results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.rawlog import ColumnTypes, offers, word_columns
from afm_ctr.rawlog.side import read_side_tables, side_tables_beside
from afm_ctr.records import ShardInfo
from afm_ctr.records.manifest import CutInfo
from afm_ctr.schema import Analysis, FeatureSchema, ResolvedSchema, read_yaml, resolve, validate
from afm_ctr.sidetables import SideTables
from afm_ctr.statistics import DataStatistics
from beam_jobs import files
from beam_jobs.options import PrepareOptions
from beam_jobs.output import Output
from beam_jobs.passes import Passes
from beam_jobs.rejects import Share, reject_file, shares
from beam_jobs.results import ConvertedChunks
from beam_jobs.sources import Chunk, LogFile, discover, divide, pieces_to_count
from beam_jobs.splits import SplitRule, input_files, parse_rule, read_index

if TYPE_CHECKING:
    from beam_jobs.analyse import Learned


@dataclass
class Plan:
    """A job whose options and input files have been checked."""

    spec: FeatureSchema
    resolved: ResolvedSchema | None  # if given, its ids are used
    parent: ResolvedSchema | None  # if given, its ids stay and new ones are appended
    tables: SideTables | None  # the schema's side tables, if any
    logs: list[LogFile]  # the input files that are not empty, sorted by path
    rule: SplitRule  # :meth:`complete_rule` fills in what depends on the number of rows
    chunk_bytes: int
    chunk_lines: int

    def count(self, passes: Passes) -> list[Chunk]:
        """Run the counting pass: the chunks of the job with their rows."""
        from beam_jobs.analyse import Counting

        pieces = pieces_to_count(self.logs, self.chunk_bytes)
        little = passes.engine.is_little(sum(log.size for log in self.logs))
        found = (passes.run_here if little else passes.run)("count", Counting(), [[piece] for piece in pieces])
        return divide(pieces, found.in_order(), self.chunk_lines, self.chunk_bytes)

    def complete_rule(self, rows: int, output: Output) -> SplitRule:
        """The rule for this many rows; an index file becomes one byte per row, of which workers read their part."""
        if self.rule.kind != "index":
            return self.rule.with_rows(rows)
        codes: np.ndarray = read_index(self.rule, rows)
        path = output.work("index.bin")
        files.write(path, codes.tobytes())
        return replace(self.rule, path=path)


def plan(options: PrepareOptions, output: Output) -> Plan:
    """Read the schema and check the beginning of every input file.

    Raises:
        UserError: an invalid schema or split rule, a glob without files or with files of the output, or a missing
            column.
    """
    spec, resolved, parent = schemas(options)
    rule = parse_rule(options.split)
    found, split_of = input_files(rule, options.inputs, options.warn)
    output.refuse_own(path for path, _ in found)
    logs = [replace(log, split=split_of.get(log.source)) for log in discover(found, spec)]
    if not logs:
        raise UserError(f"no data row in {', '.join(path for path, _ in found[:5])}: the files are empty")
    if rule.kind == "hash" and rule.column == "key":
        named = all(offers(spec, log.header, "key", log.source) for log in logs)
        rule = rule if named else replace(rule, column=None)
    checked, types = set(), ColumnTypes(word_columns(spec) | {rule.column or ""}, resolved or parent)
    for log in logs:
        # Thousands of files may share a header: each header is checked once.
        if log.header not in checked:
            checked.add(log.header)
            parser = log.parser(spec, options.labelled, [rule.column] if rule.column else [])
            types.add(parser.types, log.source)
    tables = side_tables(options.schema, spec)
    return Plan(spec, resolved, parent, tables, logs, rule, options.chunk_bytes, options.chunk_lines)


def schemas(options: PrepareOptions) -> tuple[FeatureSchema, ResolvedSchema | None, ResolvedSchema | None]:
    """The schema of a job; the resolved schema, if one is given; the parent.

    Raises:
        UserError: an invalid schema, or a parent given with a resolved schema.
    """
    spec, resolved = read_schema(options.schema)
    parent = ResolvedSchema.load(Path(options.parent_schema)) if options.parent_schema is not None else None
    if parent is not None and resolved is not None:
        raise UserError(
            "a resolved schema is used as it is: give either a feature schema with its parent, or that only"
        )
    return spec, resolved, parent


def read_schema(given: str | Path | FeatureSchema | ResolvedSchema) -> tuple[FeatureSchema, ResolvedSchema | None]:
    """A schema, and the resolved schema if it is one."""
    if isinstance(given, FeatureSchema):
        return given, None
    if not isinstance(given, ResolvedSchema):
        path = Path(given)
        content = None if path.is_dir() else read_yaml(path)
        if not path.is_dir() and not (isinstance(content, dict) and "format_version" in content):
            return validate(FeatureSchema, content, path), None  # read only once: it may be a pipe
        given = ResolvedSchema.load(path)
    return given.spec, given


def side_tables(given: str | Path | FeatureSchema | ResolvedSchema, spec: FeatureSchema) -> SideTables | None:
    """The side tables of a schema, if it has any."""
    if isinstance(given, FeatureSchema):
        return read_side_tables(spec, ".", files.local_copies)
    if isinstance(given, ResolvedSchema):
        if spec.side_tables:
            raise UserError("a resolved schema with side tables: give the folder of its data set, which holds them")
        return None
    return side_tables_beside(given, spec, files.local_copies)


def learns(job: Plan) -> bool:
    """Whether the job has an analysis pass."""
    from afm_ctr.analysis import spec_needs_analysis

    return job.resolved is None and spec_needs_analysis(job.spec)


def resolve_schema(job: Plan, learned: Learned | None, output: Output, rejects_kept: int) -> ResolvedSchema:
    """The resolved schema: the given one, or the user's schema resolved.

    Args:
        learned: the result of the analysis, if the job :func:`learns`.

    Raises:
        UserError: the schema learns from ``train``, which has no rows.
    """
    if job.resolved is not None:
        return job.resolved
    if learned is None:
        return resolve(job.spec, Analysis.empty(), job.parent)
    if not learned.train_rows and job.parent is None:
        counts: Counter[str] = Counter()
        for _, reasons in learned.rejects:
            counts.update(reasons)
        problem = "no row is left" + _why(counts)
        if learned.other_rows:
            rule = f"--split {job.rule.text}: " if job.rule.text else ""
            problem = (
                f"{rule}the schema learns from the split 'train', which has no row{_why(counts)}; to prepare other "
                "splits alone, give as --schema the resolved schema of the data set that holds train"
            )
        raise UserError(problem + output.leave_rejects(shares(learned.rejects, rejects_kept)[0]))
    return resolve(job.spec, learned.analysis, job.parent)


def _why(rejects: Mapping[str, int]) -> str:
    """The counts of rejected lines in brackets; empty without rejects."""
    why = ", ".join(f"{reason}: {count}" for reason, count in sorted(rejects.items()))
    return f" (rejected lines: {why})" if why else ""


@dataclass
class Outcome:
    """The result of the conversion pass over all chunks."""

    shards: list[ShardInfo]  # by split and chunk
    rejects: dict[str, int]  # exact counts by reason
    kept: dict[str, int]  # number of rejects that the data set keeps, by reason
    shares: list[Share]  # their lines in the chunks' files
    sampled_out: int  # negatives that were sampled out
    cut: dict[str, CutInfo]  # values dropped from cells with more than ``max_values``, by field
    samples: list[dict[str, bytes]]  # the raw columns of a few rows
    statistics: DataStatistics  # of the split ``train``

    def problem(self, job: Plan, rows: int, most: float) -> str | None:
        """Why this must not be published: rejects beyond a share of ``most``, or an empty split; None if it may."""
        rejected = sum(self.rejects.values())
        why = ", ".join(f"{reason}: {count}" for reason, count in self.rejects.items())
        if not self.shards:
            return "no row is left" + _why(self.rejects)
        if rejected > most * rows:
            return (
                f"{rejected} of {rows} rows ({rejected / rows:.2%}) are rejected, more than --max-reject-share "
                f"{most:g} allows: {why}; fix the schema or the logs, or allow more"
                + "; label.positive and label.negative name the texts of labels"
                * ("bad_label" in self.rejects)
            )
        there = {shard.split for shard in self.shards}
        for name in job.rule.asked:
            if name not in there and job.rule.kind not in ("column", "index"):
                return f"--split {job.rule.text}: the split {name!r} comes out empty{_why(self.rejects)}"
        return None


def assemble(
    chunks: Sequence[Chunk], found: ConvertedChunks, schema: ResolvedSchema, rejects_kept: int, sample_rows: int
) -> Outcome:
    """Assemble the results of the conversion of all chunks.

    Args:
        rejects_kept: maximum number of rejects to keep per reason.

    Raises:
        RuntimeError: a chunk's number of rows is not the counted one.
    """
    shards: list[ShardInfo] = []
    rejects: Counter[str] = Counter()
    cut: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    rows_of: Counter[int] = Counter()
    for chunk in chunks:
        rows_of[chunk.number] += chunk.rows
    converted = found.in_order()
    for done in converted:
        if done.rows != rows_of[done.number]:
            path = next(chunk.file.path for chunk in chunks if chunk.number == done.number)
            raise RuntimeError(
                f"rows were lost: {rows_of[done.number]} in, {done.rows_out} out, {sum(done.rejects.values())} "
                f"rejected, {done.sampled_out} sampled out, in chunk {done.number} of {path}"
            )
        shards += [ShardInfo(**shard) for shard in done.shards]
        for name, (values, rows) in done.cut.items():
            cut[name] = [cut[name][0] + values, cut[name][1] + rows]
        rejects.update(done.rejects)
    order = {"train": 0, "valid": 1, "test": 2}
    shards.sort(key=lambda shard: order[shard.split])  # stable: by chunk within a split
    taken, kept = shares([(reject_file(done.number), done.rejects) for done in converted], rejects_kept)
    samples = [{name: cell.encode() for name, cell in row.items()} for done in converted for row in done.samples]
    return Outcome(
        shards=shards,
        rejects=dict(sorted(rejects.items())),
        kept=kept,
        shares=taken,
        sampled_out=sum(done.sampled_out for done in converted),
        cut={name: CutInfo(values=values, rows=rows) for name, (values, rows) in sorted(cut.items()) if rows},
        samples=samples[:sample_rows],
        statistics=found.statistics.finish(schema, "train"),
    )
