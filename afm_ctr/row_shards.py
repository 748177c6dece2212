"""Which rank holds which row of a table that is sharded over the ranks."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

# Odd, below 2^40, two per round: the fraction of the golden ratio, and others as irregular.
_FACTORS = ((0x9E3779B97F, 0xC2B2AE3D27), (0xD6E8FEB867, 0x85EBCA77C3))
_BITS = 40  # of a fraction, and at most of a number of rows
_FINE = 20  # bits of the fraction in a product
_SAMPLE = 1024


@dataclasses.dataclass(frozen=True)
class RowShards:
    """One rank's share of the rows of a table.

    A mixing permutation of ``[0, rows)`` maps every id to a *position*, and each rank holds a range of positions, all
    of equal length except the last. So popular ids and the ranges of fields spread evenly, each rank computes the
    owner of every row, and another number of ranks only cuts the same order of rows elsewhere.
    """

    rows: int  # of the whole table, at most 2^40
    rank: int  # this rank
    size: int  # number of ranks

    @property
    def per_rank(self) -> int:
        """Positions per rank; the last ranks may have fewer rows, or none."""
        return -(-self.rows // self.size)

    @property
    def start(self) -> int:
        """The rank's first position."""
        return min(self.rank * self.per_rank, self.rows)

    @property
    def stop(self) -> int:
        """The position after the rank's last."""
        return min(self.start + self.per_rank, self.rows)

    def positions(self, ids: Any) -> Any:
        """The positions of ids: int64 ``[n]`` in ``[0, rows)`` to the same, array or tensor as given."""
        return mix(ids, self.rows)

    def ids(self, start: int, stop: int) -> np.ndarray:
        """The ids at positions ``start`` … ``stop − 1``: int64 ``[stop − start]``."""
        return unmix(np.arange(start, stop, dtype=np.int64), self.rows)

    def digest(self) -> int:
        """Equal on two ranks if and only if they agree on who owns what; non-negative, 32 bits."""
        sample = mix(np.unique(np.linspace(0, self.rows - 1, _SAMPLE).astype(np.int64)), self.rows)
        return zlib.crc32(sample.tobytes() + f"{self.rows} {self.size} {self.per_rank}".encode())


def mix(ids: Any, rows: int) -> Any:
    """A fixed permutation of ``[0, rows)``: a Feistel network on the low and the high part of a number.

    The low part has a power of two of values, the high part as many as needed, so their product is hardly above
    ``rows``; a result that is not below ``rows`` is mapped again until it is, by a table computed beforehand.

    Args:
        ids: int64 ``[n]``, array or tensor.
        rows: at most 2^40.

    Returns:
        int64 ``[n]``, array or tensor as the ids were.
    """
    tensors = tf.is_tensor(ids)
    mixed = _network(ids, rows)
    beyond = _sent_on(rows)
    if not len(beyond):
        return mixed
    at = (tf.maximum if tensors else np.maximum)(mixed - np.int64(rows), np.int64(0))
    below = tf.gather(tf.constant(beyond), at) if tensors else beyond[at]
    return (tf.where if tensors else np.where)(mixed < rows, mixed, below)


def unmix(positions: np.ndarray, rows: int) -> np.ndarray:
    """The inverse of :func:`mix`, for arrays."""
    ids = _network_back(positions, rows)
    while (outside := ids >= rows).any():
        ids[outside] = _network_back(ids[outside], rows)
    return ids


def _network(x: Any, rows: int) -> Any:
    right = tf.bitwise.right_shift if tf.is_tensor(x) else np.right_shift
    bits, highs = _parts(rows)
    low, high = x & np.int64(2**bits - 1), right(x, np.int64(bits))
    for first, second in _FACTORS:
        low = low ^ _low_turn(high, first, bits, right)
        high = high + _high_turn(low, second, highs, right)
        high = (tf.where if tf.is_tensor(x) else np.where)(high < highs, high, high - np.int64(highs))
    return high * np.int64(2**bits) + low


def _network_back(x: np.ndarray, rows: int) -> np.ndarray:
    bits, highs = _parts(rows)
    low, high = x & np.int64(2**bits - 1), x >> bits
    for first, second in reversed(_FACTORS):
        high = high - _high_turn(low, second, highs, np.right_shift)
        high = np.where(high < 0, high + highs, high)
        low = low ^ _low_turn(high, first, bits, np.right_shift)
    return high * 2**bits + low


def _low_turn(high: Any, factor: int, bits: int, right: Any) -> Any:
    """``bits`` bits derived from the high part: the leading bits of its product with a fraction."""
    return right((high * np.int64(factor)) & np.int64(2**_BITS - 1), np.int64(_BITS - bits))


def _high_turn(low: Any, factor: int, highs: int, right: Any) -> Any:
    """A number below ``highs`` derived from the low part, likewise."""
    fraction = right((low * np.int64(factor)) & np.int64(2**_BITS - 1), np.int64(_BITS - _FINE))
    return right(fraction * np.int64(highs), np.int64(_FINE))


def _parts(rows: int) -> tuple[int, int]:
    """The number of bits of the low part, and of values of the high part."""
    if not 1 <= rows <= 2**_BITS:
        raise ValueError(f"rows must be between 1 and 2^{_BITS}, got {rows}")
    bits = (rows.bit_length() - 1) // 2
    return bits, -(-rows // 2**bits)


@functools.cache
def _sent_on(rows: int) -> np.ndarray:
    """The final values of numbers that the network maps to ``rows + i``: int64, for fewer than 2^20 numbers i."""
    bits, highs = _parts(rows)
    ends = np.arange(rows, highs * 2**bits, dtype=np.int64)
    while (outside := ends >= rows).any():
        ends[outside] = _network(ends[outside], rows)
    return ends
