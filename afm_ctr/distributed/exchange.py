"""The exchange of gradients between the ranks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import tensorflow as tf

from afm_ctr.distributed.world import World, is_replicated, raw_variable
from afm_ctr.errors import in_graph
from afm_ctr.sparse_gradients import MergedSlices, change_values, merge_slices

Gradient: TypeAlias = Any
"""A ``tf.Tensor``, a ``tf.IndexedSlices`` or None."""

Form = Literal["gather", "reduce"]
"""How sparse gradients are summed: by gathering their merged rows, or by adding them up as dense tables."""

Traffic = Literal["gather", "reduce", "sharded"]
"""How a table's gradient is exchanged: a form, or the ids, rows and gradient rows of a sharded table."""

UNEVEN = "give every rank as many by steps_per_epoch, or let short ranks take batches of weight 0"
"""How to fix unequal numbers of batches."""

_numbers = itertools.count()


def scaled(gradient: Gradient, factor: tf.Tensor) -> Gradient:
    """A gradient times a scalar."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return change_values(gradient, gradient.values * tf.cast(factor, gradient.values.dtype))
    return gradient * tf.cast(factor, gradient.dtype)


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    """Half floats are summed as float32: they would overflow, and Horovod has no bfloat16."""
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.float16, tf.bfloat16) else tensor


def exchanged_bytes(form: Traffic, touched: int, rows: int, width: int, itemsize: int = 4) -> int:
    """Bytes that a rank puts into the exchange of a table in a step: its gradient, or for a sharded table the ids
    that it requests, as many rows, and their gradient.

    Args:
        touched: distinct rows that the rank's part of the batch reads.
        width: numbers per row, over all columns that are read together.
    """
    if form == "gather":
        return touched * (width * itemsize + _index_type(rows).size)
    if form == "sharded":
        return touched * (tf.int64.size + 2 * width * itemsize)
    return rows * (width + 1) * itemsize


def sent_bytes(form: Traffic, ranks: int, touched: int, rows: int, width: int, itemsize: int = 4) -> int:
    """Bytes of :func:`exchanged_bytes` that a rank sends to others: gathered rows travel around the ring of ranks, a
    sum goes around it twice in parts, and a sharded table's rows of other ranks are sent once."""
    times = {"gather": ranks - 1, "reduce": 2 * (ranks - 1) / ranks, "sharded": (ranks - 1) / ranks}[form]
    return round(times * exchanged_bytes(form, touched, rows, width, itemsize))


def _index_type(rows: int) -> tf.DType:
    return tf.int32 if rows <= np.iinfo(np.int32).max else tf.int64


@dataclasses.dataclass
class _Trace:
    """Exchanges of the last traced step: tables as (form, name, rows, width, dtype), vectors as (shape, dtype)."""

    eager: bool
    tables: list[tuple[Form, str, int, int, tf.DType]] = dataclasses.field(default_factory=list)
    vectors: list[tuple[tf.TensorShape, tf.DType]] = dataclasses.field(default_factory=list)


