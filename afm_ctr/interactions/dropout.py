"""Dropout whose mask depends on the example and not on its place in a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

_GOLDEN = 0x9E3779B97F4A7C15
_M64 = (1 << 64) - 1


class Dropout(NamedTuple):
    """Inverted dropout that is a function of the example, not of its place in a batch."""

    rows: tf.Tensor  # int64 ``[B]``, a number for each example and step
    rate: float  # share that is dropped, in [0, 1)
    seed: int  # of the whole model
    salt: int  # distinguishes the dropouts of one model


def stateless_keep(
    rows: tf.Tensor, columns: int | np.ndarray, rate: float, seed: int, salt: int, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Dropout factors ``[B, width]``: 0 with probability ``rate``, else ``1 / (1 − rate)``.

    A pure function of seed, salt, row number and column, so that a row gets the same mask on any rank and in any
    batch. A hash of a counter: splitmix64 (Steele, Lea, Flood, OOPSLA 2014).

    Args:
        rows: int64 ``[B]``.
        columns: how many, or the non-negative numbers of the wanted ones, ``[width]``.
        rate: in [0, 1), rounded to 24 bits.
    """
    threshold = drop_threshold(rate)
    golden = tf.constant(_GOLDEN, tf.uint64)
    keys = _mix(tf.cast(rows, tf.uint64) * golden + tf.constant(drop_key(seed, salt), tf.uint64))
    numbers = np.arange(columns) if isinstance(columns, int) else columns
    bits = _mix(keys[:, tf.newaxis] + tf.constant((numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)))
    # The upper 24 bits, in a dtype that every comparison kernel supports, on GPUs too (they have none for int32).
    draw = tf.cast(tf.bitwise.right_shift(bits, tf.constant(40, tf.uint64)), tf.int64)
    kept = draw >= threshold
    return tf.cast(kept, dtype) * tf.constant(1.0 / (1.0 - rate), dtype)


def drop_threshold(rate: float) -> int:
    """The threshold below which a draw of 24 bits drops."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    return round(rate * 2**24)


def drop_key(seed: int, salt: int) -> int:
    """The part of the hash from seed and salt: unsigned, 64 bits."""
    return _mix_int(_mix_int(seed & _M64) ^ (salt * _GOLDEN & _M64))


def _mix_int(x: int) -> int:
    """The splitmix64 finaliser on a Python integer."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _M64
    return x ^ (x >> 31)


def _mix(x: tf.Tensor) -> tf.Tensor:
    """The splitmix64 finaliser on uint64."""

    def shifted(value: tf.Tensor, places: int) -> tf.Tensor:
        return tf.bitwise.bitwise_xor(value, tf.bitwise.right_shift(value, tf.constant(places, tf.uint64)))

    x = shifted(x, 30) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    x = shifted(x, 27) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return shifted(x, 31)
