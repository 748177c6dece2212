"""AUC within groups (users, sessions, requests), averaged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afm_ctr.errors import UserError
from afm_ctr.metrics._rows import Floats, FoldedRows, column, counted_rows


class GroupAUC:
    """The mean of the exact AUC of every group that has both classes, weighted by the group's weight.

    A group's weight is the sum of its rows' weights, that is its number of impressions when all weights are 1
    (GAUC of Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, section 6.2).
    Groups of one class and rows without a group are skipped, and counted.
    """

    def __init__(self) -> None:
        self.rows_without_group = 0
        self._folded = FoldedRows(np.int64, np.float64)

    def update(
        self,
        labels: npt.ArrayLike,
        scores: npt.ArrayLike,
        weights: npt.ArrayLike | None,
        groups: npt.ArrayLike,
        has_group: npt.ArrayLike | None = None,
    ) -> None:
        """Add rows ``[B]``: labels 0/1, scores, weights >= 0, groups int64; ``has_group`` bool (None: all have one).

        Raises:
            UserError: as :meth:`ScoreTable.update`, or a different number of groups.
        """
        rows = counted_rows(labels, scores, weights, "scores", binary=True)
        group = np.asarray(groups, np.int64).reshape(-1)
        has = np.ones(group.size, bool) if has_group is None else np.asarray(has_group, bool).reshape(-1)
        if not group.size == has.size == rows.kept.size:
            raise UserError(f"{group.size} groups for {rows.kept.size} rows: one per row is needed")
        group, has = group[rows.kept], has[rows.kept]
        self.rows_without_group += int((~has).sum())
        label, weight = rows.labels[has], rows.weights[has]
        self._folded.add(group[has], rows.predictions[has], weight * label, weight * (1.0 - label))

    def state(self) -> dict[str, np.ndarray]:
        """The state for :meth:`merge` in another process."""
        groups, scores, positives, negatives = self._folded.columns
        return {
            "rows_without_group": np.asarray(self.rows_without_group, np.int64),
            "groups": groups,
            "scores": scores,
            "positives": positives,
            "negatives": negatives,
        }

    def merge(self, state: dict[str, np.ndarray]) -> None:
        self.rows_without_group += int(state["rows_without_group"])
        groups = np.asarray(state["groups"], np.int64).reshape(-1)
        self._folded.add(groups, column(state, "scores"), column(state, "positives"), column(state, "negatives"))

    def by_group(self) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """AUC, weight and "has both classes" of every group ``[g]``, in the order of the groups' numbers.

        The AUC of a group of one class is 0 and meaningless.
        """
        groups, _, positives, negatives = self._folded.columns
        if not groups.size:
            return np.empty(0), np.empty(0), np.empty(0, bool)
        first = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        size = np.diff(np.r_[first, groups.size])
        positive, negative = np.add.reduceat(positives, first), np.add.reduceat(negatives, first)
        before = np.cumsum(negatives) - negatives
        below = before - np.repeat(before[first], size)
        won = np.add.reduceat(positives * (below + 0.5 * negatives), first)
        used = (positive > 0) & (negative > 0)
        return np.divide(won, positive * negative, where=used, out=np.zeros(first.size)), positive + negative, used

    def reason(self) -> str | None:
        """Why :meth:`result` is NaN; None if it is a number."""
        auc, _, used = self.by_group()
        if not auc.size:
            return "no row has a group" if self.rows_without_group else "no rows"
        return None if used.any() else "no group has both classes"

    def counts(self) -> dict[str, int]:
        """``groups_used``, ``groups_left_out`` (one class only) and ``rows_without_group``."""
        _, _, used = self.by_group()
        return {
            "groups_used": int(used.sum()),
            "groups_left_out": int((~used).sum()),
            "rows_without_group": self.rows_without_group,
        }

    def result(self) -> float:
        """The weighted mean in [0, 1]; NaN if no group has both classes (see :meth:`reason`)."""
        auc, weight, used = self.by_group()
        return float(np.dot(auc[used], weight[used]) / weight[used].sum()) if used.any() else float("nan")
