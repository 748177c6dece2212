"""Signals from a log's rows for its settings: the penalty of weights, and whether pairs of ids add to their sum."""

from __future__ import annotations

import itertools

import numpy as np

from afm_ctr.penalty import Design, TrialRows, best_c, chances_of, fit
from afm_ctr.sizing import UNKNOWN, Signals

_MOST_SLOTS = 40  # slots that are tried, those with the most ids


def signals_of(rows: TrialRows) -> Signals:
    """The signals of some train rows."""
    c = best_c(rows)
    return UNKNOWN if c is None else Signals(c, strongest_pair(rows, c))


def strongest_pair(rows: TrialRows, c: float) -> float:
    """How far the residuals of rows that share two ids agree, for the pair of slots where they agree most.

    If the logistic regression explains a row, its residual r has mean 0, and those of two rows are independent. So
    the sum of r_i r_j over two different rows with both ids in common is 0 up to chance; it is given in its standard
    deviations, from the probabilities or from the residuals, whichever is larger (with rare positives a few
    coincidences are no proof). Among some hundred pairs chance reaches 4.

    Args:
        rows: with both labels. Slots count if each id in them has value 1.
        c: of the logistic regression.
    """
    present = rows.ids > 0
    positive = (rows.labels > 0).astype(np.float64)
    weights = np.ones(len(positive)) if rows.weights is None else rows.weights.astype(np.float64)
    design = Design.of(rows)
    places = design.places
    fitted = fit(design, positive, weights, c, np.zeros(design.size + 1))
    chances = chances_of(design.dot(fitted))
    residuals, variances = weights * (positive - chances), weights**2 * chances * (1 - chances)
    plain = ((rows.vals == 1) | ~present).all(axis=0)
    slots = [(len(np.unique(places[:, slot])), slot) for slot in np.flatnonzero(plain).tolist()]
    looked_at = [slot for _, slot in sorted(slots, reverse=True)[:_MOST_SLOTS]]
    found = [
        _agreement(residuals, variances, places[:, one] * design.size + places[:, other])
        for one, other in itertools.combinations(looked_at, 2)
    ]
    return max(found, default=0.0)


def _agreement(residuals: np.ndarray, variances: np.ndarray, cells: np.ndarray) -> float:
    """Σ r_i r_j over two rows of a cell, in its standard deviations."""
    _, cell = np.unique(cells, return_inverse=True)

    def between(values: np.ndarray) -> float:
        """Σ values_i values_j over two different rows of a cell."""
        return float((np.bincount(cell, values) ** 2).sum() - (values**2).sum())

    spread = 2 * max(between(variances), between(residuals**2))
    return between(residuals) / spread**0.5 if spread > 0 else 0.0
