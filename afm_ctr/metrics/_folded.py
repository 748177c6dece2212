"""Distinct keys of rows, each with its weight of positives and of negatives."""

from __future__ import annotations

from typing import Any

import numpy as np

_PENDING_ROWS = 1 << 17


class FoldedRows:
    """Rows that have the same keys as one, in the order of the keys.

    Rows wait in a buffer and are folded in once they are as many as the table, so that adding n rows costs
    O(n log n) in all. Weights of equal keys are added in the order in which they came.

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
