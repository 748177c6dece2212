"""95 % confidence intervals of figures."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from afm_ctr.metrics._rows import Floats, Rows, counted_rows

Z_95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval, which are None if the rows do not define one."""

    value: float
    low: float | None
    high: float | None

    def within(self, least: float, most: float = math.inf) -> Interval:
        """The same with its ends clipped to the range of the figure."""
        ends = (None if end is None else min(max(end, least), most) for end in (self.low, self.high))
        return Interval(self.value, *ends)

    @property
    def decimals(self) -> int:
        """Number of meaningful decimals: two digits of half the interval's width; 4 without ends."""
        if self.low is None or self.high is None or not self.high > self.low:
            return 4
        return min(max(1 - math.floor(math.log10((self.high - self.low) / 2)), 1), 6)

    def around(self) -> str:
        """Such as ``0.786 ± 0.021``, with half the interval's width; without ends only the value."""
        value = f"{self.value:.{self.decimals}f}"
        if self.low is None or self.high is None:
            return value
        return f"{value} ± {(self.high - self.low) / 2:.{self.decimals}f}"


def auc_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Interval | None:
    """The exact AUC with DeLong's interval, in O(n log n).

    With the share of negatives below a positive i (ties one half) as V10_i, and the share of positives above a
    negative j as V01_j, the AUC is the mean of either, and its variance that of the two means: DeLong, DeLong and
    Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic curves",
    Biometrics 44, 1988. Both shares follow from the ranks. With weights the means are weighted ones.

    Args:
        labels: 0 or 1, ``[n]``.
        scores: ``[n]``.
        weights: ``[n]`` >= 0; rows of weight 0 do not count.

    Returns:
        None unless there are both classes. No ends if a class has only one row, or if the variance is 0 (the classes
        are separated, or all scores equal): such rows say nothing about others.

    Raises:
        UserError: as :meth:`afm_ctr.metrics.ExactAUC.update`.
    """
    found = _delong(counted_rows(labels, scores, weights, "scores", binary=True))
    return None if found is None else found.within(0.0, 1.0)


def auc_gain(
    labels: npt.ArrayLike, scores: npt.ArrayLike, others: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Interval | None:
    """The AUC of scores minus that of other scores of the same rows ``[n]``, with DeLong's interval for such pairs.

    See :func:`auc_interval` for arguments, reference and None.
    """
    rows, those = (counted_rows(labels, some, weights, "scores", binary=True) for some in (scores, others))
    return _delong(rows, those)


def _delong(rows: Rows, less: Rows | None = None) -> Interval | None:
    shares = _shares(rows)
    if shares is None:
        return None
    if less is not None:
        other = _shares(less)
        assert other is not None
        shares = shares - other
    positive = rows.labels == 1
    value = float(np.average(shares[positive], weights=rows.weights[positive]))
    variance = 0.0
    for of_class in (positive, ~positive):
        weight = rows.weights[of_class]
        error = _standard_error(weight * shares[of_class], weight, value)
        if error is None:
            return Interval(value, None, None)
        variance += error**2
    return _around(value, math.sqrt(variance))


def _shares(rows: Rows) -> Floats | None:
    """For each positive the share of negatives below it, for each negative that of positives above it: ``[n]``."""
    distinct, place = np.unique(rows.predictions, return_inverse=True)
    positives = np.bincount(place, rows.weights * rows.labels, distinct.size)
    negatives = np.bincount(place, rows.weights * (1.0 - rows.labels), distinct.size)
    of_positives, of_negatives = positives.sum(), negatives.sum()
    if not of_positives or not of_negatives:
        return None
    below = (np.cumsum(negatives) - 0.5 * negatives) / of_negatives
    above = 1.0 - (np.cumsum(positives) - 0.5 * positives) / of_positives
    return np.where(rows.labels == 1, below[place], above[place])


def mean_interval(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Interval | None:
    """A weighted mean over independent rows ``[n]`` with its normal interval; None without weight."""
    number = np.asarray(values, np.float64).reshape(-1)
    weight = np.ones_like(number) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    counted = weight > 0
    return ratio_interval((weight * number)[counted], weight[counted])


def ratio_interval(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> Interval | None:
    """``sum(a) / sum(b)`` over independent rows ``[n]`` with its normal interval.

    The variance is that of the residuals ``a - r b`` (linearised: Cochran, "Sampling Techniques", 3rd edition,
    section 6.4). None if the denominators sum to 0; no ends for a single row or a variance of 0.
    """
    a, b = (np.asarray(part, np.float64).reshape(-1) for part in (numerators, denominators))
    total = b.sum()
    if not total:
        return None
    value = float(a.sum() / total)
    error = _standard_error(a, b, value)
    return Interval(value, None, None) if error is None else _around(value, error)


def wilson(share: float, trials: float) -> Interval:
    """A share of this many independent trials with Wilson's score interval, which stays inside [0, 1].

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927. For weighted rows
    the number of trials is :func:`effective_rows`.
    """
    if not trials > 0:
        return Interval(share, None, None)
    square = Z_95 * Z_95 / trials
    middle = (share + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return Interval(share, min(middle - half, share), max(middle + half, share)).within(0.0, 1.0)


def effective_rows(weights: Floats) -> float:
    """The number of rows of equal weight with the same variance: (Σw)² / Σw² (Kish)."""
    squares = float(np.dot(weights, weights))
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _standard_error(numerators: Floats, denominators: Floats, ratio: float) -> float | None:
    residuals = numerators - ratio * denominators
    rows = residuals.size
    if rows < 2:
        return None
    return math.sqrt(rows / (rows - 1) * float(np.dot(residuals, residuals))) / float(denominators.sum())


def _around(value: float, error: float) -> Interval:
    # A variance of 0 up to rounding is not an interval.
    if error <= 1e-12 * max(abs(value), 1.0):
        return Interval(value, None, None)
    return Interval(value, value - Z_95 * error, value + Z_95 * error)
