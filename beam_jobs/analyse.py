"""The counting pass, and the analysis pass: a schema's vocabularies and statistics, from the train split only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from afm_ctr.analysis import Analyzer
from afm_ctr.schema import Analysis
from afm_ctr.schema.analysis_results import ChunkAnalysis
from beam_jobs import files, vocabularies
from beam_jobs.output import Output
from beam_jobs.passes import Passes, Write
from beam_jobs.rejects import ChunkRejects, reject_file
from beam_jobs.results import Analysed, AnalysedChunks, CountedPieces
from beam_jobs.rows import RowReader
from beam_jobs.sources import Chunk, LogFile, count
from beam_jobs.splits import NO_SPLIT, SPLITS
from beam_jobs.vocabularies import ValueCounts


class Counting:
    """The counting pass: counts the data lines of every piece. See :func:`beam_jobs.sources.count`."""

    finds = CountedPieces

    def setup(self) -> None:
        """Nothing to prepare."""

    def run(self, unit: Sequence[Chunk]) -> Iterator[CountedPieces]:
        for piece in unit:
            yield CountedPieces([count(piece)])


@dataclass
class Analysing:
    """The analysis pass: the train rows of every chunk, statistics of its numbers, and a file of its value counts."""

    reader: RowReader
    counts: str  # the folder for the counts of vocabulary values, see :mod:`beam_jobs.vocabularies`
    parts: int  # the number of parts they are divided into
    rejects: str  # the folder for rejected lines; the conversion pass overwrites its files
    rejects_kept: int  # maximum number of rejects to keep per reason

    finds = AnalysedChunks

    @classmethod
    def of(cls, reader: RowReader, logs: Sequence[LogFile], output: Output, rejects_kept: int) -> Analysing:
        """The pass of a job over these files."""
        parts = vocabularies.parts_for(sum(log.size for log in logs))
        return cls(reader, output.work("counts"), parts, output.work("rejects"), rejects_kept)

    def setup(self) -> None:
        """Load the side tables."""
        self.reader.setup()

    def run(self, unit: Sequence[Chunk]) -> Iterator[AnalysedChunks]:
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
            counts = None
            if found.counts:
                counts = files.join(self.counts, f"{number:08d}")
                parts = ValueCounts.from_counts(found.counts).divided(self.parts)
                files.write(counts, files.joined([part.to_bytes() for part in parts]), durable=False)
            if lines := rejects.lines():
                files.write(files.join(self.rejects, reject_file(number)), lines, durable=False)
            chunk = Analysed(number, rows, others - rows, dict(rejects.counts), counts, self.parts)
            yield AnalysedChunks([chunk], [ChunkAnalysis({}, found.numbers)])


@dataclass(frozen=True)
class Learned:
    """The result of the analysis pass over all chunks."""

    analysis: Analysis  # of the train split
    train_rows: int
    other_rows: int  # other good rows: of other splits, or sampled out
    # of each chunk, the name of its file of rejects and their counts by reason
    rejects: list[tuple[str, dict[str, int]]]

    @classmethod
    def of(cls, found: AnalysedChunks, counts: Iterable[ValueCounts]) -> Learned:
        """Combine the results of all chunks and the counts of all parts."""
        numbers = Analysis.merge(found.numbers).numbers
        return cls(
            Analysis(vocabularies.together(counts), numbers),
            sum(chunk.train_rows for chunk in found.chunks),
            sum(chunk.other_rows for chunk in found.chunks),
            [(reject_file(chunk.number), chunk.rejects) for chunk in found.in_order()],
        )


def analyse(task: Analysing, work: Sequence[Sequence[Chunk]], passes: Passes) -> Learned:
    """Run the analysis pass."""
    spaces, folder = task.reader.spec.vocabulary_spaces, passes.output.work("vocabularies")

    def more(found: Any) -> None:
        _ = (
            found
            | "vocabularies" >> vocabularies.Vocabularies(spaces)
            | "vocabularies: result" >> beam.MapTuple(lambda part, counts: (f"{part:08d}", counts))
            | "vocabularies: hand over" >> beam.ParDo(Write(folder, passes.output.work("analyse")))
        )

    found = passes.run("analyse", task, work, more=more if spaces else None)
    parts = task.parts if any(chunk.counts for chunk in found.chunks) else 0
    return Learned.of(found, vocabularies.read_parts(folder, parts))
