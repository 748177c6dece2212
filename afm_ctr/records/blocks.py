"""The blocks of a split: their places, reading them, and keeping those that the next step needs again."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from concurrent.futures import Future
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from afm_ctr import native
from afm_ctr.errors import UserError
from afm_ctr.io import paths
from afm_ctr.records.framing import Block, DamagedError
from afm_ctr.records.manifest import AGAIN, Manifest

if TYPE_CHECKING:
    import tensorflow as tf

CACHE_BYTES = 64 << 20
# The op reads a whole block for any part of it, and keeps none: larger blocks are worth keeping.
MOST_BYTES_AT_ONCE = 4 << 20


class SplitBlocks:
    """All blocks of a split in file order.

    A gzip shard has no random access: all of it is one block here, read from its start and held in memory while steps
    use it. Shuffling then mixes within a shard and permutes whole shards.

    Thread-safe. Recently read blocks are kept, up to ``CACHE_BYTES``: a step often ends in the middle of a block.
    """

    def __init__(self, data_dir: str | os.PathLike[str], manifest: Manifest, split: str) -> None:
        self._shards = manifest.shards_of(split)
        self._paths = [manifest.path_of(data_dir, shard) for shard in self._shards]
        shard_of, starts, stops, rows = [], [], [], []
        for number, shard in enumerate(self._shards):
            offsets = shard.block_offsets if shard.compression == "none" else [0]
            sizes = np.full(
                len(offsets), shard.block_records if shard.compression == "none" else shard.rows, np.int64
            )
            sizes[-1] = shard.rows - sizes[:-1].sum()
            shard_of.append(np.full(len(offsets), number, np.int64))
            starts.append(np.array(offsets, np.int64))
            stops.append(np.array([*offsets[1:], shard.bytes], np.int64))
            rows.append(sizes)
        self.rows = np.concatenate(rows)
        """int64 [blocks]: records in each block."""
        self._shard_of, self._starts, self._stops = (np.concatenate(parts) for parts in (shard_of, starts, stops))
        self._places = np.stack([self._shard_of, self._starts, self._stops, self.rows], axis=1)
        self._lock = Lock()
        self._kept: OrderedDict[int, Future[Block]] = OrderedDict()
        self._kept_bytes = 0

    def is_plain(self) -> bool:
        """Whether every block is a stretch of a local file, short enough to be read at once."""
        local = not any(map(paths.is_remote, self._paths))
        packed = any(shard.compression != "none" for shard in self._shards)
        return local and not packed and int((self._stops - self._starts).max()) <= MOST_BYTES_AT_ONCE

    @cached_property
    def paths_tensor(self) -> tf.Tensor:
        """The paths of all shards, for :func:`afm_ctr.native.read_records`."""
        return native.paths_tensor(self._paths)

    def places(self, blocks: np.ndarray) -> np.ndarray:
        """For each block the shard, first byte, byte after the last one, number of records: int64 [n, 4]."""
        return self._places[blocks]

    def where(self, block: int) -> str:
        """A block's place in words, for messages."""
        shard = int(self._shard_of[block])
        number = block - int(np.searchsorted(self._shard_of, shard))
        return f"{self._paths[shard]}: block {number} (byte {self._starts[block]})"

    def records(self, block: int, places: np.ndarray) -> list[bytes]:
        """Records of a block by their places in it. Raises UserError: the file is damaged there, or missing."""
        try:
            return self._get(block).records(places.tolist())
        except DamagedError as error:
            raise UserError(f"{self.where(block)} is damaged: {error}; {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{self.where(block)} cannot be read: {error}; {AGAIN}") from None

    def _get(self, block: int) -> Block:
        with self._lock:
            found = self._kept.get(block)
            if found is None:
                mine = self._kept[block] = Future()
            else:
                self._kept.move_to_end(block)
        if found is not None:
            return found.result()
        # Outside the lock: other threads read other blocks meanwhile, and those that need this one wait for it.
        try:
            loaded = self._load(block)
        except BaseException as error:
            with self._lock:
                del self._kept[block]
            mine.set_exception(error)
            raise
        with self._lock:
            self._kept_bytes += loaded.nbytes
            mine.set_result(loaded)
            for old in list(self._kept):
                if self._kept_bytes <= CACHE_BYTES:
                    break
                if old != block and self._kept[old].done():
                    self._kept_bytes -= self._kept.pop(old).result().nbytes
        return loaded

    def _load(self, block: int) -> Block:
        shard = int(self._shard_of[block])
        start, stop = int(self._starts[block]), int(self._stops[block])
        with paths.open_binary(self._paths[shard]) as stream:
            stream.seek(start)
            data = stream.read(stop - start)
        if self._shards[shard].compression == "gzip":
            data = _gunzip(data)
        return Block(data, int(self.rows[block]))


def _gunzip(data: bytes) -> bytes:
    """The content of one gzip member, with its checksum verified and no bytes after it."""
    machine = zlib.decompressobj(wbits=31)
    try:
        plain = machine.decompress(data) + machine.flush()
    except zlib.error as error:
        raise DamagedError(str(error)) from None
    if not machine.eof or machine.unused_data:
        raise DamagedError(
            "the compressed data ends early" if not machine.eof else "bytes behind the compressed data"
        )
    return plain
