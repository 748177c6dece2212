"""The distribution of the logs: the values of cells, and their effects on the probability of a click.

    logit(row) = bias + sum of main effects + sum over planted pairs of strength * s_a(row) * s_b(row)

The scores s of a planted column are near +1 and -1, with mean 0 and variance 1 under the column's distribution; the
columns are independent. So a planted pair has no main effects, and a model without interactions cannot find it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afm_ctr.splitmix import finalise

INTEGERS = 13
CATEGORIES = 26
CELLS = INTEGERS + CATEGORIES
COLUMNS = [f"I{i + 1}" for i in range(INTEGERS)] + [f"C{i + 1}" for i in range(CATEGORIES)]
# Random 64-bit words per row: one per cell, and one for the label and for malformed lines. A multiple of 4, the words
# of one Philox step, so that the stream can be entered at any row.
WORDS = CELLS + 1
LARGEST_INTEGER = 9_999_999
_MAIN_DEVIATION = 0.9  # of all main effects together
_EFFECT_ROWS = 4096  # a column's main effects repeat after this many ids: those of rarer ids could not be learned

# (share of missing cells, median, spread): the logarithm of a value is logistic, hence the heavy tail.
_INTEGER_SHAPES: list[tuple[float, float, float]] = [
    (0.45, 1.2, 0.95), (0.0, 6.0, 1.60), (0.21, 6.5, 0.90), (0.21, 4.5, 0.70), (0.03, 330.0, 1.55),
    (0.22, 32.0, 0.98), (0.04, 3.4, 1.05), (0.0, 7.5, 0.75), (0.04, 39.0, 0.90), (0.45, 1.1, 0.30),
    (0.04, 1.9, 0.55), (0.77, 0.6, 0.70), (0.21, 4.6, 0.75),
]  # fmt: skip
_INTEGER_SHIFT = {1: -3}  # the second column counts from below zero, as Criteo's does

# (share of missing cells, number of ids), after the first 120,000 rows of Criteo.
_CATEGORY_SHAPES: list[tuple[float, int]] = [
    (0.0, 580), (0.0, 520), (0.035, 55_000), (0.035, 29_000), (0.0, 60), (0.12, 24), (0.0, 8300), (0.0, 40),
    (0.0, 3), (0.0, 13_000), (0.0, 4000), (0.035, 50_000), (0.0, 2900), (0.0, 26), (0.0, 5700), (0.035, 41_000),
    (0.0, 10), (0.0, 2700), (0.44, 1300), (0.44, 4), (0.035, 46_000), (0.76, 18), (0.0, 15), (0.035, 13_500),
    (0.44, 50), (0.44, 10_300),
]  # fmt: skip


@dataclass(frozen=True)
class PlantedPair:
    """Two columns that matter only together.

    ``strength`` is the standard deviation of their term of the logit, over rows that have both.
    """

    first: str
    second: str
    strength: float


PLANTED = (
    PlantedPair("C6", "C14", 0.9),
    PlantedPair("C5", "C23", 0.8),
    PlantedPair("C9", "C17", 0.7),
    PlantedPair("C8", "C20", 0.9),
)


class Draws:
    """Uniform numbers of rows ``first .. first+count-1``, which depend only on (seed, row, column).

    Philox is counter-based, so its stream can be entered at any row: the logs do not depend on the block size.
    """

    def __init__(self, seed: int, first: int, count: int) -> None:
        # One step of the counter yields four words.
        generator = np.random.Philox(key=np.array([seed & 0xFFFFFFFFFFFFFFFF, 0], np.uint64))
        generator.advance(first * WORDS // 4)
        words = generator.random_raw(count * WORDS).reshape(count, WORDS)
        self._halves = words.view(np.uint32).reshape(count, WORDS, 2)

    def value(self, cell: int) -> np.ndarray:
        """Uniform float64 [n] in (0, 1) that determine the cell's value."""
        return (self._halves[:, cell, 0] + 0.5) * 2.0**-32

    def present(self, cell: int, missing: float) -> np.ndarray:
        """bool [n]: whether the cell is present."""
        return self._halves[:, cell, 1] >= np.uint32(missing * 2**32)

    def click(self) -> np.ndarray:
        return self.value(CELLS)

    def health(self) -> np.ndarray:
        """uint32 [n]: decides whether a line is malformed, and how."""
        return self._halves[:, CELLS, 1]


@dataclass(frozen=True)
class Rows:
    """Well-formed rows before they are written."""

    integers: np.ndarray  # int64 [n, 13]
    categories: np.ndarray  # int64 [n, 26], the index of the id inside its column
    present: np.ndarray  # bool [n, 39]
    logit: np.ndarray  # float64 [n], the true one
    clicks: np.ndarray  # bool [n]


