"""Reads chunks as parsed rows with their splits, and samples negatives; for the analysis and the conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np

from afm_ctr import native
from afm_ctr.process_setup import load_tensorflow_without_keras
from afm_ctr.rawlog import LineParser, ParsedLines
from afm_ctr.rawlog.labels import LARGEST
from afm_ctr.rawlog.log import truncated
from afm_ctr.schema import FeatureSchema, NegativeSampling
from afm_ctr.sidetables import SideTables
from beam_jobs import files
from beam_jobs.sources import Chunk, Lines, read_chunks
from beam_jobs.splits import NO_SPLIT, SPLITS, SplitRule

BATCH_ROWS = 4096


def thin(
    sampling: NegativeSampling,
    parsed: ParsedLines,
    codes: np.ndarray,
    fingerprint: Callable[[Sequence[bytes]], np.ndarray],
) -> tuple[ParsedLines, np.ndarray, int]:
    """Sample the negatives of ``train``.

    A negative stays if and only if Fingerprint64 of its key, mod 2^32, is below ``rate`` · 2^32; the split rule by
    hash uses the high bits. With ``correct: weights`` the weights of those that stay are multiplied by 1/rate; a
    weight beyond float32 rejects the row.

    Args:
        codes: int8 [n], the index of each row's split in ``SPLITS``.
        fingerprint: byte strings to uint64 [n].

    Returns:
        The rows that stay, their codes, and the number sampled out (without rejects).
    """
    negatives = np.flatnonzero((codes == SPLITS.index("train")) & (parsed.labels == 0))
    low = fingerprint([parsed.keys[i] for i in negatives.tolist()]) & np.uint64(0xFFFFFFFF)
    # Both sides are exact in float64.
    out = low.astype(np.float64) >= sampling.rate * 2.0**32
    stay = np.ones(len(codes), bool)
    stay[negatives[out]] = False
    if sampling.correct == "weights":
        kept = negatives[~out]
        weights = parsed.weights.astype(np.float64)
        weights[kept] /= sampling.rate
        for row in np.flatnonzero(weights > LARGEST).tolist():
            detail = f"weight {weights[row]:.3g}, with 1/rate, is beyond float32"
            parsed.rejects.append(parsed.reject(row, "bad_weight", detail))
            stay[row] = False
            weights[row] = 0
        parsed.weights = weights.astype(np.float32)
    if stay.all():
        return parsed, codes, 0
    rows = np.flatnonzero(stay)
    return parsed.take(rows), codes[rows], int(out.sum())


def fingerprint64(texts: Sequence[bytes]) -> np.ndarray:
    """Fingerprint64 (farmhash) of byte strings: uint64 [n]; the function that makes hashed ids."""
    if not len(texts):
        return np.zeros(0, np.uint64)
    if native.prepares():
        return native.fingerprints(texts)
    load_tensorflow_without_keras()
    import tensorflow as tf

    return tf.fingerprint(tf.constant(list(texts), tf.string)).numpy().view("<u8")[:, 0]


@dataclass
class SplitRows:
    """Parsed lines of a chunk, or of one of its files, with the index in ``SPLITS`` of every row, int8 [n];
    ``NO_SPLIT`` rows have a bad split cell.

    ``sampled_out`` counts the negatives that were removed before any further check.
    """

    chunk: Chunk
    parser: LineParser
    parsed: ParsedLines
    codes: np.ndarray
    sampled_out: int = 0


@dataclass
class RowReader:
    """Reads chunks as rows. Picklable: it is sent to the workers."""

    spec: FeatureSchema
    labelled: bool  # whether to read labels
    rule: SplitRule
    tables: str | None = None  # the folder with the copies of the schema's side tables, if it has any

    def setup(self) -> None:
        """Load the side tables; called once per worker."""
        self._tables = None if self.tables is None else SideTables.load(self.tables, self.spec, files.read)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def parser_of(self, chunk: Chunk) -> LineParser:
        """A parser for the chunk's file."""
        extra = [self.rule.column] if self.rule.column else []
        return chunk.file.parser(self.spec, self.labelled, extra, self._tables)

    def read(
        self, unit: Sequence[Chunk], *, leave_columns: bool = False
    ) -> Iterator[tuple[int, Iterator[SplitRows]]]:
        """The number of each chunk with its rows in batches. To be consumed in order.

        Batches start at the beginning of a chunk or file, so that they are always the same: the last bit of a float
        may depend on an element's position in its array. ``leave_columns`` as in :meth:`LineParser.parse`.
        """
        rows = chain.from_iterable(
            self._file(list(same), leave_columns) for _, same in groupby(unit, key=lambda chunk: chunk.file.path)
        )
        for number, parts in groupby(rows, key=lambda part: part[0]):
            yield number, chain.from_iterable(batches for _, batches in parts)

    def _file(self, chunks: list[Chunk], leave_columns: bool) -> Iterator[tuple[int, Iterator[SplitRows]]]:
        parser = self.parser_of(chunks[0])
        for chunk, batches in read_chunks(chunks, BATCH_ROWS, parser.reads):
            yield chunk.number, self._rows(chunk, batches, parser, leave_columns)

    def _rows(
        self, chunk: Chunk, batches: Iterator[Lines], parser: LineParser, leave_columns: bool
    ) -> Iterator[SplitRows]:
        for batch in batches:
            parsed = parser.parse(batch.lines, chunk.file.source, batch.first_line, leave_columns=leave_columns)
            if batch.broken is not None:
                parsed.rejects.append(truncated(chunk.file.source, batch.first_line, batch.broken))
            rows = parsed.line_numbers - chunk.first_line + chunk.first_row
            codes = self.rule.assign(parsed, rows, chunk.file.split, self._by_index, fingerprint64)
            for row in np.flatnonzero(codes == NO_SPLIT).tolist():
                cell = parsed.extra[self.rule.column or ""][row].decode("utf-8")
                detail = f"column {self.rule.column!r}: {cell!r} is not train, valid or test"
                parsed.rejects.append(parsed.reject(row, "bad_split", detail))
            sampling = self.spec.negative_sampling
            if self.labelled and sampling is not None and sampling.apply == "here":
                yield SplitRows(chunk, parser, *thin(sampling, parsed, codes, fingerprint64))
            else:
                yield SplitRows(chunk, parser, parsed, codes)

    def _by_index(self, rows: np.ndarray) -> np.ndarray:
        """Read the codes of these rows (ascending) from the index rule's file."""
        if not len(rows):
            return np.zeros(0, np.int8)
        first = int(rows[0])
        with files.open_raw(self.rule.path or "") as stream:
            stream.seek(first)
            return np.frombuffer(stream.read(int(rows[-1]) - first + 1), np.int8)[rows - first]
