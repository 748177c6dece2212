"""Profile of one column of a sample."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from afm_ctr.infer.texts import is_number, shown
from afm_ctr.metrics.auc import ExactAUC
from afm_ctr.statistics.distinct import mixed

_WHOLE = re.compile(rb"[+-]?\d+")
_SEPARATORS = ("|", ";", ",", "^", " ", "\x1f")
_FEWEST = 20  # rows of either label; with fewer an AUC is meaningless
# Numbers as people and spreadsheets write them; numeric fields only take forms such as 1234.5.
_DRESSED = (
    (
        "marks between thousands",
        re.compile(rb"[+-]?(0|[1-9]\d{0,2}([, ']\d{3})*)(\.\d+)?"),
        re.compile(rb"[, ']"),
        (b"", b""),
    ),
    ("a decimal comma", re.compile(rb"[+-]?\d+(,\d+)?"), re.compile(rb"(?!)"), (b",", b".")),
    ("a decimal comma", re.compile(rb"[+-]?\d{1,3}([. ']\d{3})*,\d+"), re.compile(rb"[. ']"), (b",", b".")),
    (
        "a currency or unit",
        re.compile(r"[+-]?(((\$|€|£|¥) ?)?\d[\d.,]*|\d[\d.,]* ?(\$|€|£|¥|%|EUR|USD|GBP|JPY|CHF|CNY|INR))".encode()),
        re.compile(rb"[^\d.+-]"),
        (b"", b""),
    ),
)
_UNIT = re.compile(rb"[+-]?\d+(?:\.\d+)?( ?[A-Za-z]{1,10})")
_ITEM = rb"""('[^']*'|"[^"]*"|[+-]?\d+(\.\d*)?(e[+-]?\d+)?|None|null|nan|true|false)"""
# Lists, arrays, sets and objects as programs print them; "[18-25]" and "{3F2504E0-4F89}" are plain texts.
_PRINTED = re.compile(
    rb"[\[(]\s*(" + _ITEM + rb"((\s*,\s*|\s+)" + _ITEM + rb")*\s*,?\s*)?[\])]|\{\s*([\"'].*)?\}",
    re.IGNORECASE | re.DOTALL,
)