class Truth:
    """Everything that the seed determines: effects of ids, scores of planted columns, the bias.

    Args:
        ctr: mean probability of a click, in (0, 1); the bias is fitted to it on 16,384 sample rows.
    """

    def __init__(self, seed: int, ctr: float = 0.25) -> None:
        self.seed = seed
        random = _Normal(seed)
        planted = {name for pair in PLANTED for name in (pair.first, pair.second)}
        free = [name for name in COLUMNS if name not in planted]
        # The more ids, the smaller the effects: those of rare ids could not be learned from small logs.
        sizes = dict(zip(COLUMNS[INTEGERS:], (size for _, size in _CATEGORY_SHAPES), strict=True))
        weights = np.array([min(1.0, np.sqrt(500 / sizes.get(name, 1))) for name in free])
        each = dict(zip(free, _MAIN_DEVIATION * weights / np.sqrt(np.sum(weights**2)), strict=True))
        self.scores: dict[str, np.ndarray] = {}
        self._effects: dict[str, np.ndarray] = {}
        self._slopes: dict[str, float] = {}
        for column, (_, size) in enumerate(_CATEGORY_SHAPES):
            name = COLUMNS[INTEGERS + column]
            weight = _shares(size)
            if name in planted:
                self.scores[name] = _balanced_scores(weight, random.draw(size))
            else:
                self._effects[name] = each[name] * _standardised(random.draw(len(weight)), weight)
        for name, slope in zip(COLUMNS[:INTEGERS], random.draw(INTEGERS), strict=True):
            self._slopes[name] = each[name] * float(np.sign(slope) * np.clip(np.abs(slope), 0.5, 1.5))
        self.bias = 0.0
        self.bias = self._bias_for(ctr)

    def rows(self, first: int, count: int) -> tuple[Rows, Draws]:
        """Rows ``first .. first+count-1`` and the random draws behind them."""
        draws = Draws(self.seed, first, count)
        integers = np.empty((count, INTEGERS), np.int64)
        categories = np.empty((count, CATEGORIES), np.int64)
        present = np.empty((count, CELLS), bool)
        logit = np.full(count, self.bias)
        for column, (missing, median, spread) in enumerate(_INTEGER_SHAPES):
            uniform = draws.value(column)
            odds = np.log(uniform / (1.0 - uniform))
            value = np.minimum(median * np.exp(spread * odds), LARGEST_INTEGER).astype(np.int64)
            integers[:, column] = value + _INTEGER_SHIFT.get(column, 0)
            present[:, column] = draws.present(column, missing)
            # A logistic variable has the standard deviation pi / sqrt(3).
            logit += self._slopes[COLUMNS[column]] * np.sqrt(3.0) / np.pi * odds * present[:, column]
        planted: dict[str, np.ndarray] = {}
        for column, (missing, size) in enumerate(_CATEGORY_SHAPES):
            cell = INTEGERS + column
            name = COLUMNS[cell]
            # P(id = r) = ln((r+2)/(r+1)) / ln(size+1): Zipf's law with exponent 1.
            ids = np.exp(draws.value(cell) * np.log(size + 1.0)).astype(np.int64) - 1
            ids = np.minimum(ids, size - 1)
            categories[:, column] = ids
            present[:, cell] = draws.present(cell, missing)
            if name in self.scores:
                planted[name] = self.scores[name][ids] * present[:, cell]
            else:
                logit += self._effects[name][ids % _EFFECT_ROWS] * present[:, cell]
        for pair in PLANTED:
            logit += pair.strength * planted[pair.first] * planted[pair.second]
        clicks = draws.click() < 1.0 / (1.0 + np.exp(-logit))
        return Rows(integers, categories, present, logit, clicks), draws

    def _bias_for(self, ctr: float) -> float:
        # Rows far beyond those that will be written, so that the sample is not part of the logs.
        logit = self.rows(1 << 50, 1 << 14)[0].logit
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            if np.mean(1.0 / (1.0 + np.exp(-(logit + middle)))) < ctr:
                low = middle
            else:
                high = middle
        return low


def token_hashes(column: int, ids: np.ndarray) -> np.ndarray:
    """uint32 of every id: its eight hexadecimal digits in the log. They differ between columns for the same id."""
    mixed = finalise(ids.astype(np.uint64) + np.uint64((column + 1) << 32))
    return (mixed >> np.uint64(32)).astype(np.uint32)


class _Normal:
    """Standard normal numbers from raw words, so that they do not change with NumPy's version."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.Philox(key=np.array([seed & 0xFFFFFFFFFFFFFFFF, 1], np.uint64))

    def draw(self, count: int) -> np.ndarray:
        uniform = ((self._words.random_raw(2 * count) >> np.uint64(11)) + 0.5) * 2.0**-53
        return np.sqrt(-2.0 * np.log(uniform[:count])) * np.cos(2.0 * np.pi * uniform[count:])


def _shares(size: int) -> np.ndarray:
    """Probabilities of ids, added up for ids that share an effect: float64 [min(size, 4096)]."""
    ids = np.arange(size)
    share = np.log((ids + 2.0) / (ids + 1.0)) / np.log(size + 1.0)
    return np.bincount(ids % _EFFECT_ROWS, weights=share)


def _standardised(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``values`` with mean 0 and variance 1 under ``weight``."""
    centred = values - np.sum(values * weight)
    return centred / np.sqrt(np.sum(centred**2 * weight))


def _balanced_scores(weight: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Scores near +1 and -1, each sign with about half of the probability mass, standardised exactly."""
    scores = np.empty(len(weight))
    mass = 0.0
    for index in np.argsort(-weight, kind="stable"):
        sign = -1.0 if mass > 0 else 1.0
        scores[index] = sign * (1.0 + 0.1 * np.tanh(noise[index]))
        mass += sign * weight[index]
    return _standardised(scores, weight)
