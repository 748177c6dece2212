"""TFRecord framing: length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data; little endian.

Source: tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import struct
import warnings
from array import array
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np

from afm_ctr.errors import UserError

HEADER_BYTES, FOOTER_BYTES = 12, 4
_MASK_DELTA = 0xA282EAD8


@cache
def _crc32c() -> Callable[[bytes], int]:
    try:
        import google_crc32c
    except ImportError:
        raise UserError("google-crc32c is not installed: pip install google-crc32c") from None
    if google_crc32c.implementation != "c":
        warnings.warn("google-crc32c has no compiled form here: reading and writing records is slow", stacklevel=2)
    return google_crc32c.value


def masked_crcs(records: Sequence[bytes]) -> np.ndarray:
    """Masked CRC-32C of each byte string: ``<u4`` [n]. Masked, since the CRC of data that holds CRCs is weak."""
    crc = np.fromiter(map(_crc32c(), records), np.uint32, len(records))
    return ((crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(_MASK_DELTA)).astype("<u4")


@lru_cache(maxsize=65536)
def header(length: int) -> bytes:
    """The 12 bytes before a record of ``length`` bytes. Few lengths occur, so headers are cached."""
    packed = struct.pack("<Q", length)
    return packed + masked_crcs([packed]).tobytes()


class FramedRecords(Sequence[bytes]):
    """Framed records back to back, as in a shard; as a sequence, the records without frames.

    Args:
        frames: uint8.
        sizes: int64 [n], bytes of each frame.
    """

    def __init__(self, frames: np.ndarray, sizes: np.ndarray) -> None:
        self.frames = frames
        self.sizes = sizes
        self._ends = np.cumsum(sizes)

    @classmethod
    def of(cls, records: Sequence[bytes]) -> FramedRecords:
        """Frame records."""
        crcs = masked_crcs(records).tobytes()
        footers = (crcs[at : at + FOOTER_BYTES] for at in range(0, len(crcs), FOOTER_BYTES))
        framed = zip(records, footers, strict=True)
        data = b"".join([part for record, footer in framed for part in (header(len(record)), record, footer)])
        sizes = np.fromiter(map(len, records), np.int64, len(records)) + (HEADER_BYTES + FOOTER_BYTES)
        return cls(np.frombuffer(data, np.uint8), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        end = int(self._ends[index])
        return self.frames[end - int(self.sizes[index]) + HEADER_BYTES : end - FOOTER_BYTES].tobytes()


# Headers that were verified before, and their lengths.
_LENGTHS: dict[bytes, int] = {}


class DamagedError(Exception):
    """Bytes that differ from what the writer wrote. The text names the place in the block; callers add the file."""


class Block:
    """The records of one stretch of a shard; each is verified when it is taken.

    Args:
        data: framed records, from the first byte of the first to the last byte of the last.
        count: the expected number of records.

    Raises:
        DamagedError: the frames do not fill ``data`` with exactly ``count`` records.
    """

    def __init__(self, data: bytes, count: int) -> None:
        self._data = data
        # Arrays, since the block of a compressed shard may hold millions of records.
        self._starts, self._ends = array("q"), array("q")
        position, size = 0, len(data)
        for record in range(count):
            start = position + HEADER_BYTES
            head = data[position:start]
            length = _LENGTHS.get(head)
            if length is None:
                # A length is used only after its checksum, else a flipped bit would request terabytes.
                length = int.from_bytes(head[:8], "little")
                if start > size:
                    raise DamagedError(f"record {record} of {count}: the data ends early")
                if head != header(length):
                    raise DamagedError(f"record {record} of {count}: the checksum of its length does not match")
                if len(_LENGTHS) < 65536:
                    _LENGTHS[head] = length
            end = start + length
            position = end + FOOTER_BYTES
            if position > size:
                raise DamagedError(f"record {record} of {count}: the data ends early")
            self._starts.append(start)
            self._ends.append(end)
        if position != size:
            raise DamagedError(f"{size - position} bytes behind its {count} records")

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def nbytes(self) -> int:
        return len(self._data) + 16 * len(self)

    def records(self, indices: Sequence[int]) -> list[bytes]:
        """Records by their places in the block, each with its checksum verified.

        Raises:
            DamagedError: a checksum does not match.
        """
        data = self._data
        ends = [self._ends[i] for i in indices]
        out = [data[self._starts[i] : end] for i, end in zip(indices, ends, strict=True)]
        stored = np.frombuffer(b"".join([data[end : end + FOOTER_BYTES] for end in ends]), "<u4")
        wrong = np.flatnonzero(stored != masked_crcs(out))
        if len(wrong):
            raise DamagedError(f"record {indices[wrong[0]]} of {len(self)}: its checksum does not match")
        return out
