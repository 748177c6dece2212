"""What comes out of an explanation: effects and shares of pairs, as a table, as JSON, as CSV."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

WRONG = "attention alone would mislead: it says where the model looks, the effect what that does to the score"


@dataclass(frozen=True)
class PairEffect:
    """One pair of slots.

    Attributes:
        rank: by ``effect``, 1 is the largest.
        fields: names of the two slots.
        effect: over a split the standard deviation of the change, for one row the change itself (what the logit
            loses when the pair is taken out and the others share its attention); None where a model cannot tell.
        mean_change: mean absolute change; None where a model cannot tell.
        attention: mean share of attention (over the rows that have the pair its mean would be larger by
            1 / ``present``); None for a model without.
        attention_rank: by ``attention``.
        present: share of the rows that have both slots.
    """

    rank: int
    fields: tuple[str, str]
    effect: float | None
    mean_change: float | None
    attention: float | None
    attention_rank: int | None
    present: float

    @property
    def name(self) -> str:
        return " x ".join(self.fields)


@dataclass(frozen=True)
class RowFacts:
    """One row of the split.

    Attributes:
        number: its place in the split, from 0.
        key: what joins it to its log line.
        label: None where there is none.
        logit: as served.
        score: probability, or score under squared loss.
        linear: of every present slot its name, what it holds, and its own term of the logit, largest first.
        bias: the rest of the logit that belongs to no slot.
    """

    number: int
    key: str
    label: float | None
    logit: float
    score: float
    linear: tuple[tuple[str, str, float], ...]
    bias: float


@dataclass(frozen=True)
class Explanation:
    """The pairs by rank, and what they were measured on.

    Attributes:
        model: name of the interaction.
        split: which.
        rows: how many rows were looked at.
        pairs: all pairs that some row has, by rank.
        rank_correlation: Spearman's, between effect and attention over all pairs; None where one of the two is not.
        row: of an explanation of a single row.
        files: what was written.
    """

    model: str
    split: str
    rows: int
    pairs: tuple[PairEffect, ...]
    rank_correlation: float | None
    row: RowFacts | None = None
    files: tuple[str, ...] = ()

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain data with the first ``top`` pairs."""
        content = asdict(self)
        content["pairs"] = [
            {"name": pair.name, **asdict(pair), "fields": list(pair.fields)} for pair in self.pairs[:top]
        ]
        content["pairs_in_all"] = len(self.pairs)
        return content

    def table(self, top: int = 10) -> Group:
        """The first ``top`` pairs for a terminal."""
        one = self.row is not None
        table = Table(title=self._title(), title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column("pair")
        for heading in ("change of logit",) if one else ("effect (std of change)", "mean |change|"):
            table.add_column(heading, justify="right")
        table.add_column("attention", justify="right")
        table.add_column("its rank", justify="right")
        for pair in self.pairs[:top]:
            changes = (pair.effect,) if one else (pair.effect, pair.mean_change)
            place = "" if pair.attention_rank is None else str(pair.attention_rank)
            table.add_row(str(pair.rank), pair.name, *map(_number, changes), _number(pair.attention), place)
        parts: list[Any] = [table]
        if self.row is not None:
            parts.append(_linear_table(self.row, top))
        if self.rank_correlation is not None:
            parts.append(f"rank correlation of effect and attention: {self.rank_correlation:+.3f} ({WRONG})")
        parts += [f"wrote {file}" for file in self.files]
        return Group(*parts)

    def write_csv(self, path: Path) -> None:
        """All pairs, one a line."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["rank", "first", "second", "effect", "mean_change", "attention", "attention_rank", "present"]
            )
            for pair in self.pairs:
                shares = (pair.effect, pair.mean_change, pair.attention, pair.attention_rank, pair.present)
                writer.writerow([pair.rank, *pair.fields, *("" if value is None else value for value in shares)])

    def _title(self) -> str:
        if self.row is None:
            return f"pairs of {self.model} on {self.rows:,} rows of {self.split}"
        label = "" if self.row.label is None else f", label {self.row.label:g}"
        return f"row {self.row.number} of {self.split} ({self.row.key}{label}): {self.row.score:.6f}"


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where it is not defined."""
    if len(first) < 2:
        return None
    a, b = (_ranks(values) - (len(first) - 1) / 2 for values in (first, second))
    spread = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / spread) if spread > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _linear_table(row: RowFacts, top: int) -> Table:
    table = Table(title=f"single slots (bias {row.bias:+.4f}, logit {row.logit:+.4f})", title_justify="left")
    table.add_column("slot")
    table.add_column("holds")
    table.add_column("its own term", justify="right")
    for name, content, term in row.linear[:top]:
        table.add_row(name, content, _number(term))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
