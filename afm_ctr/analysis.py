"""The analysis pass: vocabularies and statistics of the train split, which resolve a schema.

An :class:`Analyzer` reads one chunk and returns its partial result; :meth:`Analysis.merge` combines them in any
order. Cells are parsed as in the transform, but without TensorFlow.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, compress

import numpy as np

from afm_ctr import native
from afm_ctr.schema import (
    CategoricalField,
    DeclaredIds,
    FeatureSchema,
    NumericField,
    TimeField,
    ValueEncoding,
    VocabularySpace,
    WordField,
    column_of,
    needs_statistics,
)
from afm_ctr.schema.analysis_results import SAMPLE_LIMIT, Analysis, ChunkAnalysis, NumberFacts, NumberPart
from afm_ctr.schema.moments import Moments
from afm_ctr.schema.raw_cells import RawCells
from afm_ctr.schema.times import form_of
from afm_ctr.splitmix import GOLDEN, finalise

__all__ = ["SAMPLE_LIMIT", "Analysis", "Analyzer", "ChunkAnalysis", "NumberFacts", "spec_needs_analysis"]

# The same as in afm_ctr/features/cell_ops.py.
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def spec_needs_analysis(spec: FeatureSchema) -> bool:
    """Whether a schema needs data: it has vocabularies, standardised numbers or quantile buckets."""
    return bool(spec.vocabulary_spaces) or any(needs_statistics(field) for field in spec.fields)


class Analyzer:
    """Reads the train rows of one chunk.

    Rows with an unreadable cell are skipped, since they become rejects. (A number that overflows float32 only after
    standardising is not detected here and counts.)

    Args:
        chunk: the chunk's number; with the row number it identifies a row.
    """

    def __init__(self, spec: FeatureSchema, chunk: int) -> None:
        self._spec = spec
        self._chunk = chunk
        self._counts: dict[str, Counter[bytes]] = {name: Counter() for name in spec.vocabulary_spaces}
        self._fitted = [f for f in spec.fields if isinstance(f, NumericField) and needs_statistics(f)]
        self._numbers: dict[str, list[np.ndarray]] = {f.name: [] for f in self._fitted}
        self._rows: dict[str, list[np.ndarray]] = {f.name: [] for f in self._fitted}

    def add(self, columns: Mapping[str, np.ndarray], first_row: int) -> None:
        """Add rows.

        Args:
            columns: bytes [n] for every raw column.
            first_row: number of the first row; the others follow it. Numbers must be unique within the chunk: they
                decide which rows are sampled when there are too many for exact quantiles.
        """
        cells = RawCells(self._spec, columns)
        good = np.ones(len(next(iter(columns.values()))), bool)
        numbers = self._parse_numbers(cells, good)
        self._check_ids(cells, good)
        self._check_times(cells, good)
        for field in self._spec.fields:
            name, space = self._spec.space_of(field)
            if isinstance(field, WordField) and isinstance(space, VocabularySpace):
                texts: Iterable[bytes] = compress(cells.words(field), good)
                if field.separator is not None:
                    texts = chain.from_iterable(cells.values(field, texts))
                self._counts[name].update(texts)
        rows = first_row + np.arange(len(good), dtype=np.int64)
        for field in self._fitted:
            values, ok = numbers[field.name]
            self._numbers[field.name].append(values[good & ok])
            self._rows[field.name].append(rows[good & ok])

    def partial(self) -> ChunkAnalysis:
        """The chunk's result: the same for the same rows, however they were divided among calls of :meth:`add`."""
        counts = {
            space: {v: n for v, n in values.items() if v and b"\n" not in v and b"\r" not in v}
            for space, values in self._counts.items()
        }
        return ChunkAnalysis(counts, {field.name: self._part(field) for field in self._fitted})

    def _part(self, field: NumericField) -> NumberPart:
        nothing = [np.zeros(0)]
        raw = np.concatenate(self._numbers[field.name] or nothing)
        keys = _hashed(self._chunk, np.concatenate(self._rows[field.name] or nothing).astype(np.uint64))
        fits_values = isinstance(field.encoding, ValueEncoding)
        encoded = raw
        if isinstance(field.encoding, ValueEncoding) and field.encoding.log:
            encoded = np.sign(raw) * np.log1p(np.abs(raw))
        if fits_values:  # mean and deviation need no sample
            keys, raw = keys[:0], raw[:0]
        return NumberPart.join([NumberPart(Moments.of(encoded), keys, raw)])

    def _parse_numbers(self, cells: RawCells, good: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Values and validity of every numeric field. Rows with a bad number are not good."""
        parsed: dict[tuple[str, tuple[bytes, ...]], tuple[np.ndarray, np.ndarray]] = {}
        found = {}
        for field in self._spec.fields:
            if isinstance(field, NumericField):
                source = column_of(field), self._spec.missing_of(field)
                if source not in parsed:
                    values, bad = _numbers(cells.of(*source))
                    parsed[source] = values, ~np.isnan(values)
                    good &= ~bad
                found[field.name] = parsed[source]
        return found

    def _check_ids(self, cells: RawCells, good: np.ndarray) -> None:
        """Rows with a bad declared id are not good."""
        for field in self._spec.fields:
            space = self._spec.space_of(field).space
            if isinstance(field, CategoricalField) and isinstance(space, DeclaredIds):
                texts = cells.words(field)
                distinct = list(set(texts))
                fine = {
                    text: all(_is_id(one, space.size) for one in values)
                    for text, values in zip(distinct, cells.values(field, distinct), strict=True)
                }
                good &= np.fromiter(map(fine.__getitem__, texts), bool, len(texts))

    def _check_times(self, cells: RawCells, good: np.ndarray) -> None:
        """Rows with a bad time are not good."""
        fields = [field for field in self._spec.fields if isinstance(field, TimeField)]
        for column, missing, form in dict.fromkeys(
            (column_of(field), self._spec.missing_of(field), field.format) for field in fields
        ):
            good &= ~_bad_times(cells.of(column, missing), form)


def _numbers(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Values, float64 [n], nan where missing, and a mask of the bad ones: see ``cell_ops.parse_numbers``."""
    if native.prepares():
        return native.parse_numbers(texts)
    known, bad = {}, set()
    for text in set(texts):
        stripped = text.strip()
        value = float(stripped) if _NUMBER.fullmatch(stripped) else math.nan
        known[text] = value if math.isfinite(value) else math.nan
        if stripped and not math.isfinite(value):
            bad.add(text)
    values = np.fromiter(map(known.__getitem__, texts), np.float64, len(texts))
    return values, np.fromiter(map(bad.__contains__, texts), bool, len(texts))


def _bad_times(texts: list[bytes], form: str) -> np.ndarray:
    """Which are bad: see ``times.parse_times``."""
    if native.prepares():
        return native.bad_times(texts, *form_of(form))
    from afm_ctr.features.times import parse_times

    return parse_times(texts, form).bad.numpy()


def _is_id(text: bytes, size: int) -> bool:
    """Whether a cell is empty or a declared id."""
    stripped = text.strip()
    return not stripped or (stripped.isdigit() and len(stripped) <= 18 and int(stripped) < size)


def _hashed(chunk: int, rows: np.ndarray) -> np.ndarray:
    """A row's position as 64 well-mixed bits, one to one. uint64 [n] to uint64 [n]."""
    with np.errstate(over="ignore"):
        return finalise(rows + np.uint64((chunk << 40) % 2**64) + np.uint64(GOLDEN))
