"""The best constant prediction: what a model must beat."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from afm_ctr.metrics._rows import counted_rows
from afm_ctr.metrics.intervals import Interval, mean_interval
from afm_ctr.metrics.losses import row_losses


class Constant:
    """Weighted mean of the targets and their spread around it, merged exactly over processes.

    Means and squared deviations are combined as in Chan, Golub, LeVeque: Algorithms for Computing the Sample
    Variance, The American Statistician 37, 1983: no difference of large sums.

    Attributes:
        weight: Σ w.
        mean: Σ w·target / Σ w; 0 without rows.
    """

    def __init__(self) -> None:
        self.weight = self.mean = self._deviations = 0.0

    def update(self, targets: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Add rows ``[B]`` of any real targets, weights >= 0.

        Raises:
            UserError: a target that is NaN, a negative weight.
        """
        rows = counted_rows(targets, np.zeros(np.size(targets)), weights, "predictions", binary=False)
        weight = float(rows.weights.sum())
        if weight:
            mean = float(np.dot(rows.labels, rows.weights)) / weight
            self._add(weight, mean, float(np.dot(np.square(rows.labels - mean), rows.weights)))

    def state(self) -> dict[str, np.ndarray]:
        """The state for :meth:`merge` in another process."""
        return {"moments": np.array([self.weight, self.mean, self._deviations])}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another process's :meth:`state`."""
        self._add(*(float(value) for value in np.asarray(state["moments"], np.float64)))

    def rmse(self) -> float:
        """Root mean squared error of the mean, in the targets' unit; NaN without rows."""
        return math.sqrt(self._deviations / self.weight) if self.weight else float("nan")

    def _add(self, weight: float, mean: float, deviations: float) -> None:
        total = self.weight + weight
        if not total:
            return
        apart = mean - self.mean
        self.mean += apart * weight / total
        self._deviations += deviations + apart * apart * self.weight * weight / total
        self.weight = total


def gain_on_constant(
    loss: str, targets: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Interval | None:
    """How much lower the loss of scores is than that of the targets' mean for every row, over the same rows ``[n]``.

    Args:
        loss: ``log``, of targets 0/1 and logits, or ``squared``.
        targets: of each row.
        scores: of each row.
        weights: of each row; None: all 1.

    Returns:
        None if the mean's loss is not above 0, or there are no rows.
    """
    target = np.asarray(targets, np.float64).reshape(-1)
    if not target.size or target.min() == target.max():
        return None
    weight = np.ones_like(target) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    mean = float(np.average(target, weights=weight))
    if loss == "log" and not 0.0 < mean < 1.0:  # one class has almost no weight
        return None
    constant = mean if loss == "squared" else math.log(mean) - math.log1p(-mean)
    gained = row_losses(loss, target, np.full_like(target, constant)) - row_losses(loss, target, scores)
    return mean_interval(gained, weight)


def constant_log_loss(rate: float, offset: float = 0.0) -> float:
    """Log loss, in nats, of one probability for every row, if the share ``rate`` of the weight is positive.

    The probability is ``rate``, and the result its entropy, the divisor of normalised entropy (He et al., Practical
    Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014, equation 1). ``offset`` moves the logit of the
    constant, as a correction for thinned negatives moves those of a model.
    """
    if rate in (0.0, 1.0):
        return 0.0
    logit = math.log(rate) - math.log1p(-rate) + offset
    return float(rate * np.logaddexp(0.0, -logit) + (1.0 - rate) * np.logaddexp(0.0, logit))
