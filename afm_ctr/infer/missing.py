"""Finds the texts that databases and tools write for missing values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from afm_ctr.infer.texts import NOTHING, PERHAPS_NOTHING, has_digit, is_number
from afm_ctr.infer.timestamps import time_format
from afm_ctr.rawlog.tokenizers import is_utf8

_MOSTLY = 0.995  # minimum share of numbers among a column's other cells
_LEAST = 0.005  # minimum share of a text that is not well known, for it to mean "missing"


@dataclass(frozen=True)
class Missing:
    """The texts to declare as ``missing_values``."""

    everywhere: tuple[str, ...] = ()  # unambiguous texts, for the whole schema
    # further texts by column: only in columns of numbers or times, since elsewhere they may be categories
    own: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)  # number of cells with any of them, by column

    def removed(self, name: str, cells: Sequence[bytes]) -> Sequence[bytes]:
        """A column's cells with b"" in place of those texts."""
        texts = {text.encode() for text in (*self.everywhere, *self.own.get(name, ()))}
        if name not in self.rows:
            return cells
        return [b"" if cell in texts else cell for cell in cells]


def find_missing(columns: Mapping[str, Sequence[bytes]]) -> Missing:
    """Find such texts in the columns of a sample."""
    everywhere: set[bytes] = set()
    own: dict[str, tuple[str, ...]] = {}
    rows: dict[str, int] = {}
    for name, cells in columns.items():
        counts = Counter(cells)
        del counts[b""]
        sure = NOTHING & counts.keys()
        others = _own(counts, sure)
        everywhere |= sure
        if others:
            own[name] = _decoded(others)
        if sure or others:
            rows[name] = sum(counts[text] for text in (*sure, *others))
    return Missing(_decoded(everywhere), own, rows)


def _decoded(texts: set[bytes]) -> tuple[str, ...]:
    return tuple(sorted(text.decode() for text in texts))


def _own(counts: Counter[bytes], sure: frozenset[bytes] | set[bytes]) -> set[bytes]:
    """Texts without digits in a column of otherwise numbers or times, if there are at most a few."""
    rest = {cell: count for cell, count in counts.items() if cell not in sure and cell.strip()}
    words = {cell for cell in rest if not has_digit(cell) or cell in PERHAPS_NOTHING}
    known = {cell for cell in words if cell in PERHAPS_NOTHING}
    there = sum(rest.values())
    frequent = {cell for cell in words - known if rest[cell] >= _LEAST * there and is_utf8(cell)}
    found = known | (frequent if len(frequent) <= 2 else set())
    others = {cell: count for cell, count in rest.items() if cell not in found}
    if not found or len(others) <= 2:
        return set()
    numbers = sum(count for cell, count in others.items() if is_number(cell))
    if numbers >= _MOSTLY * sum(others.values()) or time_format(others) is not None:
        return found
    return set()
