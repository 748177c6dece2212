"""Order of an epoch: a pure function of (seed, epoch) and the blocks; no rank, no thread, no history enters it.

Blocks are permuted, then the records inside each block, so any stretch of the order is found without walking to it,
and reading it touches few blocks. That one fact carries random access to a step, resuming, and N ranks = one rank.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np


def permutation(count: int, *key: int) -> np.ndarray:
    """A permutation of ``range(count)``, int64 [count], that depends on the key alone.

    Random 64-bit numbers are sorted. Of numpy's random module only the raw stream of a bit generator (Philox) is
    promised never to change; ``Generator.permutation`` may change with a release, and a resumed run with it.
    """
    packed = struct.pack(f"<{len(key)}Q", *(part % 2**64 for part in key))
    digest = hashlib.blake2b(packed, digest_size=16, person=b"afm-ctr order").digest()
    draws = np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)).random_raw(count)
    return np.argsort(np.asarray(draws, np.uint64), kind="stable")


class Take(NamedTuple):
    """Records to take from one block, in this order."""

    block: int
    records: np.ndarray
    """int64 places inside the block."""


class EpochOrder:
    """The order of one epoch.

    Args:
        block_rows: int64 [blocks], records in each block, in file order.
        seed: of the run.
        epoch: 0, 1, ...
        shuffle: False = file order.
    """

    def __init__(self, block_rows: np.ndarray, seed: int, epoch: int, shuffle: bool = True) -> None:
        self._rows = np.asarray(block_rows, np.int64)
        self._shuffle = shuffle
        self._key = (seed, epoch)
        self._blocks = permutation(len(self._rows), *self._key) if shuffle else np.arange(len(self._rows))
        self._ends = np.cumsum(self._rows[self._blocks])
        # A large block (a compressed shard) is met again in many steps: its permutation is worth keeping.
        self._inside = lru_cache(maxsize=16)(self._permute_block)

    def _permute_block(self, block: int) -> np.ndarray:
        rows = int(self._rows[block])
        return permutation(rows, *self._key, block) if self._shuffle else np.arange(rows)

    @property
    def rows(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, start: int, stop: int) -> list[Take]:
        """The records at positions [start, stop) of the epoch; positions behind the end hold none."""
        stop = min(stop, self.rows)
        takes: list[Take] = []
        place = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            block, end = int(self._blocks[place]), int(self._ends[place])
            first = end - int(self._rows[block])
            takes.append(Take(block, self._inside(block)[start - first : min(stop, end) - first]))
            start, place = end, place + 1
        return takes
