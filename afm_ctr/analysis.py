"""The analysis pass: what a schema must know of the train split before it can be resolved.

An :class:`Analyzer` reads one chunk and gives a small part; :meth:`Analysis.merge` puts the parts together, in any
order. Cells are read by the functions that the transform reads them with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

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
from afm_ctr.splitmix import GOLDEN, finalise

__all__ = ["SAMPLE_LIMIT", "Analysis", "Analyzer", "ChunkAnalysis", "NumberFacts", "spec_needs_analysis"]


def spec_needs_analysis(spec: FeatureSchema) -> bool:
    """Whether a schema must see data: it has vocabularies, standardised numbers or quantile buckets."""
    return bool(spec.vocabulary_spaces) or any(needs_statistics(field) for field in spec.fields)


class Analyzer:
    """Reads the train rows of one chunk.

    Rows with a cell that cannot be read are left out whole, since they become rejects. (A number that only
    overflows float32 after standardising cannot be seen here and counts.)

    Args:
        chunk: the chunk's number, which together with row numbers says where a row stands.
    """

    def __init__(self, spec: FeatureSchema, chunk: int) -> None:
        self._spec = spec
        self._chunk = chunk
        self._counts: dict[str, Counter[bytes]] = {name: Counter() for name in spec.vocabulary_spaces}
        self._fitted = [f for f in spec.fields if isinstance(f, NumericField) and needs_statistics(f)]
        self._numbers: dict[str, list[np.ndarray]] = {f.name: [] for f in self._fitted}
        self._rows: dict[str, list[np.ndarray]] = {f.name: [] for f in self._fitted}

    def add(self, columns: Mapping[str, np.ndarray], first_row: int) -> None:
        """Take rows into account.

        Args:
            columns: bytes [n] for every raw column.
            first_row: number of the first of these rows; the others follow it. No two rows of the chunk may have
                the same number. Numbers decide which rows are sampled when there are too many for exact quantiles.
        """
        import tensorflow as tf

        from afm_ctr.features.cell_ops import FieldCells

        texts = {name: tf.constant(columns[name], tf.string) for name in self._spec.raw_columns}
        cells = FieldCells(self._spec, texts)
        numbers, good = self._parse_numbers(cells)
        good &= self._good_ids(cells) & self._good_times(cells)
        for field in self._spec.fields:
            name, space = self._spec.space_of(field)
            if isinstance(field, WordField) and isinstance(space, VocabularySpace):
                self._counts[name].update(_values(field, cells, good))
        rows = first_row + np.arange(len(good), dtype=np.int64)
        for field in self._fitted:
            values, ok = numbers[field.name]
            self._numbers[field.name].append(values[good & ok])
            self._rows[field.name].append(rows[good & ok])

    def partial(self) -> ChunkAnalysis:
        """The chunk's facts. The same for the same rows, however they were divided among calls of :meth:`add`."""
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

    def _parse_numbers(self, cells: Any) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Values and validity of every numeric field; and which rows have no bad number."""
        import tensorflow as tf

        from afm_ctr.features.cell_ops import parse_numbers

        fields = [field for field in self._spec.fields if isinstance(field, NumericField)]
        if not fields:
            return {}, np.ones(_rows(cells), bool)
        read = [(column_of(field), cells.missing(field)) for field in fields]
        sources = list(dict.fromkeys(read))
        parsed = parse_numbers(tf.stack([cells.without(*source) for source in sources]))
        values, ok = parsed.values.numpy(), parsed.ok.numpy()
        places = [sources.index(source) for source in read]
        found = {field.name: (values[at], ok[at]) for field, at in zip(fields, places, strict=True)}
        return found, ~parsed.bad.numpy().any(axis=0)

    def _good_ids(self, cells: Any) -> np.ndarray:
        """Which rows have no bad declared id."""
        from afm_ctr.features.cell_ops import parse_whole, split_pieces

        good = np.ones(_rows(cells), bool)
        for field in self._spec.fields:
            space = self._spec.space_of(field).space
            if not isinstance(field, CategoricalField) or not isinstance(space, DeclaredIds):
                continue
            column = cells.of(field)
            if field.separator is None:
                rows, texts = np.arange(len(good)), column
            else:
                pieces = split_pieces(column, field, strip=True, missing=cells.missing(field)).values
                rows, texts = pieces.value_rowids().numpy(), pieces.flat_values
            parsed = parse_whole(texts)
            bad = parsed.bad.numpy() | (parsed.ok.numpy() & (parsed.values.numpy() >= space.size))
            good[rows[bad]] = False
        return good

    def _good_times(self, cells: Any) -> np.ndarray:
        """Which rows have no bad time."""
        from afm_ctr.features.times import parse_times

        fields = [field for field in self._spec.fields if isinstance(field, TimeField)]
        good = np.ones(_rows(cells), bool)
        for column, missing, form in dict.fromkeys((column_of(f), cells.missing(f), f.format) for f in fields):
            good &= ~parse_times(cells.without(column, missing), form).bad.numpy()
        return good


def _rows(cells: Any) -> int:
    return int(next(iter(cells.columns.values())).shape[0])


def _values(field: WordField, cells: Any, good: np.ndarray) -> list[bytes]:
    from afm_ctr.features.cell_ops import split_pieces

    texts = cells.words(field).numpy()[good]
    if not isinstance(field, CategoricalField) or field.separator is None:
        return list(texts)
    return list(split_pieces(texts, field, missing=cells.missing(field)).values.flat_values.numpy())


def _hashed(chunk: int, rows: np.ndarray) -> np.ndarray:
    """A row's place as 64 well-mixed bits, one to one. uint64 [n] to uint64 [n]."""
    with np.errstate(over="ignore"):
        return finalise(rows + np.uint64((chunk << 40) % 2**64) + np.uint64(GOLDEN))
