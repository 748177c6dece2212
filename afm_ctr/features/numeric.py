"""Numeric fields: all their columns are parsed at once."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from afm_ctr.features.cell_ops import FieldCells, Numbers, encode_numbers, parse_numbers
from afm_ctr.features.rows import EncodedSlots, TableRows
from afm_ctr.schema import (
    BucketEncoding,
    FeatureSchema,
    MissingValue,
    NumericField,
    ResolvedSchema,
    ValueEncoding,
    column_of,
)


class NumberColumns(tf.Module):
    """Parses every column that numeric fields read, once, for the encoders below."""

    def __init__(self, spec: FeatureSchema, fields: list[NumericField]) -> None:
        super().__init__()
        self._of = [(column_of(field), spec.missing_of(field)) for field in fields]
        self._names = [field.name for field in fields]
        self._sources = tuple(dict.fromkeys(self._of))

    def __call__(self, cells: FieldCells) -> Numbers:
        """Values float64, ok and bad bool, each [columns, B]."""
        return parse_numbers(tf.stack([cells.without(*source) for source in self._sources]))

    def rows_of(self, fields: list[NumericField]) -> np.ndarray:
        """Which rows of the result the fields read."""
        places = {name: self._sources.index(source) for name, source in zip(self._names, self._of, strict=True)}
        return np.array([places[field.name] for field in fields], np.int32)


class ValueEncoder(tf.Module):
    """One id a field, and the number as the value."""

    def __init__(self, schema: ResolvedSchema, fields: list[NumericField], rows: np.ndarray) -> None:
        super().__init__()
        encodings = [field.encoding for field in fields]
        assert all(isinstance(encoding, ValueEncoding) for encoding in encodings)
        fills = [field.missing.value if isinstance(field.missing, MissingValue) else None for field in fields]
        statistics = [schema.statistics[field.name] for field in fields]
        self._rows = rows
        self._table_rows = TableRows(schema, [field.name for field in fields])
        self._log = np.array([[isinstance(e, ValueEncoding) and e.log] for e in encodings])
        self._mean = np.array([[s.mean] for s in statistics], np.float64)
        self._std = np.array([[s.std] for s in statistics], np.float64)
        self._fill = np.array([[fill or 0.0] for fill in fills], np.float64)
        self._has_fill = np.array([[fill is not None] for fill in fills])

    def __call__(self, numbers: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> EncodedSlots:
        values, ok, bad = (tf.gather(part, self._rows) for part in numbers)
        encoded = tf.cast(encode_numbers(values, self._log, self._mean, self._std), tf.float32)
        # A float64 that float32 cannot hold would be infinite in the record.
        fits = tf.math.is_finite(encoded)
        bad |= ok & ~fits
        ok &= fits
        fill = tf.cast(encode_numbers(tf.constant(self._fill), self._log, self._mean, self._std), tf.float32)
        ids = self._table_rows(tf.zeros_like(encoded, tf.int64))
        return EncodedSlots(ids, tf.where(ok, encoded, fill), ok | self._has_fill, bad)


class BucketEncoder(tf.Module):
    """An id a bucket: how many stored float64 boundaries are ≤ the number."""

    def __init__(self, schema: ResolvedSchema, fields: list[NumericField], rows: np.ndarray) -> None:
        super().__init__()
        assert all(isinstance(field.encoding, BucketEncoding) for field in fields)
        lists = [schema.statistics[field.name].boundaries for field in fields]
        self._rows = rows
        self._table_rows = TableRows(schema, [field.name for field in fields])
        # No number reaches the padding: infinities are bad cells.
        self._boundaries = np.full((len(fields), max(1, *map(len, lists))), np.inf, np.float64)
        for row, boundaries in zip(self._boundaries, lists, strict=True):
            row[: len(boundaries)] = boundaries

    def __call__(self, numbers: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> EncodedSlots:
        values, ok, bad = (tf.gather(part, self._rows) for part in numbers)
        local = tf.searchsorted(tf.constant(self._boundaries), values, side="right", out_type=tf.int64)
        return EncodedSlots(self._table_rows(local), tf.ones_like(values, tf.float32), ok, bad)