@dataclass
class Profile:
    """A column of the sample."""

    name: str  # in the schema
    header: str  # in the log
    cells: Sequence[bytes]  # one per row; b"": missing
    auc: float | None = None  # how well this column alone orders the labels, 0.5 … 1; ``None``: not known
    # of the cells that are not missing (blank cells are missing only in numeric columns)
    counts: Counter[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counter(self.cells)
        del self.counts[b""]

    @property
    def rows(self) -> int:
        """Number of rows of the sample."""
        return len(self.cells)

    @cached_property
    def blank(self) -> int:
        """Number of cells with white space only."""
        return sum(count for cell, count in self.counts.items() if not cell.strip())

    @property
    def present(self) -> int:
        """Number of rows with a cell."""
        return sum(self.counts.values())

    @property
    def missing(self) -> int:
        """Number of rows without a cell; in numeric columns blank cells count, too."""
        return self.rows - self.present + (self.blank if self.is_numeric else 0)

    @property
    def distinct(self) -> int:
        """Number of distinct cells."""
        return len(self.counts)

    @property
    def once(self) -> int:
        """Number of cells seen once. Their share of the rows is about the probability that another row has an unseen
        cell (Good, The population frequencies of species, Biometrika 40, 1953)."""
        return sum(count == 1 for count in self.counts.values())

    @cached_property
    def is_numeric(self) -> bool:
        """Whether nearly all cells are decimal numbers."""
        numbers = sum(n for cell, n in self.counts.items() if is_number(cell))
        there = self.present - self.blank
        return there > 0 and numbers >= 0.995 * there and not self._is_code

    @cached_property
    def _is_code(self) -> bool:
        """Digits with leading zeros: a code, not a number."""
        return any(len(cell) > 1 and cell.isdigit() and cell.startswith(b"0") for cell in self.counts)

    @cached_property
    def not_numbers(self) -> int:
        """Number of rows with a cell that is neither a number nor blank."""
        return sum(n for cell, n in self.counts.items() if cell.strip() and not is_number(cell))

    @cached_property
    def dressed(self) -> str | None:
        """What keeps nearly all cells from being plain numbers, such as a unit; ``None`` for other columns."""
        there = self.present - self.blank
        for what, pattern, drop, point in _DRESSED:
            plain = {
                cell: pattern.fullmatch(cell.strip()) is not None and is_number(drop.sub(b"", cell).replace(*point))
                for cell in self.counts
            }  # an address or a version, 10.4.25.7, is not a number without its marks
            if there and sum(n for cell, n in self.counts.items() if plain[cell]) >= 0.995 * there:
                number = next((c.strip() for c in self.counts if plain[c] and not is_number(c)), None)
                if number is not None:  # codes such as 007 already are numbers
                    return f"{what}: {shown(number)} for {shown(drop.sub(b'', number).replace(*point))}"
        united = [_UNIT.fullmatch(cell.strip()) for cell in self.counts if cell.strip()]
        if there and len({match and match[1] for match in united}) == 1 and (match := united[0]) is not None:
            return f"a unit: {shown(match[0])} for {shown(match[0].removesuffix(match[1]))}"  # 12A, 12B are codes
        return None

    @cached_property
    def printed(self) -> str | None:
        """An example cell, if nearly all are lists or objects as programs print them; ``None`` for other columns."""
        cells = {cell: n for cell, n in self.counts.items() if _PRINTED.fullmatch(cell.strip())}
        if not cells or sum(cells.values()) < 0.995 * (self.present - self.blank):
            return None
        return shown(max(cells, key=lambda cell: (len(cell) > len("['x']"), cells[cell], cell)))

    @cached_property
    def is_whole(self) -> bool:
        """Whether all its numbers are integers."""
        return self.is_numeric and all(_WHOLE.fullmatch(c.strip()) for c in self.counts if is_number(c))

    @cached_property
    def is_sorted(self) -> bool:
        """Whether its numbers mostly increase, or decrease, from row to row, like row numbers."""
        values = np.array([float(cell) for cell in self.cells if is_number(cell)])
        steps = np.diff(values)
        return len(steps) > 0 and bool(max((steps >= 0).mean(), (steps <= 0).mean()) >= 0.9)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The numbers, ascending: float64 [rows with a number]."""
        pairs = [(float(cell), n) for cell, n in self.counts.items() if is_number(cell)]
        values = np.array([value for value, _ in pairs])
        return np.sort(np.repeat(values, [n for _, n in pairs])) if pairs else np.zeros(0)

    def quantile(self, share: float) -> float:
        """A quantile of the column's numbers."""
        return float(self.numbers[int(share * (len(self.numbers) - 1))])

    def shown_top(self, count: int = 3) -> str:
        """The most frequent cells, with their shares of the rows."""
        order = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:count]
        return ", ".join(f"{shown(cell)} {n / self.rows:.0%}" for cell, n in order)

    @cached_property
    def separator(self) -> tuple[str, int, int] | None:
        """For multi-valued cells, whose pieces recur in other cells: the separator, the number of distinct pieces,
        and the 99 % quantile of pieces per cell. Otherwise None."""
        if self.distinct < 10 or self.is_numeric:
            return None
        for mark in _SEPARATORS:
            between = mark.encode()
            having = sum(n for cell, n in self.counts.items() if between in cell)
            if having < 0.2 * self.present:
                continue
            pieces = {cell: [piece for piece in cell.split(between) if piece] for cell in self.counts}
            different = {piece for mine in pieces.values() for piece in mine}
            if len(different) <= 0.5 * self.distinct:
                sizes = np.repeat([len(mine) for mine in pieces.values()], list(self.counts.values()))
                return mark, len(different), max(int(np.quantile(sizes, 0.99)), 2)
        return None

    def rate(self, labels: np.ndarray) -> None:
        """Set :attr:`auc` by labels, bool [rows].

        The rows are divided in halves by a hash of their number; the positive shares by cell (missing is a cell, too)
        in each half order the rows of the other, so that cells seen once have no effect. Numeric columns are also
        rated by their order.
        """
        if min(int(labels.sum()), int((~labels).sum())) < _FEWEST:
            return
        place = {cell: i for i, cell in enumerate(self.counts)}
        codes = np.array([place.get(cell, len(place)) for cell in self.cells])
        first = mixed(np.arange(len(codes))) % np.uint64(2) == 0
        if any(len(set(labels[half].tolist())) < 2 for half in (first, ~first)):
            return
        found = []
        for half in (first, ~first):
            seen = np.bincount(codes[half], minlength=len(place) + 1)
            positive = np.bincount(codes[half], labels[half], minlength=len(place) + 1)
            scores = (positive + labels[half].mean()) / (seen + 1)
            found.append(_auc(labels[~half], scores[codes[~half]]))
        self.auc = sum(found) / 2
        if self.is_numeric:
            rows = [i for i, cell in enumerate(self.cells) if is_number(cell)]
            mine = labels[rows]
            if min(int(mine.sum()), int((~mine).sum())) >= _FEWEST and len(rows) > 0.5 * self.rows:
                own = _auc(mine, np.array([float(self.cells[i]) for i in rows]))
                self.auc = max(self.auc, own, 1 - own)


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    metric = ExactAUC()
    metric.update(labels, scores)
    return metric.result()
