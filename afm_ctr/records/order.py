"""Order of an epoch: a pure function of (seed, epoch) and the blocks, independent of ranks, threads and history.

Blocks are permuted, then the records inside each block, so any stretch of the order is found without iterating to it,
and reading it touches few blocks. Random access to a step, resuming, and N ranks = one rank all rely on this.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np


def permutation(count: int, *key: int) -> np.ndarray:
    """A permutation of ``range(count)``, int64 [count], that depends only on the key.

    It sorts random 64-bit numbers. NumPy promises only the raw stream of a bit generator (Philox) never to change;
    ``Generator.permutation`` may change with a release, and a resumed run with it.
    """
    draws = np.random.Philox(key=np.frombuffer(_digest(*key), "<u8").astype(np.uint64)).random_raw(count)
    return np.argsort(np.asarray(draws, np.uint64), kind="stable")


def _digest(*key: int) -> bytes:
    packed = struct.pack(f"<{len(key)}Q", *(part % 2**64 for part in key))
    return hashlib.blake2b(packed, digest_size=16, person=b"afm-ctr order").digest()


class Take(NamedTuple):
    """Records to take from one block, in this order."""

    block: int
    records: np.ndarray
    """int64 places inside the block."""


class EpochOrder:
    """The order of one epoch.

    Args:
        block_rows: int64 [blocks], records in each block, in file order.
        shuffle: False = file order.
    """

    def __init__(self, block_rows: np.ndarray, seed: int, epoch: int, shuffle: bool = True) -> None:
        self._rows = np.asarray(block_rows, np.int64)
        self._shuffle = shuffle
        self._key = (seed, epoch)
        self._blocks = permutation(len(self._rows), *self._key) if shuffle else np.arange(len(self._rows))
        self._ends = np.cumsum(self._rows[self._blocks])
        # Many steps use a large block (a compressed shard): its permutation is worth keeping.
        self._inside = lru_cache(maxsize=16)(self._permute_block)

    def _permute_block(self, block: int) -> np.ndarray:
        rows = int(self._rows[block])
        return permutation(rows, *self._key, block) if self._shuffle else np.arange(rows)

    @property
    def rows(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def stretches(self, start: int, stop: int) -> np.ndarray:
        """The places of positions [start, stop) of the epoch: int64 [n, 3], block, and [from, to) of its order.

        Positions after the end have none.
        """
        stop = min(stop, self.rows)
        if start >= stop:
            return np.zeros((0, 3), np.int64)
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        blocks, ends = self._blocks[first : last + 1], self._ends[first : last + 1]
        begins = ends - self._rows[blocks]
        found = np.empty((len(blocks), 3), np.int64)
        found[:, 0], found[:, 1], found[:, 2] = blocks, np.maximum(start - begins, 0), np.minimum(stop, ends) - begins
        return found

    def keys(self, blocks: Sequence[int]) -> np.ndarray:
        """The keys of the order inside each block: uint64 [n, 2]; none in file order."""
        if not self._shuffle:
            return np.zeros((0, 2), np.uint64)
        digests = b"".join(_digest(*self._key, block) for block in blocks)
        return np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)

    def take(self, start: int, stop: int) -> list[Take]:
        """The records at positions [start, stop) of the epoch; positions after the end have none."""
        return [Take(block, self._inside(block)[a:b]) for block, a, b in self.stretches(start, stop).tolist()]
