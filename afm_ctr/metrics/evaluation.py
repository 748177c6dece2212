"""All metrics of one model on one split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from afm_ctr.metrics._rows import sigmoid, signed
from afm_ctr.metrics.auc import ExactAUC, ScoreTable
from afm_ctr.metrics.calibration import Calibration
from afm_ctr.metrics.constant import Constant, constant_log_loss
from afm_ctr.metrics.group_auc import GroupAUC
from afm_ctr.metrics.losses import RMSE, LogLoss


class Gathers(Protocol):
    """Anything that gives every process all processes' objects: a ``World`` of ``afm_ctr.distributed``."""

    def allgather_object(self, obj: Any) -> list[Any]: ...


class Evaluation:
    """Every metric that fits the loss and the label, fed batch by batch and merged exactly over processes.

    ========================  =================================================================
    loss, label               metrics
    ========================  =================================================================
    log, binary               AUC, group AUC, log loss next to that of a constant, RMSE of the
                              probability, calibration
    squared, binary           AUC, group AUC, RMSE on the -1/+1 scale of that loss
    squared, real             RMSE in the label's unit
    ========================  =================================================================

    Memory: at most 24 bytes per row (distinct score) and 32 more for rows with a group.

    Args:
        loss: ``log`` or ``squared``, the training loss.
        label: ``binary`` (stored as 0/1) or ``real``.
        bins: bins of the calibration curve.
        offset: the logits' correction for negatives that these rows lack; it also applies to the constant.
    """

    def __init__(
        self,
        loss: Literal["log", "squared"] = "log",
        label: Literal["binary", "real"] = "binary",
        bins: int = 10,
        offset: float = 0.0,
    ) -> None:
        if loss not in ("log", "squared") or label not in ("binary", "real"):
            raise ValueError(f"loss is log or squared and label binary or real, not {loss} and {label}")
        if loss == "log" and label == "real":
            raise ValueError("log loss needs binary labels")
        self.loss, self.label, self.bins, self.offset = loss, label, bins, offset
        self._table = ScoreTable()
        self._auc = ExactAUC(self._table)
        self._calibration = Calibration(bins, self._table, transform=sigmoid)
        self._groups = GroupAUC()
        self._log_loss = LogLoss()
        self._rmse = RMSE()
        self._constant = Constant()
        self._any_groups = False

    def update(
        self,
        labels: npt.ArrayLike,
        scores: npt.ArrayLike,
        *,
        weights: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
        has_group: npt.ArrayLike | None = None,
    ) -> None:
        """Add a batch, every argument ``[B]``; rows of weight 0 (padding) do not count.

        Args:
            labels: as stored: 0/1 or real.
            scores: what the model puts out: logits (log loss) or scores (squared loss).
            scores: the model's output: logits (log loss) or scores (squared loss).
            groups: int64; None when the data has no groups.
            has_group: bool; which rows have a group (None: all).

        Raises:
            UserError: a score that is not finite, an unlabelled row, a label other than 0/1 if binary, a negative
                weight.
        """
        if self.label == "real":
            self._squared(labels, scores, weights)
            return
        self._table.update(labels, scores, weights)
        if groups is not None:
            self._any_groups = True
            self._groups.update(labels, scores, weights, groups, has_group)
        if self.loss == "log":
            self._log_loss.update(labels, scores, weights)
            self._rmse.update(labels, sigmoid(scores), weights)
        else:
            self._squared(signed(labels), scores, weights)

    def _squared(self, targets: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None) -> None:
        self._rmse.update(targets, scores, weights)
        self._constant.update(targets, weights)

    @property
    def groups(self) -> GroupAUC:
        """The group AUC behind the figure; empty if no groups were given."""
        return self._groups

    def _parts(self) -> dict[str, ScoreTable | GroupAUC | LogLoss | RMSE | Constant]:
        return {
            "scores": self._table,
            "groups": self._groups,
            "log_loss": self._log_loss,
            "rmse": self._rmse,
            "constant": self._constant,
        }

    def state(self) -> dict[str, np.ndarray]:
        """Everything counted so far as a flat dict of NumPy arrays, for :meth:`merge` in another process."""
        flat = {f"{part}/{key}": value for part, held in self._parts().items() for key, value in held.state().items()}
        return {**flat, "any_groups": np.asarray(self._any_groups)}

    def merge(self, states: Iterable[dict[str, np.ndarray]]) -> None:
        """Add the states of other processes (each once)."""
        for state in states:
            for part, held in self._parts().items():
                prefix = part + "/"
                held.merge({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)})
            self._any_groups = self._any_groups or bool(state["any_groups"])

    def over(self, world: Gathers) -> Evaluation:
        """The evaluation of all processes' rows together, the same on every process. All of them must call it."""
        merged = Evaluation(self.loss, self.label, self.bins, self.offset)
        merged.merge(world.allgather_object(self.state()))
        return merged

    def result(self) -> dict[str, Any]:
        """JSON-ready figures: a metric that the data does not define is None, and ``reasons`` tells why.

        Keys: ``rows``, ``weight``, and by the table above ``positive_rate``, ``auc``, ``log_loss``,
        ``constant_log_loss`` (if every row had the rows' share of positives as its probability),
        ``normalised_entropy`` (log loss / constant log loss: below 1 the model is better than the constant),
        ``rmse``, under squared loss ``constant_rmse`` (if every row had the targets' mean), ``calibration``, ``ece``,
        ``calibration_curve`` (low, high, weight, predicted, observed per bin), ``group_auc`` with ``groups_used``,
        ``groups_left_out``, ``rows_without_group``; ``reasons`` {metric: text}.
        """
        figures: dict[str, Any] = {"rows": self._rmse.rows, "weight": self._rmse.weight}
        reasons: dict[str, str] = {}

        def put(name: str, metric: ExactAUC | GroupAUC | LogLoss | RMSE | Calibration) -> None:
            reason = metric.reason()
            figures[name] = metric.result() if reason is None else None
            if reason is not None:
                reasons[name] = reason

        if self.label == "binary":
            # Sums in one order: for rows of one class the share is exactly 0 or 1, whatever their weights.
            positives, negatives = (float(part.sum()) for part in self._table.table[1:])
            rate = figures["positive_rate"] = positives / (positives + negatives) if self._rmse.weight else None
            put("auc", self._auc)
            if self._any_groups:
                put("group_auc", self._groups)
                figures |= self._groups.counts()
        if self.loss == "log":
            put("log_loss", self._log_loss)
            constant = figures["constant_log_loss"] = None if rate is None else constant_log_loss(rate, self.offset)
            figures["normalised_entropy"] = figures["log_loss"] / constant if constant else None
            if not constant:
                reasons["normalised_entropy"] = "no rows" if rate is None else "all rows are of one class"
            put("calibration", self._calibration)
            curve = self._calibration.curve()
            figures["ece"] = self._calibration.ece() if curve else None
            figures["calibration_curve"] = [point._asdict() for point in curve]
        put("rmse", self._rmse)
        if self.loss == "squared":
            figures["constant_rmse"] = self._constant.rmse() if self._constant.weight else None
        figures["reasons"] = reasons
        return figures
