"""How far attention weights may be trusted: their ranking compared with that by effect, in figures and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from afm_ctr.metrics.intervals import Z_95

_TOP = 10
_HIGH, _LOW = 0.7, 0.3  # thresholds of the rank correlation


@dataclass(frozen=True)
class Agreement:
    """How two rankings of the same pairs agree."""

    # Spearman's rank correlation; None if undefined (all values of one are equal)
    correlation: float | None
    # lower end of its 95 % interval, as if the pairs were independent draws; None for fewer than four
    low: float | None
    high: float | None
    pairs: int  # number of ranked pairs: those that occur in some row
    top: int  # number of leading pairs of both rankings to compare: 10, or a third for fewer than 30 pairs
    common: int  # how many of them are in both
    evenness: float  # largest mean share of attention over the mean of all shares; near 1 attention hardly chooses
    # the rank correlation of effect and weighted attention; None if undefined
    weighted: float | None = None

    @property
    def by_chance(self) -> float:
        """How many pairs two independent rankings would have in common."""
        return self.top * self.top / self.pairs

    def figures(self) -> str:
        """The figures in one sentence."""
        if self.correlation is None:
            return f"Over {self.pairs:,} pairs the rank correlation of attention and effect is not defined."
        interval = "" if self.low is None else f" (95 % interval {self.low:+.2f} to {self.high:+.2f})"
        return (
            f"Over {self.pairs:,} pairs the rank correlation of attention and effect is {self.correlation:+.2f}"
            f"{interval}; of the {self.top} pairs with the largest effect {self.common} "
            f"{'is' if self.common == 1 else 'are'} among the {self.top} with the most attention, "
            f"where mere chance gives {self.by_chance:.1f}."
            + ("" if self.weighted is None else f" With weighted attention the correlation is {self.weighted:+.2f}.")
        )

    def verdict(self) -> str:
        """The conclusion for a reader, in one or two sentences."""
        if self.correlation is None:
            return "Nothing can be said of the attention weights here: go by the effect."
        finds = 2 * self.common > self.top
        if self.correlation >= _HIGH and finds:
            return (
                "Attention and effect tell much the same story here: the weights may serve as a first guide to what "
                "matters, and the effect decides."
            )
        if self.correlation >= _HIGH:
            return (
                "Attention follows the effect over all pairs and misses the strongest: do not pick out pairs by "
                "their weights."
            )
        if finds:
            return (
                "The weights find most of the strongest pairs, and the order of the others says little: trust a "
                "large weight as a hint, and check it against the effect."
            )
        if self.correlation >= _LOW:
            return (
                "The weights agree with the effect in part and miss most of the strongest pairs: attention alone "
                "would mislead, go by the effect."
            )
        return (
            "The weights are no measure of importance here: attention alone would mislead, since a pair may get much "
            "of it and do little to the score. Go by the effect."
        )


def agreement_of(effect: np.ndarray, attention: np.ndarray, weighted: np.ndarray | None = None) -> Agreement | None:
    """Compare effects (by size) and shares of attention, plain and weighted, of the same pairs, float [P].

    Returns:
        None for fewer than two pairs.
    """
    pairs = len(effect)
    if pairs < 2:
        return None
    top = max(1, min(_TOP, pairs // 3))
    first, second = (set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (effect, attention))
    correlation = rank_correlation(effect, attention)
    low, high = (None, None) if correlation is None else interval(correlation, pairs)
    mean = float(np.mean(attention))
    evenness = float(np.max(attention)) / mean if mean > 0 else 1.0
    by_weighted = None if weighted is None else rank_correlation(effect, weighted)
    return Agreement(correlation, low, high, pairs, top, len(first & second), evenness, by_weighted)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None if undefined."""
    if len(first) < 2:
        return None
    a, b = (_ranks(values) - (len(first) - 1) / 2 for values in (first, second))
    spread = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / spread) if spread > 0 else None


def interval(correlation: float, count: int) -> tuple[float | None, float | None]:
    """The 95 % interval of a rank correlation of ``count`` independent pairs of values; None for fewer than four.

    Source: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    Psychometrika 65, 2000: the variance of atanh(r) is (1 + r²/2) / (n − 3).
    """
    if count < 4:
        return None, None
    if abs(correlation) > 1 - 1e-12:
        return correlation, correlation
    middle = math.atanh(correlation)
    half = Z_95 * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(middle - half), math.tanh(middle + half)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]
