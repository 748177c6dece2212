"""Calibration: predicted against observed probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from afm_ctr.errors import UserError
from afm_ctr.metrics._rows import Floats
from afm_ctr.metrics.auc import ScoreTable


class CalibrationBin(NamedTuple):
    """One point of the curve: predictions from ``low`` to ``high``, both found in the data, and their outcome."""

    low: float
    high: float
    weight: float
    predicted: float
    observed: float


class Calibration:
    """Predicted against observed probability: in total, along a curve, and as one error.

    * :meth:`result` is sum of predictions / sum of observed positives (1 = right on average);
    * :meth:`curve` cuts the rows, sorted by prediction, into ``bins`` of nearly equal weight (rows with the same
      prediction stay together), which suits click rates that crowd near 0;
    * :meth:`ece` is ``sum_b (W_b / W) |mean predicted_b - mean observed_b|`` over those bins (Guo et al., "On
      Calibration of Modern Neural Networks", ICML 2017, with bins of equal mass).

    Args:
        bins: number of bins of the curve.
        table: a :class:`ScoreTable` shared with another metric; by default the metric has its own.
        transform: turns the table's scores into probabilities if they are something else, such as logits.
    """

    def __init__(
        self, bins: int = 10, table: ScoreTable | None = None, transform: Callable[[Floats], Floats] | None = None
    ) -> None:
        if bins < 1:
            raise UserError(f"calibration bins: {bins} is less than 1")
        self.bins = bins
        self.table = table or ScoreTable()
        self._transform = transform

    def update(self, labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Add rows ``[B]``: labels 0/1, probabilities (or the input of ``transform``), weights >= 0.

        Raises:
            UserError: a probability that is NaN or outside [0, 1], a label that is neither 0 nor 1.
        """
        if self._transform is None:
            p = np.asarray(scores, np.float64)
            if ((p < 0) | (p > 1)).any():
                raise UserError(f"a probability is {p[(p < 0) | (p > 1)][0]:g}, outside [0, 1]")
        self.table.update(labels, scores, weights)

    def state(self) -> dict[str, np.ndarray]:
        return self.table.state()

    def merge(self, state: dict[str, np.ndarray]) -> None:
        self.table.merge(state)

    def _columns(self) -> tuple[Floats, Floats, Floats]:
        scores, positives, negatives = self.table.table
        probabilities = scores if self._transform is None else self._transform(scores)
        return probabilities, positives, positives + negatives

    def reason(self) -> str | None:
        """Why :meth:`result` is NaN; None if it is a number."""
        _, positives, weight = self._columns()
        if not weight.size:
            return "no rows"
        return None if positives.sum() else "all rows are negative"

    def result(self) -> float:
        """Sum of predictions / sum of observed positives; NaN without positives (see :meth:`reason`)."""
        if self.reason():
            return float("nan")
        probabilities, positives, weight = self._columns()
        return float(np.dot(probabilities, weight) / positives.sum())

    def curve(self) -> list[CalibrationBin]:
        """The bins in ascending order of prediction; fewer than ``bins`` if there are few distinct predictions."""
        probabilities, positives, weight = self._columns()
        if not weight.size:
            return []
        middle = np.cumsum(weight) - 0.5 * weight
        number = np.minimum((middle / weight.sum() * self.bins).astype(np.int64), self.bins - 1)
        first = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
        last = np.r_[first[1:], number.size] - 1
        mass = np.add.reduceat(weight, first)
        predicted = np.add.reduceat(weight * probabilities, first) / mass
        observed = np.add.reduceat(positives, first) / mass
        columns = (probabilities[first], probabilities[last], mass, predicted, observed)
        return [CalibrationBin(*map(float, row)) for row in zip(*columns, strict=True)]

    def ece(self) -> float:
        """Expected calibration error over :meth:`curve`, in [0, 1]; NaN without rows."""
        curve = self.curve()
        total = sum(point.weight for point in curve)
        return sum(p.weight * abs(p.predicted - p.observed) for p in curve) / total if curve else float("nan")
