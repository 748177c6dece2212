"""Exact metrics, mergeable over processes: AUC, group AUC, log loss, RMSE, calibration.

All take NumPy arrays batch by batch, count in float64, skip rows of weight 0, and have

* ``update(labels, predictions, weights=None)``,
* ``state()``: a dict of NumPy arrays, and ``merge(state)``: adds another process's,
* ``result()``: the figure, NaN if the data does not define it, and ``reason()``: why.

For intervals around a figure, from the rows, see :mod:`afm_ctr.metrics.intervals`.
"""

from __future__ import annotations

from afm_ctr.metrics._rows import sigmoid, signed
from afm_ctr.metrics.auc import ExactAUC, ScoreTable
from afm_ctr.metrics.calibration import Calibration, CalibrationBin
from afm_ctr.metrics.constant import Constant, constant_log_loss, gain_on_constant
from afm_ctr.metrics.evaluation import Evaluation
from afm_ctr.metrics.group_auc import GroupAUC
from afm_ctr.metrics.intervals import (
    Interval,
    auc_gain,
    auc_interval,
    effective_rows,
    mean_interval,
    ratio_interval,
    wilson,
)
from afm_ctr.metrics.losses import RMSE, LogLoss, row_losses

__all__ = [
    "RMSE",
    "Calibration",
    "CalibrationBin",
    "Constant",
    "Evaluation",
    "ExactAUC",
    "GroupAUC",
    "Interval",
    "LogLoss",
    "ScoreTable",
    "auc_gain",
    "auc_interval",
    "constant_log_loss",
    "effective_rows",
    "gain_on_constant",
    "mean_interval",
    "ratio_interval",
    "row_losses",
    "sigmoid",
    "signed",
    "wilson",
]
