"""Sparse gradients with unique rows.

Keras hands its optimizers ``tf.IndexedSlices`` in which a row that a batch reads n times occurs n times. Any
optimizer whose step is not linear in the gradient (Adagrad, Adam, FTRL) is wrong on such slices, and an exchange
between ranks sends each repeat. So both the optimizers and the exchange merge first, unless the gradient is a
:class:`MergedSlices`, which is merged already.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from afm_ctr import native


class MergedSlices(tf.IndexedSlices):
    """``tf.IndexedSlices`` with unique indices; the code that creates them guarantees it.

    Gradients that share one tensor of indices (the columns of a table, read by one lookup) hold the same rows, and
    ranks exchange them together.
    """


def merge_slices(slices: tf.IndexedSlices) -> MergedSlices:
    """Add up the rows with equal indices: the same gradient with every index once.

    Args:
        slices: values ``[n, ...]`` of a floating dtype and indices ``[n]`` of any integer dtype; n may be 0.
            :class:`MergedSlices` are returned as they are.

    Returns:
        Values ``[u, ...]`` in the given dtype, indices int64 ``[u]`` in order of first appearance (so equal inputs
        give equal outputs, on every rank), and the same dense shape.

    The sums are those of :func:`add_rows`: the same bits on every rank and in every run, on CPUs and on GPUs.
    """
    if isinstance(slices, MergedSlices):
        return slices
    unique, position = merge_ids(tf.cast(slices.indices, tf.int64))
    values = add_rows(slices.values, position, tf.size(unique))
    return MergedSlices(values, unique, slices.dense_shape)


def merge_ids(ids: tf.Tensor, zero_first: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """The distinct ids, in order of first appearance.

    Args:
        ids: int64 of any shape, or int32.
        zero_first: 0 comes first, whether it occurs or not.

    Returns:
        The ids ``[u]``, and the position of each of ``ids`` among them, int64 in the shape of the ids.
    """
    if ids.dtype == tf.int64 and native.steps_tables(tf.float32):
        return native.merge_ids(ids, zero_first)
    flat = tf.concat([tf.zeros([int(zero_first)], ids.dtype), tf.reshape(ids, [-1])], 0)
    unique, inverse = tf.unique(flat, out_idx=tf.int64)  # int32 tensors would be copied to the host and back
    return unique, tf.reshape(inverse[int(zero_first) :], tf.shape(ids))


def read_rows(variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """``variable[rows]`` without reading the whole variable; its gradient is ``tf.IndexedSlices``.

    Args:
        variable: ``[n, d]``.
        rows: int64 ``[u]``, or int32.
    """
    if rows.dtype == tf.int64 and variable.shape.rank == 2 and native.steps_tables(variable.dtype):
        return native.read_rows(variable, rows)
    return tf.gather(variable, rows)


def expand_rows(rows: tf.Tensor, position: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """``scale[i] · rows[position[i]]``, whose gradient with respect to the rows is that of :func:`add_rows`.

    Args:
        rows: floating ``[u, d]``.
        position: int64 ``[n]``.
        scale: of the dtype of the rows, ``[n]``.

    Returns:
        ``[n, d]``.
    """

    @tf.custom_gradient
    def expanded(rows: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        fused = native.steps_tables(rows.dtype)

        def back(upstream: tf.Tensor) -> list[tf.Tensor]:
            with tf.name_scope("lookup"):
                by_scale = tf.reduce_sum(upstream * tf.gather(rows, position), axis=1)
                count = tf.shape(rows)[0]
                if fused:
                    return [native.add_rows(upstream, position, tf.cast(count, tf.int64), scale), by_scale]
                return [add_rows(upstream * scale[:, tf.newaxis], position, count), by_scale]

        if fused:
            return native.expand_rows(rows, position, scale), back
        return tf.gather(rows, position) * scale[:, tf.newaxis], back

    return expanded(rows, scale)


def fm_logits(linear: tf.Tensor, vectors: tf.Tensor, position: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Σ_i w_i x_i + Σ_{i<j} ⟨v_i, v_j⟩ x_i x_j over all slots, from distinct rows, without expanding them by slot.

    Only if :func:`afm_ctr.native.steps_tables`. The gradient by the rows is summed as in :func:`add_rows`.

    Args:
        linear: float32 ``[u, 1]``, w.
        vectors: float32 ``[u, k]``, v.
        position: int64 ``[B, F]``, the row of each slot.
        scale: float32 ``[B, F]``, x.

    Returns:
        ``[B]``.

    Source: Rendle, "Factorization Machines", ICDM 2010, lemma 3.1.
    """

    @tf.custom_gradient
    def logits_of(
        linear: tf.Tensor, vectors: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        logits, sums = native.fm(linear, vectors, position, scale)

        def back(upstream: tf.Tensor) -> list[tf.Tensor]:
            with tf.name_scope("interaction"):
                v = tf.gather(vectors, position)
                others = sums[:, tf.newaxis] - v * scale[..., tf.newaxis]
                slopes = tf.squeeze(tf.gather(linear, position), axis=-1) + tf.reduce_sum(v * others, axis=2)
                by_scale = upstream[:, tf.newaxis] * slopes  # not used in training, so no step computes it
                return [*native.fm_gradient(upstream, sums, vectors, position, scale), by_scale]

        return logits, back

    return logits_of(linear, vectors, scale)


def add_rows(values: tf.Tensor, position: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """``result[p] = Σ values[i]`` over all i with ``position[i] = p``, summed in a fixed order.

    ``tf.math.unsorted_segment_sum`` adds with atomics on a GPU, in the order in which threads arrive: ranks would
    drift apart and runs would differ. Half floats are summed in float32.

    Args:
        values: floating ``[n, ...]``.
        position: int64 ``[n]``, in ``[0, count)``.
        count: int32 scalar, kept on the host with a GPU, where it sets the size of a kernel launch.

    Returns:
        ``[count, ...]`` in the dtype of the values.
    """
    if values.dtype in (tf.float16, tf.bfloat16):
        return tf.cast(add_rows(tf.cast(values, tf.float32), position, count), values.dtype)
    if native.steps_tables(values.dtype) and values.shape.rank == 2:
        return native.add_rows(values, position, tf.cast(count, tf.int64))
    return (add_sorted if native.uses_gpu() else add_in_order)(values, position, count)


def add_in_order(values: tf.Tensor, position: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """In the order of i: a product with the sparse matrix of ones in these places.

    On CPUs it takes a fifth of the segment sum's time. Its GPU kernel uses atomics too.
    """
    rows = tf.size(position, tf.int64)
    total = tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=tf.stack([position, tf.range(rows)], 1),
        a_values=tf.ones([rows], values.dtype),
        a_shape=tf.stack([tf.cast(count, tf.int64), rows]),
        b=tf.reshape(values, [rows, values.shape[1:].num_elements()]),
    )
    return tf.reshape(total, tf.concat([[count], tf.shape(values)[1:]], 0))


def add_sorted(values: tf.Tensor, position: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Sorted by p and then by i, so that each sum is over a run of rows, which the sparse segment sum reduces.

    It is TensorFlow's only segment sum whose GPU kernel has no atomics: a block of threads sums a run.
    """
    order = tf.argsort(position, stable=True)
    return tf.sparse.segment_sum(values, order, tf.gather(position, order), num_segments=count)


def change_values(slices: tf.IndexedSlices, values: tf.Tensor) -> tf.IndexedSlices:
    """The same rows with other values, of the given type of slices."""
    return type(slices)(values, slices.indices, slices.dense_shape)
