"""The counting pass, and the analysis: what vocabularies and statistics a schema gets, by the train split alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from afm_ctr.analysis import Analyzer, ChunkAnalysis
from afm_ctr.io.packed import pack, unpack
from afm_ctr.schema import Analysis
from afm_ctr.schema.facts import NumberPart
from beam_jobs import files
from beam_jobs.passes import Done, Passes
from beam_jobs.rows import RowReader
from beam_jobs.sources import Chunk, ChunkTask, count
from beam_jobs.splits import SPLITS
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
    """

    reader: RowReader
    counts: str
    parts: int

    def setup(self) -> None:
        """Load what the rows are read with."""
        self.reader.setup()

    def run(self, unit: Sequence[Chunk]) -> Iterator[Done]:
        for chunk, batches in self.reader.read(unit, self.reader.parser_of(unit[0])):
            analyzer = Analyzer(self.reader.spec, chunk.number)
            rows = 0
            for batch in batches:
                train = batch.codes == SPLITS.index("train")
                if train.any():
                    analyzer.add({name: cells[train] for name, cells in batch.parsed.columns.items()}, rows)
                    rows += int(train.sum())
            found = analyzer.partial()
            content = packed(found.counts, self.parts) if found.counts else b""
            if content:
                files.write(_counts_file(self.counts, chunk.number), content, durable=False)
            yield Done(chunk.number, _packed(rows, len(content), found.numbers), {"analysed_rows": rows})


def _packed(rows: int, size: int, numbers: Mapping[str, NumberPart]) -> bytes:
    moments = {name: part.moments for name, part in numbers.items()}
    return pack([rows, size, moments], [array for part in numbers.values() for array in (part.keys, part.sample)])


def _unpacked(content: bytes) -> tuple[int, int, ChunkAnalysis]:
    """Train rows of a chunk, bytes of its counts' file, and the facts of its numbers."""
    (rows, size, moments), arrays = unpack(content)
    numbers = {
        name: NumberPart(tuple(map(tuple, found)), arrays[2 * at], arrays[2 * at + 1])
        for at, (name, found) in enumerate(moments.items())
    }
    return rows, size, ChunkAnalysis({}, numbers)


def _counts_file(folder: str, chunk: int) -> str:
    return files.join(folder, f"{chunk:08d}")


def analyse(
    reader: RowReader, work: Sequence[Sequence[Chunk]], input_bytes: int, passes: Passes
) -> tuple[Analysis, int]:
    """What the train split says, in all; and how many rows it has."""
    task = Analysing(reader, passes.output.work("counts"), parts_for(input_bytes))
    train_rows, size, paths = 0, 0, list[str]()

    def numbers() -> Iterator[ChunkAnalysis]:
        nonlocal train_rows, size
        for number, (rows, written, part) in passes.run("analyse", task, work, _unpacked):
            train_rows += rows
            size += written
            if written:
                paths.append(_counts_file(task.counts, number))
            yield part

    facts = Analysis.merge(numbers()).numbers
    counts = merged(passes, paths, size, task.parts, train_rows, reader.spec.vocabulary_spaces)
    return Analysis(counts, facts), train_rows
