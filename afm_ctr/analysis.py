"""The analysis pass: vocabularies and statistics of the train split, which resolve a schema.

An :class:`Analyzer` reads one chunk and returns its partial result; :meth:`Analysis.merge` combines them in any
order. Cells are parsed as in the transform, but without TensorFlow, which only times need.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np

from afm_ctr import native
from afm_ctr.schema import (
    CROSS_SEPARATOR,
    CategoricalField,
    CrossField,
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
        cells = _Cells(self._spec, columns)
        numbers, good = self._parse_numbers(cells)
        good &= self._good_ids(cells) & self._good_times(cells)
        for field in self._spec.fields:
            name, space = self._spec.space_of(field)
            if isinstance(field, WordField) and isinstance(space, VocabularySpace):
                self._counts[name].update(cells.values(field, good))
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

    def _parse_numbers(self, cells: _Cells) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Values and validity of every numeric field, and a mask of the rows without a bad number."""
        good = np.ones(cells.rows, bool)
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
        return found, good

    def _good_ids(self, cells: _Cells) -> np.ndarray:
        """A mask of the rows without a bad declared id."""
        good = np.ones(cells.rows, bool)
        for field in self._spec.fields:
            space = self._spec.space_of(field).space
            if isinstance(field, CategoricalField) and isinstance(space, DeclaredIds):
                texts = cells.words(field)
                fine = {text: all(_is_id(one, space.size) for one in cells.split(field, text)) for text in set(texts)}
                good &= np.fromiter(map(fine.__getitem__, texts), bool, len(texts))
        return good

    def _good_times(self, cells: _Cells) -> np.ndarray:
        """A mask of the rows without a bad time."""
        good = np.ones(cells.rows, bool)
        fields = [field for field in self._spec.fields if isinstance(field, TimeField)]
        if fields:
            from afm_ctr.features.times import parse_times

            for column, missing, form in dict.fromkeys(
                (column_of(field), self._spec.missing_of(field), field.format) for field in fields
            ):
                good &= ~parse_times(cells.of(column, missing), form).bad.numpy()
        return good


class _Cells:
    """The raw columns of some rows as each field reads them."""

    def __init__(self, spec: FeatureSchema, columns: Mapping[str, np.ndarray]) -> None:
        self._spec = spec
        self._columns = columns
        self._made: dict[tuple[str, tuple[bytes, ...]], list[bytes]] = {}

    @property
    def rows(self) -> int:
        return len(next(iter(self._columns.values())))

    def of(self, column: str, missing: tuple[bytes, ...]) -> list[bytes]:
        """A column with the texts of ``missing`` replaced by b""."""
        if (column, missing) not in self._made:
            cells, nothing = self._columns[column].tolist(), frozenset(missing)
            self._made[column, missing] = [b"" if cell in nothing else cell for cell in cells] if nothing else cells
        return self._made[column, missing]

    def words(self, field: WordField) -> list[bytes]:
        """The cells of a categorical field; of a cross its columns' texts joined, empty if one of them is."""
        missing = self._spec.missing_of(field)
        if not isinstance(field, CrossField):
            return self.of(column_of(field), missing)
        parts = zip(*(self.of(name, missing) for name in field.columns), strict=True)
        return [CROSS_SEPARATOR.join(row) if all(row) else b"" for row in parts]

    def values(self, field: WordField, good: np.ndarray) -> list[bytes]:
        """The values of the good rows; of multi-valued cells all values that are kept."""
        texts = list(compress(self.words(field), good))
        if field.separator is None:
            return texts
        return [value for text in texts for value in self.split(field, text)]

    def split(self, field: WordField, text: bytes) -> list[bytes]:
        """A cell's values: see ``cell_ops.split_pieces``."""
        if not isinstance(field, CategoricalField) or field.separator is None:
            return [text]
        missing = self._spec.missing_of(field)
        said = [piece for piece in text.split(field.separator.encode()) if piece not in missing]
        if isinstance(self._spec.space_of(field).space, DeclaredIds):
            said = [piece.strip() for piece in said]
        found = [piece for piece in said if piece]
        return found[: field.max_values] if field.keep == "first" else found[-field.max_values :]


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


def _is_id(text: bytes, size: int) -> bool:
    """Whether a cell is empty or a declared id."""
    stripped = text.strip()
    return not stripped or (stripped.isdigit() and len(stripped) <= 18 and int(stripped) < size)


def _hashed(chunk: int, rows: np.ndarray) -> np.ndarray:
    """A row's position as 64 well-mixed bits, one to one. uint64 [n] to uint64 [n]."""
    with np.errstate(over="ignore"):
        return finalise(rows + np.uint64((chunk << 40) % 2**64) + np.uint64(GOLDEN))
