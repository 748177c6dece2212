"""Bytes of a log file as lines.

A line ends with ``\\n``; one ``\\r`` before it is dropped. A last line without a line end counts. A line is a record:
line ends inside quotes are not supported. Lines that are too long are skipped in constant memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from afm_ctr.rawlog.codecs import BLOCK, BrokenStream, read_blocks
from afm_ctr.schema import MAX_LINE_BYTES

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KEPT_BYTES = 1024  # the beginning of a line that is too long
_LINE_END = ord("\n")


@dataclass(frozen=True)
class BrokenEnd:
    """The end of a damaged or truncated stream: the bytes after its last complete line, and the error.

    If these bytes exceed the limit of a line, ``raw`` holds only their beginning.
    """

    raw: bytes
    detail: str


class LongLine(bytes):
    """The beginning of a line that is too long.

    Attributes:
        length: bytes of the whole line, without its line end.
    """

    length: int

    def __new__(cls, start: bytes, length: int) -> LongLine:
        line = super().__new__(cls, start[:KEPT_BYTES])
        line.length = length
        return line


def without_mark(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """A file's content without a leading byte order mark."""
    start, rest = b"", iter(blocks)
    try:
        while len(start) < len(BYTE_ORDER_MARK) and (more := next(rest, None)) is not None:
            start += more
    except BrokenStream:
        yield start
        raise
    yield start.removeprefix(BYTE_ORDER_MARK)
    start = more = b""  # free the memory
    yield from rest


def range_blocks(stream: BinaryIO, start: int, end: int, size: int = BLOCK) -> Iterator[bytes]:
    """The bytes of the lines that start in ``[start, end)`` of a seekable plain stream, line ends included.

    If ranges partition a file, each line is in exactly one of them.
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
            if position >= end:
                return
        else:
            return
    else:
        position = 0
    if position >= end:
        return
    stream.seek(position)
    for block in read_blocks(stream, size):
        # The last line to yield is the one that contains byte end - 1.
        found = block.find(b"\n", max(end - 1 - position, 0)) if position + len(block) >= end else -1
        if found >= 0:
            yield block[: found + 1]
            return
        yield block
        position += len(block)


class LineStream:
    """Lines out of blocks of bytes, any number at a time.

    Args:
        limit: maximum length of a line, in bytes; a longer one becomes a :class:`LongLine`.

    Attributes:
        broken: set if the stream ended early; holds the bytes after the last complete line.
    """

    def __init__(self, blocks: Iterable[bytes], limit: int = MAX_LINE_BYTES) -> None:
        self._blocks = iter(blocks)
        self._limit = limit
        self._most = max(limit + 1, KEPT_BYTES)  # bytes of a line to keep; one may be the \r of its end
        self._lines: list[bytes] = []
        self._next = 0
        # The unfinished line: its parts (only the beginning if it is too long), length, last byte.
        self._tail: list[bytes] = []
        self._size = 0
        self._last = b""
        self._ended = False
        self.broken: BrokenEnd | None = None

    def take(self, count: int) -> list[bytes]:
        """Take up to ``count`` lines; fewer only at the end."""
        taken: list[bytes] = []
        while len(taken) < count:
            if self._next == len(self._lines) and not self._fill():
                break
            stop = self._next + count - len(taken)
            taken += self._lines[self._next : stop]
            self._next = min(stop, len(self._lines))
        return taken

    def skip(self, count: int) -> int:
        """Skip up to ``count`` lines without building them; returns the number skipped."""
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
            # bytes.count takes ten times as long if lines are short.
            inside = int(np.count_nonzero(np.frombuffer(block, np.uint8) == _LINE_END))
            if inside > left:
                self._split(block)
            elif inside:
                left -= inside
                self._tail, self._size = [], 0
                self._keep(block[block.rfind(b"\n") + 1 :])
            else:
                self._keep(block)
        if left and self._end():
            self._next, left = len(self._lines), left - 1
        return count - left

    def _read(self) -> bytes | None:
        if self._ended:
            return None
        try:
            return next(self._blocks, None)
        except BrokenStream as error:
            self.broken = BrokenEnd(b"".join(self._tail), str(error))
            self._tail, self._size, self._ended = [], 0, True
            return None

    def _fill(self) -> bool:
        while (block := self._read()) is not None:
            if self._split(block):
                return True
        return self._end()

    def _split(self, block: bytes) -> bool:
        first = block.find(b"\n")
        if first < 0:
            self._keep(block)
            return False
        last = block.rfind(b"\n")
        lines = [self._finish(block[:first])]
        if last > first:
            inside = block[first + 1 : last]
            more = inside.split(b"\n")
            if b"\r" in inside:
                more = [line.removesuffix(b"\r") for line in more]
            if len(inside) > self._limit and max(map(len, more)) > self._limit:
                more = [line if len(line) <= self._limit else LongLine(line, len(line)) for line in more]
            lines += more
        self._lines, self._next = lines, 0
        self._keep(block[last + 1 :])
        return True

    def _keep(self, part: bytes) -> None:
        """Add to the unfinished line."""
        if not part:
            return
        known = self._size > self._most
        self._size += len(part)
        self._last = part[-1:]
        if not known:
            self._tail.append(part)
            if self._size > self._most:
                self._tail = [b"".join(some[:KEPT_BYTES] for some in self._tail)[:KEPT_BYTES]]

    def _finish(self, part: bytes) -> bytes:
        """Finish the line with ``part`` and return it."""
        self._keep(part)
        line, size = b"".join(self._tail), self._size
        if size:
            size -= self._last == b"\r"
            self._tail, self._size = [], 0
        return line[:size] if size <= self._limit else LongLine(line[:size], size)

    def _end(self) -> bool:
        self._ended = True
        if not self._size:
            return False
        self._lines, self._next = [self._finish(b"")], 0
        return True
