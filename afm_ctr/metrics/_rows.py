"""Checks and conversions of a batch's rows, shared by all metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from afm_ctr.errors import UserError

Floats = npt.NDArray[np.float64]
_PENDING_ROWS = 1 << 17


class Rows(NamedTuple):
    """The rows of a batch with a weight above 0: float64 ``[n]`` each; ``kept`` bool ``[B]`` marks them."""

    labels: Floats
    predictions: Floats
    weights: Floats
    kept: npt.NDArray[np.bool_]


def counted_rows(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, weights: npt.ArrayLike | None, what: str, binary: bool
) -> Rows:
    """Flatten a batch to float64, drop the rows of weight 0 (padding) and check the rest.

    Args:
        labels: ``[B]`` (or ``[B, 1]``) numbers; 0 or 1 if ``binary``.
        predictions: ``[B]`` numbers; ``what`` names them in errors.
        weights: ``[B]`` numbers >= 0; None counts every row once.

    Raises:
        UserError: lengths differ; a weight is negative or not finite; a label is missing (NaN) or not 0/1 if
            ``binary``; a prediction is not finite.
    """
    label = np.asarray(labels, np.float64).reshape(-1)
    prediction = np.asarray(predictions, np.float64).reshape(-1)
    weight = np.ones_like(label) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    if not label.size == prediction.size == weight.size:
        raise UserError(
            f"{label.size} labels, {prediction.size} {what} and {weight.size} weights: one of each per row is needed"
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
            "(a lower learning rate or an earlier checkpoint helps)"
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


class FoldedRows:
    """Rows with equal keys added up, in order of the keys.

    Rows wait in a buffer and are merged once they are as many as the table, so that adding n rows costs O(n log n) in
    total. Weights of equal keys are added in order of arrival.

    Args:
        *dtypes: of the keys, the first one the most significant.
    """

    def __init__(self, *dtypes: Any) -> None:
        self._keys = len(dtypes)
        self._table: tuple[np.ndarray, ...] = tuple(np.empty(0, dtype) for dtype in (*dtypes, float, float))
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._pending_rows = 0

    def add(self, *columns: np.ndarray) -> None:
        """Add rows: their keys, weights of positives and weights of negatives, ``[B]`` each."""
        if not columns[0].size:
            return
        self._pending.append(columns)
        self._pending_rows += columns[0].size
        if self._pending_rows > max(_PENDING_ROWS, self._table[0].size):
            self._fold()

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """The keys, distinct and ascending, and the float64 weights of positives and of negatives: ``[u]`` each."""
        self._fold()
        return self._table

    def _fold(self) -> None:
        if not self._pending:
            return
        parts = [np.concatenate(part) for part in zip(self._table, *self._pending, strict=True)]
        order = np.lexsort(parts[self._keys - 1 :: -1])
        keys = [part[order] for part in parts[: self._keys]]
        new = np.ones(order.size, bool)
        new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
        place = np.cumsum(new) - 1
        sums = (np.bincount(place, part[order], place[-1] + 1) for part in parts[self._keys :])
        self._table = (*(key[new] for key in keys), *sums)
        self._pending, self._pending_rows = [], 0
