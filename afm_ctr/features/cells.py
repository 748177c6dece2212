"""Texts of cells into numbers, ids and pieces, as TensorFlow ops that never raise, whatever the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from afm_ctr.schema import CROSS_SEPARATOR, CrossField, WordField, column_of

# Decimal text alone: what Python or C would also read (hexadecimal, nan, inf, 1_000) is bad on every path.
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# Eighteen digits always fit int64.
WHOLE = r"[0-9]{1,18}"


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


def word_cells(field: WordField, columns: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The cells of a categorical field; of a cross its columns' texts joined, empty where one of them is.

    Args:
        field: the field.
        columns: string [B] by name.

    Returns:
        String [B].
    """
    if not isinstance(field, CrossField):
        return columns[column_of(field)]
    parts = tf.stack([columns[name] for name in field.columns])
    whole = tf.reduce_all(tf.strings.length(parts) > 0, axis=0)
    return tf.where(whole, tf.strings.join(tf.unstack(parts), CROSS_SEPARATOR), "")


def split_pieces(texts: tf.Tensor, separator: str, max_values: int, strip: bool = False) -> tf.RaggedTensor:
    """The first ``max_values`` non-empty pieces of every cell, in order, repeated ones kept.

    Args:
        texts: string [B].
        separator: text between pieces.
        max_values: how many pieces of a cell are kept.
        strip: whether ASCII white space around a piece is dropped (before it is judged empty).

    Returns:
        Ragged string [B, (≤ max_values)].
    """
    pieces = tf.strings.split(texts, separator)
    if strip:
        pieces = pieces.with_flat_values(tf.strings.strip(pieces.flat_values))
    given = pieces.with_flat_values(tf.strings.length(pieces.flat_values) > 0)
    return tf.ragged.boolean_mask(pieces, given)[:, :max_values]


def encode_numbers(values: tf.Tensor, log: tf.Tensor, mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """(f(x) − mean) / std in float64, with f(x) = sign(x)·ln(1 + |x|) where ``log``, else x."""
    scaled = tf.where(log, tf.sign(values) * tf.math.log1p(tf.abs(values)), values)
    return (scaled - mean) / std
