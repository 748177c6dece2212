"""The analysis pass: what the vocabularies and statistics of a schema are, by the train split alone."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afm_ctr.analysis import Analyzer
from beam_jobs.passes import Done
from beam_jobs.rows import RowReader
from beam_jobs.sources import Chunk, count
from beam_jobs.splits import SPLITS


@dataclass
class Counting:
    """The counting pass: data lines of every piece. See :func:`beam_jobs.sources.count`."""

    def setup(self) -> None:
        """Nothing to prepare."""

    def run(self, unit: Sequence[Chunk]) -> Iterator[Done]:
        for piece in unit:
            counted = count(piece)
            lines = counted.lines + counted.broken
            yield Done(piece.number, b"%d %d" % (counted.lines, counted.broken), {"lines": lines})


@dataclass
class Analysing:
    """The analysis pass: of every chunk its train rows and partial counts, to be merged by ``afm_ctr.analysis``."""

    reader: RowReader

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
            yield Done(chunk.number, pickle.dumps((rows, analyzer.partial())), {"analysed_rows": rows})
