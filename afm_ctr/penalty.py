"""The penalty that suits a log's weights: logistic regressions on parts of its rows, tested on the other parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from afm_ctr.splitmix import finalise

_ROWS, _FEWEST, _ENTRIES = 20_000, 2_000, 1_000_000  # rows that suffice; their entries
_FOLDS = 4
_GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of C
_MOST_PRODUCTS = 300  # per step
_ENOUGH = 1e-5  # least improvement of the mean loss by a step


class TrialRows(NamedTuple):
    """Rows for the trials."""

    ids: np.ndarray  # int64 [n, F]; 0 is absent
    vals: np.ndarray  # float [n, F]
    labels: np.ndarray  # [n]; positive above 0
    weights: np.ndarray | None = None  # [n]; ``None``: all 1


def rows_to_try(slots: int) -> int:
    """The number of rows that suffices and takes only seconds."""
    return max(min(_ROWS, _ENTRIES // slots), _FEWEST)


def best_c(rows: TrialRows) -> float | None:
    """C of the logistic regression with the least log loss on rows that it was not fitted to.

    Four times three quarters of the rows are fitted and the rest is scored; the quarters are not in order of time, as
    prepared rows are in no order. C grows until it is certainly too large: a small penalty takes long to fit.

    Returns:
        The best of 0.003, 0.01, … 30; ``None``: a part has only one label.
    """
    positive = (rows.labels > 0).astype(np.float64)
    count = len(positive)
    fold = finalise(np.arange(count, dtype=np.uint64)) % np.uint64(_FOLDS)
    sums = np.bincount(fold, positive, minlength=_FOLDS)
    if ((sums == 0) | (sums == np.bincount(fold, minlength=_FOLDS))).any():
        return None
    weights = np.ones(count) if rows.weights is None else rows.weights.astype(np.float64)
    if not weights.sum() > 0:
        return None
    weights = weights * (count / weights.sum())
    design = Design.of(rows)
    parts = [(design.take(fold != at), design.take(fold == at), fold != at, fold == at) for at in range(_FOLDS)]
    fitted = [np.zeros(design.size + 1) for _ in parts]
    tried: list[np.ndarray] = []
    for c in _GRID:
        losses = np.empty(count)
        for at, (seen, rest, is_seen, is_rest) in enumerate(parts):
            fitted[at] = fit(seen, positive[is_seen], weights[is_seen], c, fitted[at])
            losses[is_rest] = weights[is_rest] * _losses(positive[is_rest], rest.dot(fitted[at]))
        tried.append(losses)
        worse = losses - min(tried, key=np.mean)
        if worse.mean() > 2 * worse.std() / count**0.5:
            break
    return _GRID[int(np.argmin([losses.mean() for losses in tried]))]


class Design:
    """A sparse matrix [n, size + 1] whose last column is 1.

    Args:
        places: the column of each entry, int [n, F].
        vals: the entries, float64 [n, F].
        size: columns before the last one.
    """

    def __init__(self, places: np.ndarray, vals: np.ndarray, size: int) -> None:
        self.places, self.vals, self.size = places, vals, size
        self._flat = places.ravel()

    @classmethod
    def of(cls, rows: TrialRows) -> Design:
        """One column per id, which holds its value."""
        known, places = np.unique(rows.ids, return_inverse=True)
        vals = np.where(rows.ids > 0, rows.vals, 0.0).astype(np.float64)
        return cls(places.reshape(rows.ids.shape), vals, len(known))

    def take(self, rows: np.ndarray) -> Design:
        """Some of the rows, by a mask."""
        return Design(self.places[rows], self.vals[rows], self.size)

    def dot(self, weights: np.ndarray) -> np.ndarray:
        """The product with a vector [size + 1]: [n]."""
        product: np.ndarray = np.einsum("nf,nf->n", self.vals, weights[self.places]) + weights[-1]
        return product

    def sums(self, of_rows: np.ndarray) -> np.ndarray:
        """The product of a vector [n] with the matrix: [size + 1]."""
        return self._sums(self.vals, of_rows)

    def square_sums(self, of_rows: np.ndarray) -> np.ndarray:
        """The product of a vector [n] with the squares of the entries: [size + 1]."""
        return self._sums(self.vals * self.vals, of_rows)

    def _sums(self, vals: np.ndarray, of_rows: np.ndarray) -> np.ndarray:
        found = np.bincount(self._flat, (vals * of_rows[:, None]).ravel(), minlength=self.size + 1)
        found[-1] = of_rows.sum()
        return found


def fit(design: Design, positive: np.ndarray, weights: np.ndarray, c: float, start: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression: least Σ weight · log loss + |w|² / 2C, the last one without penalty.

    Newton's method; its linear equations by conjugate gradients with the diagonal, while they help (Lin, Weng,
    Keerthi: Trust region Newton method for logistic regression, JMLR 9, 2008, with halved steps for the region).

    Args:
        design: n rows.
        positive: 0 or 1, float64 [n].
        weights: of the rows, float64 [n].
        start: initial weights, float64 [size + 1].
    """
    penalty = np.full(design.size + 1, 1 / c)
    penalty[-1] = 0.0
    enough = _ENOUGH * len(positive)
    found, logits = start, design.dot(start)

    def objective(at: np.ndarray, logits: np.ndarray) -> float:
        return _dot(weights, _losses(positive, logits)) + _dot(at * at, penalty) / 2

    now = objective(found, logits)
    for _ in range(30):
        chances = chances_of(logits)
        curve = weights * chances * (1 - chances)
        gradient = design.sums(weights * (chances - positive)) + penalty * found
        scale = design.square_sums(curve) + penalty
        step = _solved(_Curvature(design, curve, penalty), -gradient, scale)
        ahead, size = design.dot(step), 1.0
        after = objective(found + step, logits + ahead)
        while after > now and size > 1e-4:
            size /= 2
            after = objective(found + size * step, logits + size * ahead)
        if after >= now:
            break
        found, logits, gain, now = found + size * step, logits + size * ahead, now - after, after
        if gain < enough:
            break
    return found


class _Curvature(NamedTuple):
    """The objective's second derivatives."""

    design: Design
    curve: np.ndarray  # of each row's loss
    penalty: np.ndarray

    def times(self, at: np.ndarray) -> np.ndarray:
        return self.design.sums(self.curve * self.design.dot(at)) + self.penalty * at


def _solved(curvature: _Curvature, wanted: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A step whose product with the curvature is ``wanted``, to a tenth; ``scale``: the curvature's diagonal."""
    scale = np.maximum(scale, 1e-12)
    found, rest = np.zeros_like(wanted), wanted
    towards = rest / scale
    norm = first = _dot(rest, towards)
    for _ in range(_MOST_PRODUCTS):
        if not norm > 0.01 * first:
            break
        product = curvature.times(towards)
        length = norm / _dot(towards, product)
        found, rest = found + length * towards, rest - length * product
        scaled = rest / scale
        norm, before = _dot(rest, scaled), norm
        towards = scaled + norm / before * towards
    return found


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    """Without BLAS, whose sums depend on its threads, which also busy-wait on a machine with other work."""
    return float(np.einsum("n,n->", one, other))


def chances_of(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the positive label, [n]."""
    return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def _losses(positive: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - positive * logits
