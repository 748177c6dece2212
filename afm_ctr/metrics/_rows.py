"""What all metrics do with the rows of a batch before they count them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from afm_ctr.errors import UserError

Floats = npt.NDArray[np.float64]


class Rows(NamedTuple):
    """The rows of a batch that count: float64 ``[n]`` each; ``kept`` bool ``[B]`` marks them in the batch."""

    labels: Floats
    predictions: Floats
    weights: Floats
    kept: npt.NDArray[np.bool_]


def counted_rows(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, weights: npt.ArrayLike | None, what: str, binary: bool
) -> Rows:
    """Flatten a batch to float64, drop the rows of weight 0 (padding) and check the rest.

    Args:
        labels: ``[B]`` (or ``[B, 1]``) numbers; 0 or 1 where ``binary``.
        predictions: ``[B]`` numbers; ``what`` names them in errors.
        weights: ``[B]`` numbers >= 0; None counts every row once.

    Raises:
        UserError: lengths differ; a weight is negative or not finite; a label is missing (NaN) or not 0/1 where
            ``binary``; a prediction is not finite.
    """
    label = np.asarray(labels, np.float64).reshape(-1)
    prediction = np.asarray(predictions, np.float64).reshape(-1)
    weight = np.ones_like(label) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    if not label.size == prediction.size == weight.size:
        raise UserError(
            f"{label.size} labels, {prediction.size} {what} and {weight.size} weights: one of each a row is needed"
        )
    if not np.all(np.isfinite(weight) & (weight >= 0)):
        bad = weight[~(np.isfinite(weight) & (weight >= 0))][0]
        raise UserError(f"a row has the weight {bad}: weights are finite numbers >= 0")
    kept = weight > 0
    label, prediction, weight = label[kept], prediction[kept], weight[kept]
    if np.isnan(label).any():
        raise UserError(
            f"{int(np.isnan(label).sum())} of {label.size} rows have no label: metrics need labelled rows (`predict` "
            "scores unlabelled ones)"
        )
    if binary and not np.all((label == 0) | (label == 1)):
        bad = label[(label != 0) & (label != 1)][0]
        raise UserError(f"a label is {bad:g}: this metric is for binary labels, stored as 0 and 1")
    wild = int((~np.isfinite(prediction)).sum())
    if wild:
        raise UserError(
            f"{wild} of {prediction.size} {what} are not finite: the model has diverged or its weights are damaged "
            "(a lower learning rate or the checkpoint before helps)"
        )
    return Rows(label, prediction, weight, kept)


def signed(labels: npt.ArrayLike) -> Floats:
    """Binary labels 0/1 on the scale -1/+1 of the squared loss: the targets for :class:`RMSE` there."""
    return np.asarray(labels, np.float64) * 2.0 - 1.0


def sigmoid(logits: npt.ArrayLike) -> Floats:
    """1 / (1 + exp(-z)) in float64 without overflow."""
    z = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def column(state: dict[str, np.ndarray], name: str) -> Floats:
    """A float64 ``[n]`` entry of a state (a scalar counts as one element)."""
    return np.asarray(state[name], np.float64).reshape(-1)
