"""The counting pass, and the analysis: what vocabularies and statistics a schema gets, by the train split only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afm_ctr.analysis import Analyzer, ChunkAnalysis
from afm_ctr.io.packed import pack, unpack
from afm_ctr.schema import Analysis
from afm_ctr.schema.analysis_results import NumberPart
from beam_jobs import files
from beam_jobs.output import Output
from beam_jobs.passes import AnyPasses, Done
from beam_jobs.rejects import ChunkRejects, reject_file
from beam_jobs.rows import RowReader
from beam_jobs.sources import Chunk, ChunkTask, LogFile, count
from beam_jobs.splits import NO_SPLIT, SPLITS
from beam_jobs.vocabularies import merged, packed, parts_for


@dataclass
class Counting(ChunkTask):
    """The counting pass: data lines of every piece. See :func:`beam_jobs.sources.count`."""

    def setup(self) -> None:
        """Nothing to prepare."""

    def run(self, unit: Sequence[Chunk]) -> Iterator[Done]:
        for piece in unit:
            counted = count(piece)
            lines = counted.lines + counted.broken
            yield Done(piece.number, b"%d %d" % (counted.lines, counted.broken), {"lines": lines})


@dataclass
class Analysing(ChunkTask):
    """The analysis pass: of every chunk its train rows, the facts of its numbers, and the size of its counts' file.

    Attributes:
        counts: the folder for the counts of vocabulary values, see :mod:`beam_jobs.vocabularies`.
        parts: into how many parts they are divided.
        rejects: the folder for rejected lines; the conversion, if it comes to that, replaces its files.
        rejects_kept: how many of each reason are kept.
    """

    reader: RowReader
    counts: str
    parts: int
    rejects: str
    rejects_kept: int

    @classmethod
    def of(cls, reader: RowReader, logs: Sequence[LogFile], output: Output, rejects_kept: int) -> Analysing:
        """The pass of a job over these files."""
        parts = parts_for(sum(log.size for log in logs))
        return cls(reader, output.work("counts"), parts, output.work("rejects"), rejects_kept)

    def setup(self) -> None:
        """Load what the rows are read with."""
        self.reader.setup()

    def run(self, unit: Sequence[Chunk]) -> Iterator[Done]:
        for number, batches in self.reader.read(unit):
            analyzer = Analyzer(self.reader.spec, number)
            rejects = ChunkRejects(self.rejects_kept)
            rows = others = 0
            for batch in batches:
                rejects.add(batch.parsed.rejects)
                others += int((batch.codes != NO_SPLIT).sum()) + batch.sampled_out
                train = batch.codes == SPLITS.index("train")
                if train.any():
                    analyzer.add({name: cells[train] for name, cells in batch.parsed.columns.items()}, rows)
                    rows += int(train.sum())
            found = analyzer.partial()
            content = packed(found.counts, self.parts) if found.counts else b""
            if content:
                files.write(_counts_file(self.counts, number), content, durable=False)
            if lines := rejects.lines():
                files.write(files.join(self.rejects, reject_file(number)), lines, durable=False)
            sums = [rows, others - rows, len(content), rejects.counts]
            yield Done(number, _packed(sums, found.numbers), {"analysed_rows": rows})


def _packed(sums: Sequence[Any], numbers: Mapping[str, NumberPart]) -> bytes:
    moments = {name: part.moments for name, part in numbers.items()}
    return pack([*sums, moments], [array for part in numbers.values() for array in (part.keys, part.sample)])


def _unpacked(content: bytes) -> tuple[int, int, int, dict[str, int], ChunkAnalysis]:
    """Of a chunk its train rows, other rows, bytes of its counts' file, rejects, and the facts of its numbers."""
    (rows, others, size, rejects, moments), arrays = unpack(content)
    numbers = {
        name: NumberPart(tuple(map(tuple, found)), arrays[2 * at], arrays[2 * at + 1])
        for at, (name, found) in enumerate(moments.items())
    }
    return rows, others, size, rejects, ChunkAnalysis({}, numbers)


def _counts_file(folder: str, chunk: int) -> str:
    return files.join(folder, f"{chunk:08d}")


@dataclass(frozen=True)
class Analysed:
    """What the analysis pass says of all chunks.

    Attributes:
        analysis: what the train split says.
        train_rows: its rows.
        other_rows: good rows that are not among them: of other splits, or thinned out.
        rejects: of each chunk the name of its file of rejects and their counts by reason.
    """

    analysis: Analysis
    train_rows: int
    other_rows: int
    rejects: list[tuple[str, dict[str, int]]]


def analyse(task: Analysing, work: Sequence[Sequence[Chunk]], passes: AnyPasses) -> Analysed:
    """Run the analysis pass."""
    train_rows, other_rows, size, paths = 0, 0, 0, list[str]()
    rejects: list[tuple[str, dict[str, int]]] = []

    def numbers() -> Iterator[ChunkAnalysis]:
        nonlocal train_rows, other_rows, size
        for number, (rows, others, written, reasons, part) in passes.run("analyse", task, work, _unpacked):
            train_rows += rows
            other_rows += others
            rejects.append((reject_file(number), reasons))
            size += written
            if written:
                paths.append(_counts_file(task.counts, number))
            yield part

    facts = Analysis.merge(numbers()).numbers
    counts = merged(passes, paths, size, task.parts, train_rows, task.reader.spec.vocabulary_spaces)
    return Analysed(Analysis(counts, facts), train_rows, other_rows, rejects)
