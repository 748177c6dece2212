"""Cells to numbers and hash buckets: ops in C++ for what the transform makes of them in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from afm_ctr.native.op import load

if TYPE_CHECKING:
    import tensorflow as tf

# The columns of a cell (several of a cross), and the texts that count as empty in each.
CellSource = tuple[Sequence[int], Sequence[bytes]]


class Cells:
    """The cells of n rows in a text, for the ops. They give what TensorFlow's ops on the texts give.

    Args:
        text: uint8.
        starts: int32 [n, width], the first byte of each cell.
        ends: int32 [n, width], the byte behind its last.
    """

    def __init__(self, text: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> None:
        self._inputs = {"text": text, "starts": starts, "ends": ends}

    def _of(self, sources: Sequence[CellSource]) -> dict[str, Any]:
        return self._inputs | {
            "columns": [column for columns, _ in sources for column in columns],
            "parts": [len(columns) for columns, _ in sources],
            "missing": [text for _, missing in sources for text in missing],
            "missings": [len(missing) for _, missing in sources],
        }

    def numbers(self, sources: Sequence[CellSource]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """As :func:`afm_ctr.features.cell_ops.parse_numbers` has them, [sources, n]."""
        values, ok, bad = load().module.afm_ctr_cell_numbers(**self._of(sources))
        return self._shaped(sources, values), self._shaped(sources, ok), self._shaped(sources, bad)

    def buckets(self, sources: Sequence[CellSource], buckets: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Fingerprint64 mod ``buckets``, int64, and whether there is a cell, bool: [sources, n]."""
        bucket, present = load().module.afm_ctr_cell_buckets(**self._of(sources), buckets=buckets)
        return self._shaped(sources, bucket), self._shaped(sources, present)

    def texts(self, sources: Sequence[CellSource]) -> tf.Tensor:
        """The cells: string [sources, n]."""
        return self._shaped(sources, load().module.afm_ctr_cell_texts(**self._of(sources)))

    @staticmethod
    def rows(slots: Sequence[Any], order: np.ndarray, own_ids: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """As :meth:`afm_ctr.features.cell_ops.FieldCells.laid_out` has them."""
        ids, values = load().module.afm_ctr_lay_rows(
            ids=[part.ids for part in slots],
            values=[part.vals for part in slots],
            present=[part.present for part in slots],
            order=order.tolist(),
            own_ids=own_ids.tolist(),
        )
        ids.set_shape([None, len(order)])
        values.set_shape([None, len(order)])
        return ids, values

    @staticmethod
    def _shaped(sources: Sequence[CellSource], found: tf.Tensor) -> tf.Tensor:
        found.set_shape([len(sources), None])
        return found
