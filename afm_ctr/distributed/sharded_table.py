"""An embedding table whose rows are sharded over the ranks: each rank stores and updates its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.distributed.world import World
from afm_ctr.embedding import EmbeddingTable, Lookup
from afm_ctr.row_shards import RowShards
from afm_ctr.sparse_gradients import MergedSlices, add_rows, merge_ids, read_rows


class ShardedTable(EmbeddingTable):
    """An :class:`~afm_ctr.embedding.EmbeddingTable` of which every rank holds the rows that it owns.

    A lookup merges the batch's ids, requests each from its owner by an ``alltoall``, and gets the rows by another; a
    third sends the merged gradient rows to the owners, which add those of one row in order of the ranks. All columns
    travel together. Row p of a variable belongs to the id at the rank's p-th position: see
    :class:`~afm_ctr.row_shards.RowShards`. The absent slot's row is zero and never requested.

    Values, gradients and steps are those of a table in one process, except for the order in which the ranks' parts of
    a gradient are added. All ranks must call :meth:`lookup` and :meth:`read` alike, with any number of ids.

    Args:
        world: the ranks; they must not change.

    Attributes:
        shards: which rank owns which rows.
    """

    _placement = "sharded"
    shards: RowShards

    def __init__(self, feature_size: int, *args: Any, world: World, **kwargs: Any) -> None:
        self._world = world
        self.shards = RowShards(int(feature_size), world.rank, world.size)
        super().__init__(feature_size, *args, **{"placement": "sharded", **kwargs})
        for variable in self.variables:
            variable.shards = self.shards

    @property
    def local_rows(self) -> int:
        """Number of rows that this rank stores, the same on every rank and at least one; the last may be unused."""
        return self.shards.per_rank

    def stored_ids(self, start: int, stop: int) -> np.ndarray:
        """The ids of the stored rows ``start`` … ``stop − 1``, fewer if some are unused: int64 ``[n]``."""
        first, last = (min(self.shards.start + row, self.shards.stop) for row in (start, stop))
        return self.shards.ids(first, last)

    def lookup(self, ids: tf.Tensor, checked: bool = False) -> Lookup:
        """The rows of a batch's ids, each fetched once. As :meth:`EmbeddingTable.lookup`, except that ids after row 0
        are ordered by owner, and that :meth:`touched` must merge the gradient of a column."""
        unique, inverse = self._merged(ids, checked)
        with tf.name_scope("lookup"):
            asked = unique[1:]
            position = self.shards.positions(asked)
            owner = position // self.shards.per_rank
            count = tf.size(asked, tf.int64)
            parts = tf.dynamic_partition(
                tf.range(1, count + 1), tf.cast(owner, tf.int32), self.shards.size, name="owners"
            )
            order = tf.concat([tf.zeros([1], tf.int64), *parts], 0)
            place = tf.scatter_nd(order[:, tf.newaxis], tf.range(count + 1), [count + 1])
            wanted = tf.gather(position - owner * self.shards.per_rank, order[1:] - 1)
            rows = self._fetch(wanted, tf.stack([tf.size(part) for part in parts]))
            inverse = tf.gather(place, inverse)
        return Lookup(tf.gather(unique, order), rows, inverse)

    def _fetch(self, wanted: tf.Tensor, splits: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows of all columns, that of the absent slot first.

        Args:
            wanted: int64 ``[n]``, row numbers within their owners, by owner.
            splits: int32 ``[ranks]``, how many of them each owner has.
        """
        world, name = self._world, f"afm_ctr_table_{self.name}"
        asked, counts = world.alltoall(wanted, splits, f"{name}_ids")

        @tf.custom_gradient
        def travelled(own: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def back(upstream: tf.Tensor) -> tf.Tensor:
                with tf.name_scope("exchange"):
                    return world.alltoall(upstream, splits, f"{name}_gradients")[0]

            return world.alltoall(own, counts, f"{name}_rows")[0], back

        # Through `.value`: the Keras variable would be read as a whole.
        own = tf.concat([read_rows(variable.value, asked) for variable in self.columns.values()], 1)
        rows = tf.concat([tf.zeros([1, own.shape[1]], own.dtype), travelled(own)], 0)
        return dict(zip(self.columns, tf.split(rows, list(self.widths.values()), axis=1), strict=True))

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows in the layout of the ids."""
        found = self.lookup(ids)
        with tf.name_scope("lookup"):
            return {column: tf.gather(rows, found.inverse) for column, rows in found.rows.items()}

    def touched(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Add up, row by row, the gradients that the ranks sent to this one through one :meth:`lookup`.

        Returns:
            The gradients; those of the columns as :class:`MergedSlices` of this rank's rows that share their indices.
            Those of a row are added in order of the ranks.
        """
        columns = {id(variable) for variable in self.columns.values()}
        found, rows, position = list(gradients), None, None
        with tf.name_scope("merge"):
            for place, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
                if id(variable) in columns and gradient is not None:
                    if rows is None:
                        rows, position = merge_ids(gradient.indices)
                    values = add_rows(gradient.values, position, tf.size(rows))
                    found[place] = MergedSlices(values, rows, gradient.dense_shape)
        return found

    def apply(self, unique_ids: Any, grad_rows: Any, optimizer: Any) -> None:
        """Not supported for single rows: their owners update them, with all other variables.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("rows of a sharded table are updated by their owners: use an optimizer's apply")

    def _marks(self, rows: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return tf.fill(tf.shape(rows), step)
