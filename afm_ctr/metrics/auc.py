"""The distinct scores of all rows, and the exact area under the ROC curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afm_ctr.metrics._rows import Floats, FoldedRows, column, counted_rows


class ScoreTable:
    """Distinct scores, sorted, each with its weight of positives and of negatives.

    Ranking and calibration metrics need nothing else; it merges exactly, and has at most as many entries as rows: 24
    bytes per distinct score.

    ``scores`` float64 ``[u]`` ascending, ``positives`` and ``negatives`` float64 ``[u]`` in units of weight.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._folded = FoldedRows(np.float64)

    def update(self, labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Add rows: labels 0/1 ``[B]``, scores ``[B]``, weights ``[B]`` >= 0 (0 = the row does not count).

        Raises:
            UserError: a score that is not finite, a label that is neither 0 nor 1, a negative weight.
        """
        rows = counted_rows(labels, scores, weights, "scores", binary=True)
        self.rows += rows.labels.size
        self._folded.add(rows.predictions, rows.weights * rows.labels, rows.weights * (1.0 - rows.labels))

    @property
    def table(self) -> tuple[Floats, Floats, Floats]:
        """``(scores, positives, negatives)``, float64 ``[u]`` each, scores ascending and distinct."""
        scores, positives, negatives = self._folded.columns
        return scores, positives, negatives

    def state(self) -> dict[str, np.ndarray]:
        """The state for :meth:`merge` in another process."""
        scores, positives, negatives = self.table
        return {
            "rows": np.asarray(self.rows, np.int64),
            "scores": scores,
            "positives": positives,
            "negatives": negatives,
        }

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another table's :meth:`state`."""
        self.rows += int(state["rows"])
        self._folded.add(column(state, "scores"), column(state, "positives"), column(state, "negatives"))


class ExactAUC:
    """AUC as the probability that a positive row outranks a negative one, ties counting one half.

    No bins: the Mann-Whitney statistic over the distinct scores,
    ``sum_s p_s (N_<s + n_s / 2) / (P N)`` with p, n the weights of positives and negatives at score s. It equals
    ``sklearn.metrics.roc_auc_score(..., sample_weight=...)`` to rounding, and merges over processes without loss.

    Args:
        table: a :class:`ScoreTable` shared with another metric; by default the metric has its own.
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
        """Why :meth:`result` is NaN; None if it is a number."""
        _, positives, negatives = self.table.table
        if not positives.size:
            return "no rows"
        if not positives.sum():
            return "all rows are negative"
        return None if negatives.sum() else "all rows are positive"

    def result(self) -> float:
        """The AUC in [0, 1]; NaN unless there are both classes (see :meth:`reason`)."""
        if self.reason():
            return float("nan")
        _, positives, negatives = self.table.table
        below = np.cumsum(negatives) - negatives
        return float(np.dot(positives, below + 0.5 * negatives) / (positives.sum() * negatives.sum()))
