"""Texts of cells into numbers, ids and pieces, as TensorFlow ops that never raise, whatever the bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from afm_ctr import native
from afm_ctr.features.rows import EncodedSlots
from afm_ctr.schema import (
    CROSS_SEPARATOR,
    CategoricalField,
    CrossField,
    FeatureSchema,
    OneField,
    WordField,
    column_of,
    columns_of,
)

# Decimal text only: what Python or C would also read (hexadecimal, nan, inf, 1_000) is bad on every path.
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# Eighteen digits always fit int64.
WHOLE = r"[0-9]{1,18}"


# Columns that are read together, a cross's, and the texts that count as empty in each.
Source = tuple[tuple[str, ...], tuple[bytes, ...]]


class FieldCells:
    """The raw columns of a batch as each field reads them: a cell that is one of its ``missing_values`` is empty.

    Args:
        columns: string [B] by name; at least one.
    """

    def __init__(self, spec: FeatureSchema, columns: Mapping[str, Any]) -> None:
        self.columns = columns
        self._spec = spec
        self._made: dict[tuple[str, tuple[bytes, ...]], tf.Tensor] = {}

    def missing(self, field: OneField) -> tuple[bytes, ...]:
        """The texts that count as empty."""
        return self._spec.missing_of(field)

    def of(self, field: OneField, column: str | None = None) -> tf.Tensor:
        """String [B]: the field's column, or the one that is named."""
        return self.without(column or column_of(field), self.missing(field))  # type: ignore[arg-type]

    def without(self, column: str, missing: tuple[bytes, ...]) -> tf.Tensor:
        """A column with "" in place of the texts of ``missing``."""
        if (column, missing) not in self._made:
            cells = self.columns[column]
            self._made[column, missing] = tf.where(is_one_of(cells, missing), "", cells) if missing else cells
        return self._made[column, missing]

    def rows(self) -> tf.Tensor:
        """B: int32."""
        return tf.shape(next(iter(self.columns.values())))[0]

    def words(self, field: WordField) -> tf.Tensor:
        """String [B]: the cells of a categorical field; of a cross its columns' texts joined, empty where one of them
        is."""
        if not isinstance(field, CrossField):
            return self.of(field)
        parts = tf.stack([self.of(field, name) for name in field.columns])
        whole = tf.reduce_all(tf.strings.length(parts) > 0, axis=0)
        return tf.where(whole, tf.strings.join(tf.unstack(parts), CROSS_SEPARATOR), "")

    def numbers(self, sources: Sequence[Source]) -> Numbers:
        """What columns, one of each source, hold as numbers: [sources, B]."""
        return parse_numbers(tf.stack([self.without(column, missing) for (column,), missing in sources]))

    def buckets(self, fields: Sequence[WordField], buckets: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Fingerprint64 of the bytes mod ``buckets``, int64, and which cells are not empty, bool: [fields, B]."""
        words = tf.stack([self.words(field) for field in fields])
        return tf.strings.to_hash_bucket_fast(words, buckets), tf.strings.length(words) > 0

    def laid_out(
        self, slots: Sequence[EncodedSlots], order: np.ndarray, own_ids: np.ndarray
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Slots of the batch as rows: ids int64 and values float32, [B, F].

        Args:
            slots: of all encoders.
            order: int32 [F], which of these slots, counted through, comes where.
            own_ids: int64 [F], the id of a slot that is not present, with the value 1; 0: it has the value 0.
        """
        own = own_ids[:, None]
        ids, vals, present = (
            tf.gather(tf.concat([getattr(part, name) for part in slots], 0), order)
            for name in ("ids", "vals", "present")
        )
        vals = tf.where(present, vals, (own > 0).astype(np.float32))
        return tf.transpose(tf.where(present, ids, own)), tf.transpose(vals)


class SpanCells(FieldCells):
    """The same of cells that lie in one text: numbers and buckets are made without a string a cell.

    Args:
        text: uint8.
        starts: int32 [B, width], the first byte of each cell.
        ends: int32 [B, width], the byte behind its last.
        places: of the raw columns among them.
    """

    def __init__(
        self, spec: FeatureSchema, text: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor, places: Mapping[str, int]
    ) -> None:
        super().__init__(spec, {})
        self._cells = native.Cells(text, starts, ends)
        self._rows = tf.shape(starts)[0]
        self._places = places

    def without(self, column: str, missing: tuple[bytes, ...]) -> tf.Tensor:
        if (column, missing) not in self._made:
            self._made[column, missing] = self._cells.texts([self._source((column,), missing)])[0]
        return self._made[column, missing]

    def rows(self) -> tf.Tensor:
        return self._rows

    def numbers(self, sources: Sequence[Source]) -> Numbers:
        return Numbers(*self._cells.numbers([self._source(*source) for source in sources]))

    def buckets(self, fields: Sequence[WordField], buckets: int) -> tuple[tf.Tensor, tf.Tensor]:
        sources = [self._source(columns_of(field), self.missing(field)) for field in fields]
        return self._cells.buckets(sources, buckets)

    def laid_out(
        self, slots: Sequence[EncodedSlots], order: np.ndarray, own_ids: np.ndarray
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return self._cells.rows(slots, order, own_ids)

    def _source(self, columns: tuple[str, ...], missing: tuple[bytes, ...]) -> native.CellSource:
        return [self._places[name] for name in columns], missing


def is_one_of(texts: tf.Tensor, known: tuple[bytes, ...]) -> tf.Tensor:
    """Which texts are equal to one of ``known``: string to bool, of one shape."""
    found = tf.zeros_like(texts, tf.bool)
    for text in known:
        found |= tf.equal(texts, text)
    return found


class Numbers(NamedTuple):
    """Parsed cells, all of the texts' shape: ``values`` (0 unless ``ok``), ``ok``, ``bad``; neither is missing."""

    values: tf.Tensor
    ok: tf.Tensor
    bad: tf.Tensor


def parse_numbers(texts: tf.Tensor) -> Numbers:
    """float64 of decimal text; ASCII white space around it is ignored, nothing but white space is missing.

    Args:
        texts: string, any shape.

    Returns:
        ``values`` float64, ``ok`` and ``bad`` bool. A number beyond float64 is bad.
    """
    stripped = tf.strings.strip(texts)
    given = tf.strings.length(stripped) > 0
    ok = tf.strings.regex_full_match(stripped, NUMBER)
    values = tf.strings.to_number(tf.where(ok, stripped, "0"), tf.float64)
    finite = tf.math.is_finite(values)
    ok &= finite
    return Numbers(tf.where(finite, values, tf.zeros((), tf.float64)), ok, given & ~ok)


def parse_whole(texts: tf.Tensor) -> Numbers:
    """int64 of a run of at most 18 digits, with the same rules as :func:`parse_numbers`."""
    stripped = tf.strings.strip(texts)
    given = tf.strings.length(stripped) > 0
    ok = tf.strings.regex_full_match(stripped, WHOLE)
    values = tf.strings.to_number(tf.where(ok, stripped, "0"), tf.int64)
    return Numbers(values, ok, given & ~ok)


class Pieces(NamedTuple):
    """Cells of several values in pieces."""

    values: tf.RaggedTensor  # ragged string [B, (≤ max_values)], in order
    cut: tf.Tensor  # int32 [B], how many more there are of each cell


def split_pieces(
    texts: tf.Tensor, field: CategoricalField, strip: bool = False, missing: tuple[bytes, ...] = ()
) -> Pieces:
    """The non-empty pieces of every cell, repeated ones kept: the first or last ``max_values``, as the field says.

    Args:
        texts: string [B].
        field: has a separator.
        strip: whether ASCII white space around a piece is dropped (before it is judged empty).
        missing: pieces that count as empty.
    """
    pieces = tf.strings.split(texts, field.separator)
    said = ~is_one_of(pieces.flat_values, missing)
    if strip:
        pieces = pieces.with_flat_values(tf.strings.strip(pieces.flat_values))
    given = pieces.with_flat_values((tf.strings.length(pieces.flat_values) > 0) & said)
    whole = tf.ragged.boolean_mask(pieces, given)
    kept = whole[:, : field.max_values] if field.keep == "first" else whole[:, -field.max_values :]
    return Pieces(kept, tf.cast(whole.row_lengths() - kept.row_lengths(), tf.int32))


def encode_numbers(values: tf.Tensor, log: tf.Tensor, mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """(f(x) − mean) / std in float64, with f(x) = sign(x)·ln(1 + |x|) where ``log``, else x."""
    scaled = tf.where(log, tf.sign(values) * tf.math.log1p(tf.abs(values)), values)
    return (scaled - mean) / std
