"""A table that stays in a checkpoint's files: rows are read from there on request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.embedding import EmbeddingTable
from afm_ctr.optimizers.average import AVERAGE, Average
from afm_ctr.row_shards import mix
from afm_ctr.sparse_gradients import merge_ids
from afm_ctr.training.checkpoint import MIXED, Checkpoint

LARGEST_TABLE_MB = 1000.0  # a larger table of a run is read from its files
_BLOCK_BYTES = 1 << 26


class StoredTable(EmbeddingTable):
    """An :class:`~afm_ctr.embedding.EmbeddingTable` that cannot be trained and has no variables.

    Each row has a *place* in the order of the checkpoint's rows: its id, or its position in a sharded table. Rows
    that the table has gained since come after them, with their initial values.

    Args:
        average: use the averages that the optimizer kept of the weights; None: the weights.
    """

    def __init__(
        self, feature_size: int, *args: Any, checkpoint: Checkpoint, average: Average | None = None, **kwargs: Any
    ) -> None:
        self._checkpoint = checkpoint
        self._slot_scale = None if average is None else checkpoint.average_scale(average)
        super().__init__(feature_size, *args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Create no variables: only look up the rows' files."""
        entries = {}
        for column, width in self.widths.items():
            for key in [column] if self._slot_scale is None else [column, f"{column}.{AVERAGE}"]:
                entries[key] = self._checkpoint.column(self.name, key, [self.feature_size, width])
        self._files = _Files(self._checkpoint.folder, entries)
        self._first = entries[next(iter(self.widths))]
        self.built = True

    @property
    def stored_rows(self) -> int:
        """Number of rows in the checkpoint."""
        return int(self._first["rows"])

    def places(self, ids: Any) -> Any:
        """The places of ids: int64 to the same, array or tensor as given."""
        if self._first.get("order") != MIXED:
            return ids
        rows = np.int64(self.stored_rows)
        if not tf.is_tensor(ids):
            return np.where(ids < rows, mix(np.minimum(ids, rows - 1), int(rows)), ids)
        return tf.where(ids < rows, mix(tf.minimum(ids, rows - 1), int(rows)), ids)

    def _rows(self, column: str, places: np.ndarray) -> np.ndarray:
        """The rows at some places: float32 ``[n, width]``."""
        new = places >= self.stored_rows
        rows = np.zeros((len(places), self.widths[column]), np.float32)
        rows[new] = self.initial_values(column, places[new])
        self._files.add(rows, column, places, 1.0)
        if self._slot_scale is not None:
            self._files.add(rows, f"{column}.{AVERAGE}", places, self._slot_scale)
        return rows

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        """All rows of a column by place, at most 64 MB at a time with the places: float32 ``[n, width]``."""
        step = max(1, _BLOCK_BYTES // (16 + 4 * self.widths[column]))
        for start in range(0, self.feature_size, step):
            yield self._rows(column, np.arange(start, min(start + step, self.feature_size)))

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows in the layout of the ids, each read once. A graph with it works only in this process."""
        with tf.name_scope("lookup"):
            unique, inverse = merge_ids(self._checked(ids))
            found = tf.numpy_function(self._look_up, [unique], [tf.float32] * len(self.widths), stateful=False)
            return {
                column: tf.gather(tf.ensure_shape(rows, [None, width]), inverse)
                for (column, width), rows in zip(self.widths.items(), found, strict=True)
            }

    def _look_up(self, ids: np.ndarray) -> list[np.ndarray]:
        places = self.places(ids)
        return [self._rows(column, places) for column in self.widths]


class _Files:
    """The rows of each column and slot, memory-mapped at once: a run in training may delete the checkpoint later."""

    def __init__(self, folder: Path, entries: dict[str, dict[str, Any]]) -> None:
        self._parts = {
            key: [
                (first, last, np.load(folder / name, mmap_mode="r", allow_pickle=False))
                for first, last, name in entry["files"]
            ]
            for key, entry in entries.items()
        }

    def add(self, rows: np.ndarray, key: str, places: np.ndarray, scale: float) -> None:
        """Add the rows of a column or slot stored at some places, times a factor, to ``rows`` ``[n, width]``."""
        for first, last, values in self._parts[key]:
            here = np.flatnonzero((places >= first) & (places < last))
            if len(here):
                found = values[places[here] - first]
                rows[here] += found if scale == 1.0 else np.float32(scale) * found
