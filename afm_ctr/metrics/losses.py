"""Means over rows: log loss and root mean squared error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afm_ctr.errors import UserError
from afm_ctr.metrics._rows import counted_rows

_SMALLEST = 1e-15


class _Mean:
    """A weighted mean, stored as its numerator and weight, so that it merges over processes."""

    def __init__(self) -> None:
        self.total = 0.0
        self.weight = 0.0
        self.rows = 0

    def _add(self, values: np.ndarray, weights: np.ndarray) -> None:
        self.total += float(np.dot(values, weights))
        self.weight += float(weights.sum())
        self.rows += values.size

    def state(self) -> dict[str, np.ndarray]:
        """The state for :meth:`merge` in another process."""
        return {"sums": np.array([self.total, self.weight]), "rows": np.asarray(self.rows, np.int64)}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        total, weight = np.asarray(state["sums"], np.float64)
        self.total += float(total)
        self.weight += float(weight)
        self.rows += int(state["rows"])

    def reason(self) -> str | None:
        """Why :meth:`result` is NaN; None if it is a number."""
        return None if self.weight else "no rows"

    def result(self) -> float:
        return self.total / self.weight if self.weight else float("nan")


def row_losses(loss: str, targets: npt.ArrayLike, scores: npt.ArrayLike) -> np.ndarray:
    """The loss of each row, float64 ``[n]``: ``log``, in nats, of targets 0/1 and logits; or ``squared``."""
    target, score = np.asarray(targets, np.float64), np.asarray(scores, np.float64)
    if loss == "squared":
        return np.square(target - score)
    # softplus(-z) for a positive and softplus(z) for a negative: no cancellation, no overflow
    against = np.where(target == 1, -score, score)
    losses: np.ndarray = np.maximum(against, 0.0) + np.log1p(np.exp(-np.abs(score)))
    return losses


class LogLoss(_Mean):
    """Mean of ``-y ln p - (1-y) ln(1-p)`` in nats over binary labels 0/1, weighted."""

    def update(
        self,
        labels: npt.ArrayLike,
        logits: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        *,
        probabilities: npt.ArrayLike | None = None,
    ) -> None:
        """Add rows ``[B]``: from logits (exact however large), or else from probabilities (kept 1e-15 off 0 and 1).

        Raises:
            UserError: a prediction that is not finite, a label that is neither 0 nor 1, a probability outside [0, 1].
        """
        if (logits is None) == (probabilities is None):
            raise ValueError("give either logits or probabilities")
        if logits is not None:
            rows = counted_rows(labels, logits, weights, "logits", binary=True)
            losses = row_losses("log", rows.labels, rows.predictions)
        else:
            rows = counted_rows(labels, probabilities, weights, "probabilities", binary=True)  # type: ignore[arg-type]
            p = rows.predictions
            if p.size and (p.min() < 0 or p.max() > 1):
                bad = p[(p < 0) | (p > 1)][0]
                raise UserError(f"a probability is {bad:g}, outside [0, 1]: give logits as logits")
            right = np.where(rows.labels == 1, p, 1.0 - p)
            losses = -np.log(np.maximum(right, _SMALLEST))
        self._add(losses, rows.weights)


class RMSE(_Mean):
    """Root of the weighted mean squared difference between targets and predictions, in the targets' unit.

    The squared loss trains on -1/+1 for binary labels (Xiao et al. 2017, section 3.3); RMSE on that scale needs the
    targets on it too: ``rmse.update(signed(labels), scores)``.
    """

    def update(
        self, targets: npt.ArrayLike, predictions: npt.ArrayLike, weights: npt.ArrayLike | None = None
    ) -> None:
        """Add rows ``[B]`` of any real targets.

        Raises:
            UserError: a target that is NaN or a prediction that is not finite, a negative weight.
        """
        rows = counted_rows(targets, predictions, weights, "predictions", binary=False)
        self._add(np.square(rows.labels - rows.predictions), rows.weights)

    def result(self) -> float:
        return float(np.sqrt(super().result()))
