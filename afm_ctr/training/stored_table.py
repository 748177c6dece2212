"""A table that stays where a checkpoint stored it: rows are read from the files as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.embedding import EmbeddingTable
from afm_ctr.row_shards import mix
from afm_ctr.training.checkpoint import MIXED, Checkpoint

_BLOCK_BYTES = 1 << 26


class StoredTable(EmbeddingTable):
    """An :class:`~afm_ctr.embedding.EmbeddingTable` that cannot be trained and has no variables.

    Each row has a *place*, in the order in which the checkpoint holds the rows: its id, or its position in a sharded
    table. Rows that the table has grown by since come after them, with their initial values.

    Args:
        checkpoint: verified; its files must stay.
        **kwargs: of :class:`~afm_ctr.embedding.EmbeddingTable`.
    """

    def __init__(self, feature_size: int, *args: Any, checkpoint: Checkpoint, **kwargs: Any) -> None:
        self._checkpoint = checkpoint
        super().__init__(feature_size, *args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Nothing is made: only the rows' files are looked up."""
        shapes = {column: [self.feature_size, width] for column, width in self.widths.items()}
        self._files = _Files(
            {name: self._checkpoint.column(self.name, name, shape) for name, shape in shapes.items()}
        )
        self.built = True

    @property
    def stored_rows(self) -> int:
        """How many rows the checkpoint holds."""
        return int(self._files.entries[next(iter(self.widths))]["rows"])

    def places(self, ids: Any) -> Any:
        """Where ids are: int64 to the same, an array or a tensor as they came."""
        if self._files.entries[next(iter(self.widths))].get("order") != MIXED:
            return ids
        rows = np.int64(self.stored_rows)
        if not tf.is_tensor(ids):
            return np.where(ids < rows, mix(np.minimum(ids, rows - 1), int(rows)), ids)
        return tf.where(ids < rows, mix(tf.minimum(ids, rows - 1), int(rows)), ids)

    def _rows_at(self, column: str, start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, self.widths[column]), np.float32)
        for first, last, name in self._files.entries[column]["files"]:
            low, high = max(first, start), min(last, stop)
            if low < high:
                values = np.load(self._checkpoint.folder / name, mmap_mode="r", allow_pickle=False)
                rows[low - start : high - start] = values[low - first : high - first]
        if stop > self.stored_rows:
            new = max(start, self.stored_rows)
            rows[new - start :] = self.initial_values(column, np.arange(new, stop))
        return rows

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        """All rows of a column by place, 64 MB at a time: float32 ``[n, width]``."""
        step = max(1, _BLOCK_BYTES // (4 * self.widths[column]))
        for start in range(0, self.feature_size, step):
            yield self._rows_at(column, start, min(start + step, self.feature_size))

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows laid out as the ids. A graph with it needs this process."""
        with tf.control_dependencies(self._check(ids)):
            flat = tf.reshape(ids, [-1])
        found = tf.numpy_function(self._look_up, [flat], [tf.float32] * len(self.widths), stateful=False)
        return {
            column: tf.reshape(rows, tf.concat([tf.shape(ids), [width]], 0))
            for (column, width), rows in zip(self.widths.items(), found, strict=True)
        }

    def _look_up(self, ids: np.ndarray) -> list[np.ndarray]:
        places, new = self.places(ids), ids >= self.stored_rows
        found = []
        for column, width in self.widths.items():
            rows = np.empty((len(ids), width), np.float32)
            for first, last, name in self._files.entries[column]["files"]:
                here = (places >= first) & (places < last) & ~new
                if here.any():
                    rows[here] = self._files.opened(self._checkpoint.folder / name)[places[here] - first]
            rows[new] = self.initial_values(column, ids[new])
            found.append(rows)
        return found


class _Files:
    """The parts of a manifest that name the files of each column, and those files that are open."""

    def __init__(self, entries: dict[str, dict[str, Any]]) -> None:
        self.entries = entries
        self._opened: dict[Any, np.ndarray] = {}

    def opened(self, path: Any) -> np.ndarray:
        if path not in self._opened:
            self._opened[path] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._opened[path]
