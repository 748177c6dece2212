"""Writing a shard: framed records to a binary stream, with the digest and block offsets that the manifest needs."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from typing import IO, Literal, NamedTuple, cast

import numpy as np

from afm_ctr.records.framing import FramedRecords

Compression = Literal["none", "gzip"]
BLOCK_RECORDS = 256


class ShardStats(NamedTuple):
    """The manifest's figures of a shard."""

    rows: int
    bytes: int
    """Length of the file."""
    sha256: str
    """Of the file, hex."""
    block_offsets: list[int]
    """First byte of every block; of the *uncompressed* stream if the shard is compressed."""


class _Digest:
    """A write-only stream that counts and hashes the bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        self._stream.write(data)
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing: the owner of the stream flushes it."""


class ShardWriter:
    """Writes one shard. Equal records give equal bytes, however they are divided into batches.

    Args:
        stream: any binary file object, e.g. of Beam's ``FileSystems.create``. The caller closes it.
        block_records: records per block.
        compression: ``gzip`` saves space but has no random access: the reader takes the shard as one block.
    """

    def __init__(
        self, stream: IO[bytes], block_records: int = BLOCK_RECORDS, compression: Compression = "none"
    ) -> None:
        if block_records < 1:
            raise ValueError(f"block_records={block_records} must be at least 1")
        self.block_records = block_records
        self._file = _Digest(stream)
        self._gzip: gzip.GzipFile | None = None
        if compression == "gzip":
            # No name and no time in the header: equal records, equal bytes.
            self._gzip = gzip.GzipFile("", "wb", 6, cast(IO[bytes], self._file), mtime=0)
        elif compression != "none":
            raise ValueError(f"compression={compression!r} must be 'none' or 'gzip'")
        self._rows = 0
        self._position = 0
        self._offsets: list[int] = []

    def write(self, records: Sequence[bytes]) -> None:
        """Append serialized records in order; they are framed here unless they are already."""
        if not records:
            return
        framed = records if isinstance(records, FramedRecords) else FramedRecords.of(records)
        starts = self._position + np.cumsum(framed.sizes) - framed.sizes
        first = -self._rows % self.block_records
        self._offsets += starts[first :: self.block_records].tolist()
        (self._gzip or self._file).write(framed.frames.data)
        self._rows += len(framed)
        self._position += len(framed.frames)

    def close(self) -> ShardStats:
        """End the shard (the stream stays open) and return its figures."""
        if self._gzip is not None:
            self._gzip.close()
            self._gzip = None
        return ShardStats(self._rows, self._file.bytes, self._file.sha256.hexdigest(), self._offsets)
