"""The exact area under the ROC curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afm_ctr.metrics.scores import ScoreTable


class ExactAUC:
    """AUC as the probability that a positive row outranks a negative one, ties counting one half.

    No bins: the Mann-Whitney statistic over the distinct scores,
    ``sum_s p_s (N_<s + n_s / 2) / (P N)`` with p, n the weights of positives and negatives at score s. It equals
    ``sklearn.metrics.roc_auc_score(..., sample_weight=...)`` to rounding, and merges over processes without loss.

    Args:
        table: a :class:`ScoreTable` shared with another metric; by default the metric keeps one of its own.
    """

    def __init__(self, table: ScoreTable | None = None) -> None:
        self.table = table or ScoreTable()

    def update(self, labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Add rows ``[B]``; see :meth:`ScoreTable.update`. Logits rank finer than probabilities, which saturate."""
        self.table.update(labels, scores, weights)

    def state(self) -> dict[str, np.ndarray]:
        return self.table.state()

    def merge(self, state: dict[str, np.ndarray]) -> None:
        self.table.merge(state)

    def reason(self) -> str | None:
        """Why :meth:`result` is NaN; None when it is a number."""
        _, positives, negatives = self.table.table
        if not positives.size:
            return "no rows"
        if not positives.sum():
            return "all rows are negative"
        return None if negatives.sum() else "all rows are positive"

    def result(self) -> float:
        """The AUC in [0, 1]; NaN where there are not both classes (see :meth:`reason`)."""
        if self.reason():
            return float("nan")
        _, positives, negatives = self.table.table
        below = np.cumsum(negatives) - negatives
        return float(np.dot(positives, below + 0.5 * negatives) / (positives.sum() * negatives.sum()))
