"""Texts of cells to numbers, ids and pieces, by TensorFlow ops that never raise for any bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from afm_ctr.schema import (
    CROSS_SEPARATOR,
    CategoricalField,
    CrossField,
    FeatureSchema,
    OneField,
    WordField,
    column_of,
)

# Decimal text only: other forms that Python or C accept (hexadecimal, nan, inf, 1_000) are bad on every path.
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# Eighteen digits always fit int64.
WHOLE = r"[0-9]{1,18}"


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
        """String [B]: the field's column, or the given one."""
        return self.without(column or column_of(field), self.missing(field))  # type: ignore[arg-type]

    def without(self, column: str, missing: tuple[bytes, ...]) -> tf.Tensor:
        """A column with "" in place of the texts of ``missing``."""
        if (column, missing) not in self._made:
            cells = self.columns[column]
            self._made[column, missing] = tf.where(is_one_of(cells, missing), "", cells) if missing else cells
        return self._made[column, missing]

    def words(self, field: WordField) -> tf.Tensor:
        """String [B]: the cells of a categorical field; of a cross its columns' joined texts, empty if any of them
        is."""
        if not isinstance(field, CrossField):
            return self.of(field)
        parts = tf.stack([self.of(field, name) for name in field.columns])
        whole = tf.reduce_all(tf.strings.length(parts) > 0, axis=0)
        return tf.where(whole, tf.strings.join(tf.unstack(parts), CROSS_SEPARATOR), "")


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
    """float64 of decimal text; ASCII white space around it is ignored, and only white space is missing.

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
    """Multi-valued cells in pieces."""

    values: tf.RaggedTensor  # ragged string [B, (≤ max_values)], in order
    cut: tf.Tensor  # int32 [B], number of further pieces of each cell


def split_pieces(
    texts: tf.Tensor, field: CategoricalField, strip: bool = False, missing: tuple[bytes, ...] = ()
) -> Pieces:
    """The first or last ``max_values`` non-empty pieces of every cell, including repeats.

    Args:
        texts: string [B].
        field: has a separator.
        strip: whether to strip ASCII white space around pieces (before they are checked for being empty).
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
