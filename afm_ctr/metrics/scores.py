"""The distinct scores of all rows with the weight of positives and negatives at each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afm_ctr.metrics._folded import FoldedRows
from afm_ctr.metrics._rows import Floats, column, counted_rows


class ScoreTable:
    """Distinct scores, sorted, each with its weight of positives and of negatives.

    This is all that ranking and calibration metrics need, it merges exactly, and it is never larger than the
    number of rows: 24 bytes a distinct score.

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
        """What another process needs to :meth:`merge` this table into its own."""
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
