"""A large table in a SavedModel, written block by block from a checkpoint and never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.training.stored_table import StoredTable

HALF_BITS = tf.int16  # holds float16, of which TensorFlow cannot restore slices


class StreamedTable(tf.Module):
    """The columns of a table as variables that have no rows while the model is saved.

    :meth:`write` then puts the checkpoint's rows into the SavedModel's files, as slices of the variables. The loaded
    model has whole variables; a lookup uses stock ops. The rows keep the checkpoint's order.

    Args:
        half: whether the vectors are stored in half precision.
    """

    def __init__(self, table: StoredTable, half: bool) -> None:
        super().__init__(name="streamed_table")
        self._table = Untracked(table)
        self.columns = {
            column: tf.Variable(
                tf.zeros([0, width], HALF_BITS if half and column == "vectors" else tf.float32),
                shape=[None, width],
                trainable=False,
                name=column,
            )
            for column, width in table.widths.items()
        }

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows in the layout of the ids; eagerly from the checkpoint, as the variables have no rows here."""
        table = self._table.value
        if tf.executing_eagerly():
            return StoredTable.read(table, ids)
        places = table.places(ids)
        found = {name: tf.gather(column, places) for name, column in self.columns.items()}
        for name, rows in found.items():
            if rows.dtype == HALF_BITS:
                found[name] = tf.cast(tf.bitcast(rows, tf.float16), tf.float32)
        return found

    def write(self, export: Path, attribute: str) -> None:
        """Put the rows into a SavedModel.

        Args:
            export: its folder.
            attribute: of the saved object that holds this one.
        """
        prefix = str(export / "variables" / "variables")
        reader = tf.train.load_checkpoint(prefix)
        keys = {f"{attribute}/columns/{column}/.ATTRIBUTES/VARIABLE_VALUE": column for column in self.columns}
        others = sorted(set(reader.get_variable_to_shape_map()) - set(keys))
        bundles = [f"{prefix}-0"]
        _save(bundles[0], others, [""] * len(others), [reader.get_tensor(key) for key in others])
        del reader
        for path in Path(prefix).parent.glob("variables.*"):
            path.unlink()
        for key, column in keys.items():
            for place, block in self._slices(column):
                bundles.append(f"{prefix}-{len(bundles)}")
                _save(bundles[-1], [key], [place], [block])
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=bundles, destination_prefix=prefix)

    def _slices(self, column: str) -> Iterator[tuple[str, np.ndarray]]:
        """Blocks of a column and their places, in the form of SaveV2."""
        table, start = self._table.value, 0
        for block in table.blocks(column):
            place = f"{table.feature_size} {block.shape[1]} {start},{len(block)}:-"
            half = self.columns[column].dtype == HALF_BITS
            yield place, block.astype(np.float16).view(np.int16) if half else block
            start += len(block)


def _save(prefix: str, keys: list[str], slices: list[str], values: list[np.ndarray]) -> None:
    tensors = [tf.convert_to_tensor(value) for value in values]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=keys, shape_and_slices=slices, tensors=tensors)


class Untracked:
    """Keeps an object out of what ``tf.Module`` tracks and saves."""

    def __init__(self, value: Any) -> None:
        self.value = value
