"""Byte strings stored in one text, so that millions of them need no objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

_FIRST_BYTES = np.array([256**size - 1 for size in range(9)], "<u8")
_TENS = 10 ** np.arange(1, 19, dtype=np.int64)


class Texts(Sequence[bytes]):
    """n byte strings.

    Args:
        starts: int64 [n], the first byte of each.
        ends: int64 [n], the byte after its last.
    """

    def __init__(self, text: bytes, starts: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.starts, self.ends = text, starts, ends

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Texts:
        """The same strings in one text."""
        return texts if isinstance(texts, Texts) else cls.one_by_one(b"".join(texts), list(map(len, texts)))

    @classmethod
    def numbered(cls, start: bytes, numbers: np.ndarray) -> Texts:
        """``start`` followed by each number, int64 [n], 0 or more."""
        digits = str(numbers.tolist())[1:-1].encode()
        return cls.one_by_one(
            start + digits.replace(b", ", start), len(start) + 1 + np.searchsorted(_TENS, numbers, "right")
        )

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """The strings of several, concatenated."""
        before = np.cumsum([0, *(len(part.text) for part in parts)])
        starts, ends = (
            np.concatenate([np.zeros(0, np.int64), *(edges + at for edges, at in zip(some, before, strict=False))])
            for some in ([part.starts for part in parts], [part.ends for part in parts])
        )
        return cls(b"".join([part.text for part in parts]), starts, ends)

    @classmethod
    def one_by_one(cls, text: bytes, sizes: Sequence[int] | np.ndarray) -> Texts:
        """Consecutive strings that fill a text, by their sizes."""
        lengths = np.asarray(sizes, np.int64)
        ends = np.cumsum(lengths)
        return cls(text, ends - lengths, ends)

    def take(self, rows: np.ndarray) -> Texts:
        """Some of them, by index."""
        return Texts(self.text, self.starts[rows], self.ends[rows])

    def packed(self) -> Texts:
        """The same strings in a text without other bytes."""
        sizes = self.ends - self.starts
        ends = np.cumsum(sizes)
        places = np.repeat(self.starts - (ends - sizes), sizes)
        places += np.arange(len(places))
        return Texts(np.frombuffer(self.text, np.uint8)[places].tobytes(), ends - sizes, ends)

    def counted(self) -> dict[bytes, int]:
        """How often each string occurs."""
        sizes = self.ends - self.starts
        bytes_of = np.frombuffer(self.text + bytes(8), np.uint8)
        # Counting them as whole numbers takes a third of the time. A zero at the end would be lost.
        if (sizes > 8).any() or (bytes_of[self.ends - 1][sizes > 0] == 0).any():
            return Counter(self)
        numbers = np.lib.stride_tricks.sliding_window_view(bytes_of, 8)[self.starts].view("<u8").ravel()
        found, counts = np.unique(numbers & _FIRST_BYTES[sizes], return_counts=True)
        return dict(zip(found.astype("<u8").view("S8").tolist(), counts.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> Texts: ...
    def __getitem__(self, at: int | slice) -> bytes | Texts:
        if isinstance(at, slice):
            return Texts(self.text, self.starts[at], self.ends[at])
        return self.text[self.starts[at] : self.ends[at]]

    def __iter__(self) -> Iterator[bytes]:
        text = self.text
        return (text[a:b] for a, b in zip(self.starts.tolist(), self.ends.tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
