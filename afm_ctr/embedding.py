"""The embedding table of all ids: one row per id, looked up once per batch; a step updates only touched rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.errors import in_graph
from afm_ctr.huge_pages import on_large_pages
from afm_ctr.row_shards import RowShards
from afm_ctr.sparse_gradients import MergedSlices, expand_rows, merge_ids, read_rows
from afm_ctr.splitmix import GOLDEN, finalise

_BLOCK = 1 << 15  # elements hashed at a time: fits a core's second-level cache with room for temporaries
_SUM_MEAN = 4 * 65535 / 2
_SUM_STDDEV = float(np.sqrt(4 * (65536.0**2 - 1) / 12))


class Lookup(NamedTuple):
    """The rows that a batch reads from a table.

    Attributes:
        unique_ids: int64 ``[U]``, 0 (the absent slot's) and then every other id of the batch once.
        rows: by column, ``[U, d]``: the rows of these ids.
        inverse: int64, in the shape of the requested ids: the position of each in ``unique_ids``.
    """

    unique_ids: tf.Tensor
    rows: dict[str, tf.Tensor]
    inverse: tf.Tensor

    def expand(self, column: str, scale: tf.Tensor | None = None) -> tf.Tensor:
        """The rows in the layout of the requested ids, each times its number in ``scale``: ``[..., d]``.

        Args:
            scale: in the shape of the ids and the dtype of the rows; None: 1.
        """
        with tf.name_scope("lookup"):
            rows, position = self.rows[column], tf.reshape(self.inverse, [-1])
            factors = tf.ones_like(position, rows.dtype) if scale is None else tf.reshape(scale, [-1])
            shape = tf.concat([tf.shape(self.inverse), [rows.shape[1]]], 0)
            expanded = tf.reshape(expand_rows(rows, position, factors), shape)
            return tf.ensure_shape(expanded, [*self.inverse.shape, rows.shape[1]])


@keras.saving.register_keras_serializable(package="afm_ctr")
class EmbeddingTable(keras.layers.Layer):
    """One row for every id; a row may have several columns of numbers, each a variable ``[feature_size, width]``.

    Row 0 belongs to the absent slot: it is zero and stays zero as long as absent slots are masked, since then its
    gradient is zero and no optimizer of this package moves a row on a zero gradient.

    The initial value of a row depends only on seed, table name, column and row id: not on the size of the table, the
    order in which rows are made, or the rank that makes them.

    Args:
        feature_size: number of rows, that is the ids 0 … feature_size − 1.
        columns: width of each column by name, for example ``{"linear": 1, "vectors": 16}``.
        stddev: standard deviation of the initial values by column; a column that is not named starts at zero.
        name: of the table; the initial values depend on it.
        placement: "replicated": every rank holds the whole table.
        mark_rows: keep in ``last_seen``, int64 ``[feature_size]``, the number of the last step that touched each row.

    Example:
        >>> table = EmbeddingTable(1000, {"vectors": 16}, seed=7, stddev={"vectors": 0.01})
        >>> table.lookup(tf.constant([[3, 5], [5, 0]])).expand("vectors").shape
        TensorShape([2, 2, 16])
    """

    _placement = "replicated"
    shards: RowShards | None = None

    def __init__(
        self,
        feature_size: int,
        columns: Mapping[str, int],
        seed: int,
        stddev: Mapping[str, float] | None = None,
        name: str = "ids",
        placement: str = "replicated",
        mark_rows: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if feature_size < 1:
            raise ValueError(f"feature_size must be at least 1 (row 0 is the absent slot's), got {feature_size}")
        if placement != self._placement:
            raise ValueError(f"placement must be {self._placement!r}, got {placement!r}")
        self.feature_size = int(feature_size)
        self.widths = {column: int(width) for column, width in columns.items()}
        self.seed = int(seed)
        self.stddev = {column: float((stddev or {}).get(column, 0.0)) for column in self.widths}
        self.placement = placement
        self.columns: dict[str, keras.Variable] = {}
        self.mark_rows = mark_rows
        self.last_seen: keras.Variable | None = None
        self.build()

    @property
    def local_rows(self) -> int:
        """Number of rows that this process stores: all of them."""
        return self.feature_size

    def stored_ids(self, start: int, stop: int) -> np.ndarray:
        """The ids of the stored rows ``start`` … ``stop − 1``: int64 ``[stop − start]``."""
        return np.arange(start, stop)

    def build(self, input_shape: Any = None) -> None:
        """Create the variables and write the initial rows into them, block by block."""
        if self.columns:
            return
        for column, width in self.widths.items():
            variable = self.add_weight(shape=(self.local_rows, width), initializer="zeros", name=column)
            variable.placement = self.placement  # read by broadcast, exchange and drift check
            on_large_pages(variable.value)
            self.columns[column] = variable
            if self.stddev[column]:
                self._fill(variable, column, width)
        if self.mark_rows:
            self.last_seen = self.add_weight(
                shape=(self.local_rows,), initializer="zeros", dtype="int64", trainable=False, name="last_seen"
            )
            self.last_seen.placement = self.placement
        self.built = True

    def _fill(self, variable: keras.Variable, column: str, width: int) -> None:
        step = max(1, (1 << 22) // width)
        for start in range(0, self.local_rows, step):
            stop = min(start + step, self.local_rows)
            assign_rows(variable.value, start, tf.cast(self.initial_rows(column, start, stop), variable.dtype))

    def initial_rows(self, column: str, start: int, stop: int) -> np.ndarray:
        """The initial values of the stored rows ``start`` … ``stop − 1``: float32 ``[stop − start, width]``."""
        known = self.initial_values(column, self.stored_ids(start, stop))
        return np.concatenate([known, np.zeros((stop - start - len(known), self.widths[column]), np.float32)])

    def initial_values(self, column: str, ids: np.ndarray) -> np.ndarray:
        """The initial values of the rows of some ids: int64 ``[n]`` to float32 ``[n, width]``.

        Each number is the sum of four 16-bit uniform numbers, centred and scaled: nearly normal, within 3.47 standard
        deviations and, being integer arithmetic, the same on every machine.
        """
        width, stddev = self.widths[column], self.stddev[column]
        rows = np.zeros((len(ids), width), np.float32)
        if stddev:
            key = hashlib.sha256(f"{self.seed}\0{self.name}\0{column}".encode()).digest()
            base = np.frombuffer(key[:8], np.uint64)[0]
            step = max(1, _BLOCK // width)
            for first in range(0, len(ids), step):
                some = ids[first : first + step].astype(np.uint64)
                # Number j of row i is number i · width + j of the stream.
                numbers = some[:, np.newaxis] * np.uint64(width) + np.arange(width, dtype=np.uint64)
                rows[first : first + step] = _normal(base, numbers, stddev)
        rows[ids == 0] = 0.0
        return rows

    def lookup(self, ids: tf.Tensor, checked: bool = False) -> Lookup:
        """The rows of a batch's ids, each read once.

        Args:
            ids: int64 of any shape.
            checked: the ids are known to be below ``feature_size``, so a GPU need not wait for the check.

        Returns:
            A :class:`Lookup`. The gradient with respect to a column is ``tf.IndexedSlices`` with unique indices,
            row 0 first, as :meth:`touched` expects.

        Raises:
            tf.errors.InvalidArgumentError: when the op runs, for an id outside ``[0, feature_size)``; with
                ``checked``, on a CPU only.
        """
        unique, inverse = self._merged(ids, checked)
        with tf.name_scope("lookup"):
            # Through `.value`: the Keras variable would be read as a whole.
            rows = {column: read_rows(variable.value, unique) for column, variable in self.columns.items()}
        return Lookup(unique, rows, inverse)

    def _merged(self, ids: tf.Tensor, checked: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The distinct ids, 0 first, and the position of each of ``ids`` among them."""
        with tf.name_scope("merge"):
            # With row 0 always first, the rows that a batch touches are a slice of its gradient.
            unique, inverse = merge_ids(ids, zero_first=True)
        with tf.name_scope("lookup"):
            return unique if checked else self._checked(unique), inverse

    def touched(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Mark the columns' gradients from one :meth:`lookup` as merged, so that they are not merged again.

        Args:
            gradients: of ``variables``, one by one.
            variables: Keras variables: columns of this table and others.

        Returns:
            The gradients; those of the columns as :class:`MergedSlices` that share their indices, without row 0,
            which no batch touches.
        """
        columns = {id(variable) for variable in self.columns.values()}
        rows: tf.Tensor | None = None
        found = list(gradients)
        for place, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            if id(variable) in columns and isinstance(gradient, tf.IndexedSlices):
                rows = gradient.indices[1:] if rows is None else rows
                found[place] = MergedSlices(gradient.values[1:], rows, gradient.dense_shape)
        return found

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows in the layout of the ids, without merging first: for scoring."""
        with tf.name_scope("lookup"):
            ids = self._checked(ids)
            return {column: tf.gather(variable.value, ids) for column, variable in self.columns.items()}

    def apply(self, unique_ids: tf.Tensor, grad_rows: Mapping[str, tf.Tensor], optimizer: keras.Optimizer) -> None:
        """Let an optimizer take one step on some rows only; a training loop updates them with all other variables.

        Args:
            unique_ids: int64 ``[U]``, those of a :class:`Lookup`: row 0 comes first and is not updated.
            grad_rows: ``[U, d]`` for each column to update: the gradient with respect to the rows of the lookup.
            optimizer: one of :mod:`afm_ctr.optimizers`, built with at least these columns, or not built yet.
        """
        shape = {column: tf.constant([self.feature_size, self.widths[column]], tf.int64) for column in grad_rows}
        touched = unique_ids[1:]
        slices = [MergedSlices(rows[1:], touched, shape[column]) for column, rows in grad_rows.items()]
        optimizer.apply(slices, [self.columns[column] for column in grad_rows])

    def mark(self, gradient: Any, step: tf.Tensor, counts: tf.Tensor | None = None) -> None:
        """Record in ``last_seen`` that a step touches the rows of a column's gradient.

        Args:
            gradient: of the whole step: ``tf.IndexedSlices``, or dense with zeros where nothing is touched.
            step: the step's number, counted from 1.
            counts: scalar bool; if False the step marks nothing.
        """
        assert self.last_seen is not None
        seen = self.last_seen.value
        step = tf.cast(step, tf.int64)  # GPUs have a scatter for int64, none for int32
        if isinstance(gradient, tf.IndexedSlices):
            steps = self._marks(gradient.indices, step)
            steps = steps if counts is None else tf.where(counts, steps, tf.gather(seen, gradient.indices))
            seen.scatter_update(tf.IndexedSlices(steps, gradient.indices))
        else:
            moved = tf.reduce_any(tf.not_equal(gradient, 0), axis=1)
            moved = moved if counts is None else tf.logical_and(moved, counts)
            seen.assign(tf.where(moved, step, seen))

    def _marks(self, rows: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """The marks of rows. A sharded table stores its rows in another order, and overrides this."""
        return tf.where(rows > 0, step, 0)  # the absent slot's row never expires

    def _checked(self, ids: tf.Tensor) -> tf.Tensor:
        """The ids, after a check that all are in range."""
        message = in_graph(
            f"a feature id is outside [0, {self.feature_size}): the records were prepared with another schema "
            "than the model was made for"
        )
        inside = tf.logical_and(ids >= 0, ids < self.feature_size)
        check = tf.debugging.Assert(tf.reduce_all(inside), [message], summarize=1)
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(ids)

    def get_config(self) -> dict[str, Any]:
        own = {
            "feature_size": self.feature_size,
            "columns": dict(self.widths),
            "seed": self.seed,
            "stddev": dict(self.stddev),
            "placement": self.placement,
            "mark_rows": self.mark_rows,
        }
        return {**super().get_config(), **own}


def assign_rows(variable: tf.Variable, start: int, values: Any) -> None:
    """``variable[start : start + n] = values`` without reading the variable, which may copy all of it."""
    values = tf.convert_to_tensor(values, variable.dtype)
    stop = start + int(values.shape[0])
    tf.raw_ops.ResourceStridedSliceAssign(ref=variable.handle, begin=[start], end=[stop], strides=[1], value=values)


def _normal(base: np.uint64, numbers: np.ndarray, stddev: float) -> np.ndarray:
    """Numbers of the stream ``base``, uint64 of any shape: SplitMix64 of a counter, four 16-bit parts summed."""
    with np.errstate(over="ignore"):
        x = finalise((numbers + np.uint64(1)) * np.uint64(GOLDEN) + base)
        # Two sums at once in the halves of a word.
        pair = (x & np.uint64(0x0000FFFF0000FFFF)) + ((x >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF))
        total = (pair & np.uint64(0xFFFFFFFF)) + (pair >> np.uint64(32))
    return ((total.astype(np.float64) - _SUM_MEAN) * (stddev / _SUM_STDDEV)).astype(np.float32)
