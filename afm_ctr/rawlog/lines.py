"""Bytes of a log file, plain or gzip, as lines.

A line ends with ``\\n``; one ``\\r`` before it is dropped. A last line without an end counts. A line is a record:
line ends inside quotes are not supported.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from afm_ctr.errors import UserError

BLOCK = 1 << 20  # bytes read or unpacked at a time
GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BrokenEnd:
    """What a damaged or truncated gzip stream leaves: the bytes after its last whole line, and what is wrong."""

    raw: bytes
    detail: str


class BrokenGzip(Exception):
    """A gzip stream that cannot be read further; all that was readable has been given out before."""


class TruncatedInput(Exception):
    """The broken end of a log, met by :func:`iterate_lines`: ``line`` is the number its next line would have had."""

    def __init__(self, line: int, end: BrokenEnd) -> None:
        super().__init__(f"line {line}: {end.detail}")
        self.line = line
        self.end = end


def read_blocks(stream: BinaryIO, size: int = BLOCK) -> Iterator[bytes]:
    """The rest of a stream in blocks."""
    while block := stream.read(size):
        yield block


def gunzip(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack a gzip stream of one or more members, every readable byte of it whatever the size of the blocks.

    Raises:
        BrokenGzip: after the last readable byte, when the stream is damaged or ends early.
    """
    member = zlib.decompressobj(31)
    fresh = True
    for block in blocks:
        data = block
        while data:
            if member.eof or fresh:
                # Members may be padded with zeros; no member begins with one.
                data = data.lstrip(b"\0") if member.eof else data
                if not data:
                    break
                member, fresh = zlib.decompressobj(31), False
            before = member.copy()
            try:
                unpacked = member.decompress(data, 4 * BLOCK)
            except zlib.error as error:
                # zlib keeps nothing of a call that fails: go through it again byte by byte.
                yield from _salvage(before, data)
                raise BrokenGzip(f"damaged gzip stream: {error}") from error
            yield unpacked
            data = member.unused_data if member.eof else member.unconsumed_tail
    if not (fresh or member.eof):
        yield member.flush()
        raise BrokenGzip("the gzip stream ends early")


def _salvage(member: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    for i in range(len(data)):
        try:
            unpacked = member.decompress(data[i : i + 1])
        except zlib.error:
            return
        if unpacked:
            yield unpacked


def range_blocks(stream: BinaryIO, start: int, end: int, size: int = BLOCK) -> Iterator[bytes]:
    """The bytes of the lines that start in ``[start, end)`` of a seekable plain stream, line ends included.

    Ranges that divide a file divide its lines: each line is in exactly one, whole.
    """
    if start:
        stream.seek(start - 1)
        position = start - 1
        for block in read_blocks(stream, size):
            found = block.find(b"\n")
            if found >= 0:
                position += found + 1
                break
            position += len(block)
        else:
            return
    else:
        position = 0
    if position >= end:
        return
    stream.seek(position)
    for block in read_blocks(stream, size):
        # The last line of ours is the one that holds byte end - 1.
        found = block.find(b"\n", max(end - 1 - position, 0)) if position + len(block) >= end else -1
        if found >= 0:
            yield block[: found + 1]
            return
        yield block
        position += len(block)


class LineStream:
    """Lines out of blocks of bytes, any number at a time.

    Attributes:
        broken: set when the stream has ended before its time; the bytes after the last whole line are in it.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._lines: list[bytes] = []
        self._next = 0
        self._tail: list[bytes] = []
        self._ended = False
        self.broken: BrokenEnd | None = None

    def take(self, count: int) -> list[bytes]:
        """Up to ``count`` lines; fewer only at the end."""
        taken: list[bytes] = []
        while len(taken) < count:
            if self._next == len(self._lines) and not self._fill():
                break
            stop = self._next + count - len(taken)
            taken += self._lines[self._next : stop]
            self._next = min(stop, len(self._lines))
        return taken

    def skip(self, count: int) -> int:
        """Pass over up to ``count`` lines without building them; returns how many there were."""
        left = count
        while left:
            ready = len(self._lines) - self._next
            if ready:
                step = min(ready, left)
                self._next += step
                left -= step
                continue
            block = self._read()
            if block is None:
                break
            inside = block.count(b"\n")
            if inside > left:
                self._split(block)
            elif inside:
                left -= inside
                self._tail = [block[block.rfind(b"\n") + 1 :]]
            else:
                self._tail.append(block)
        if left and self._end():
            self._next, left = len(self._lines), left - 1
        return count - left

    def _read(self) -> bytes | None:
        if self._ended:
            return None
        try:
            return next(self._blocks, None)
        except BrokenGzip as error:
            self.broken = BrokenEnd(b"".join(self._tail), str(error))
            self._tail, self._ended = [], True
            return None

    def _fill(self) -> bool:
        while (block := self._read()) is not None:
            if self._split(block):
                return True
        return self._end()

    def _split(self, block: bytes) -> bool:
        cut = block.rfind(b"\n")
        if cut < 0:
            self._tail.append(block)
            return False
        self._tail.append(block[:cut])
        whole = b"".join(self._tail)
        self._tail = [block[cut + 1 :]]
        self._lines, self._next = whole.split(b"\n"), 0
        if b"\r" in whole:
            self._lines = [line.removesuffix(b"\r") for line in self._lines]
        return True

    def _end(self) -> bool:
        last = b"".join(self._tail)
        self._tail, self._ended = [], True
        if not last:
            return False
        self._lines, self._next = [last.removesuffix(b"\r")], 0
        return True


def is_gzip(path: str, first_bytes: bytes) -> bool:
    """Whether a file is gzip, by its first bytes.

    Raises:
        UserError: the name ends in .gz and the content is something else.
    """
    if first_bytes.startswith(GZIP_MAGIC):
        return True
    if path.endswith(".gz") and first_bytes:
        raise UserError(f"{path}: the name says gzip, the content does not; rename or repair the file")
    return False


@contextmanager
def open_log(path: str) -> Iterator[LineStream]:
    """The lines of a local log file, plain or gzip (known by its first bytes).

    Raises:
        UserError: the file is not there or cannot be read.
    """
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed by the block below
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    with stream:
        packed = is_gzip(str(path), stream.read(len(GZIP_MAGIC)))
        stream.seek(0)
        blocks = read_blocks(stream)
        yield LineStream(gunzip(blocks) if packed else blocks)


def iterate_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Every line of a local log file with its number, from 1; a byte order mark before the first is dropped.

    Raises:
        UserError: the file cannot be read.
        TruncatedInput: at the broken end of a gzip file, after all its whole lines.
    """
    number = 1
    with open_log(path) as stream:
        while lines := stream.take(4096):
            if number == 1:
                lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
            yield from enumerate(lines, number)
            number += len(lines)
        if stream.broken:
            raise TruncatedInput(number, stream.broken)