class GradientExchange:
    """Sums gradients over the ranks: dense ones in one exchange, sparse ones table by table.

    A sparse gradient is merged (unique rows) and then takes one of two forms, which give the same sums:

    * ``gather``: every rank gets all ranks' rows and merges them again. The cost is that of the touched rows.
    * ``reduce``: the rows are scattered into a dense table with one more column, which counts the ranks that touch a
      row; the table is summed, and the counted rows are gathered from it, so that the optimizer updates only those.
      The cost is that of the table, which pays if the ranks touch a good part of it.

    Either way every rank ends with the same rows in the same order. Gradients that share their rows (see
    :class:`MergedSlices`) travel together. The operations have their own names, the same on every rank as long as the
    ranks make their exchanges in the same order.

    A mark, which is 0 in a step, travels with the dense gradients: a rank that has no more batches calls
    :meth:`finish`, and the step of the other ranks fails instead of mixing the gradients of two epochs.

    Args:
        form: for variables without the attribute ``exchange``, ``"gather"`` or ``"reduce"``, which is read when a
            step is traced.
    """

    def __init__(self, world: World, form: Form = "gather") -> None:
        self.world = world
        self._form = _known(form)
        self._name = f"afm_ctr_exchange_{next(_numbers)}"
        self._trace: _Trace | None = None

    @property
    def traced(self) -> bool:
        """Whether a step was exchanged or traced, so that :meth:`finish` can be called."""
        return self._trace is not None

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[Any], weight: tf.Tensor | None
    ) -> tuple[list[Gradient], tf.Tensor | None]:
        """Sum over the ranks.

        Args:
            gradients: dense tensors, ``tf.IndexedSlices`` or None, None at the same places on every rank.
            variables: the variables of the gradients. The gradient of a sharded variable (see ``is_replicated``) is
                summed already and only merged here.
            weight: scalar, summed in the same exchange; None if there is none.

        Returns:
            The gradients summed (half floats as float32; sparse ones as ``MergedSlices``) and the sum of the weights.

        Raises:
            ValueError: a variable's ``exchange`` is an unknown form.
        """
        trace = self._trace = _Trace(tf.executing_eagerly())
        sums: list[Gradient] = list(gradients)
        dense: list[int] = []
        tables: dict[Any, list[int]] = {}
        with tf.name_scope("merge"):
            for place, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
                if isinstance(gradient, tf.IndexedSlices):
                    sums[place] = merge_slices(change_values(gradient, _wide(gradient.values)))
                    if is_replicated(variable) and self.world.size > 1:
                        form = _known(getattr(variable, "exchange", self._form))
                        alike = (id(sums[place].indices), raw_variable(variable).shape[0], sums[place].dtype, form)
                        tables.setdefault(alike, []).append(place)
                elif gradient is not None and is_replicated(variable):
                    dense.append(place)
        with tf.name_scope("exchange"):
            for (_, rows, _, form), places in tables.items():
                shapes = [raw_variable(variables[place]).shape for place in places]
                widths = [shape[1:].num_elements() for shape in shapes]
                slices = [sums[place] for place in places]
                together = tf.concat([tf.reshape(s.values, [-1, w]) for s, w in zip(slices, widths, strict=True)], 1)
                name = f"{self._name}_rows_{places[0]}"
                trace.tables.append((form, name, int(rows), sum(widths), together.dtype))
                indices, total = self._take(form, slices[0].indices, together, int(rows), name)
                for place, part, shape in zip(places, tf.split(total, widths, axis=1), shapes, strict=True):
                    values = tf.reshape(part, [-1, *shape[1:]])
                    sums[place] = MergedSlices(values, indices, sums[place].dense_shape)
            vectors = [_wide(tf.convert_to_tensor(gradients[place])) for place in dense]
            if weight is not None:
                vectors.append(_wide(weight))
            if self.world.size > 1:
                vectors.append(tf.zeros([1]))
            trace.vectors = [(vector.shape, vector.dtype) for vector in vectors]
            if vectors:
                vectors = self.world.grouped_sum(vectors, self._name)
            if self.world.size > 1:
                ended = "another rank has ended its epoch or its training while this one has batches left: "
                tf.debugging.Assert(tf.equal(vectors.pop()[0], 0), [in_graph(ended + UNEVEN)], summarize=1)
        summed_weight = vectors.pop() if weight is not None else None
        for place, gradient in zip(dense, vectors, strict=True):
            sums[place] = gradient
        return sums, summed_weight

    def finish(self, mark: float) -> float:
        """Take part in an exchange with only a mark, and return the sum of all ranks' marks.

        If all ranks call it, it is a separate exchange; if others take a step, whose mark is 0, that step fails.
        """
        trace = self._trace
        assert trace is not None

        def exchange() -> tf.Tensor:
            for form, name, rows, width, dtype in trace.tables:
                self._take(form, tf.zeros([0], tf.int64), tf.zeros([0, width], dtype), rows, name)
            zeros = [tf.zeros(shape, dtype) for shape, dtype in trace.vectors[:-1]]
            return self.world.grouped_sum([*zeros, tf.constant([mark], tf.float32)], self._name)[-1][0]

        # The operations must have the names of the step, which depend on eager or graph mode.
        return float((exchange if trace.eager else tf.function(exchange))().numpy())

    def _take(
        self, form: Form, indices: tf.Tensor, values: tf.Tensor, rows: int, name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return (self._gather if form == "gather" else self._reduce)(indices, values, rows, name)

    def _gather(self, indices: tf.Tensor, values: tf.Tensor, rows: int, name: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows int64 ``[u]`` and their sums ``[u, width]``, from this rank's."""
        everyone = self.world.allgather(values, f"{name}_values")
        where = self.world.allgather(tf.cast(indices, _index_type(rows)), f"{name}_indices")
        merged = merge_slices(tf.IndexedSlices(everyone, where))
        return merged.indices, merged.values

    def _reduce(self, indices: tf.Tensor, values: tf.Tensor, rows: int, name: str) -> tuple[tf.Tensor, tf.Tensor]:
        """The same as :meth:`_gather`, through the whole table; the rows come in ascending order."""
        counted = tf.concat([values, tf.ones_like(values[:, :1])], 1)
        table = tf.scatter_nd(indices[:, tf.newaxis], counted, tf.constant([rows, counted.shape[1]], tf.int64))
        table = self.world.allreduce(table, "sum", name)
        touched = tf.squeeze(tf.where(table[:, -1] > 0), 1)
        return touched, tf.gather(table, touched)[:, :-1]


def count_again() -> None:
    """Restart the numbering of exchanges, as in a new process: new optimizers must match those there."""
    global _numbers
    _numbers = itertools.count()


def _known(form: str) -> Form:
    if form not in get_args(Form):
        raise ValueError(f"exchange must be one of {', '.join(get_args(Form))}, got {form!r}")
    return form  # type: ignore[return-value]
