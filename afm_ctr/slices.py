"""Sparse gradients with each row once.

Keras hands its optimizers ``tf.IndexedSlices`` in which a row that a batch reads n times stands n times. Any
optimizer whose step is not linear in the gradient (Adagrad, Adam, FTRL) is wrong on such slices, and an
exchange between ranks sends each repeat. So both the optimizers and the exchange merge first, unless it has been
done: :class:`MergedSlices` say so.
"""

from __future__ import annotations

import tensorflow as tf


class MergedSlices(tf.IndexedSlices):
    """``tf.IndexedSlices`` in which no index stands twice; whoever makes them vouches for that.

    Gradients that share one tensor of indices (the columns of a table, read by one lookup) hold the same rows, and
    are exchanged between ranks together.
    """


def merge_slices(slices: tf.IndexedSlices) -> MergedSlices:
    """Add up the rows of like index: the same gradient with every index once.

    Args:
        slices: values ``[n, ...]`` of a floating dtype and indices ``[n]`` of any integer dtype; n may be 0.
            :class:`MergedSlices` are returned as they are.

    Returns:
        Values ``[u, ...]`` in the dtype that came in, indices int64 ``[u]`` in the order of their first
        appearance (so equal inputs give equal outputs, on every rank), and the same dense shape.

    The result is deterministic on a CPU. On a GPU the segment sum adds with atomics: the last bits may differ
    from run to run unless ``tf.config.experimental.enable_op_determinism()`` is on.
    """
    if isinstance(slices, MergedSlices):
        return slices
    unique, position = tf.unique(tf.cast(slices.indices, tf.int64), out_idx=tf.int64)
    values = add_rows(slices.values, position, tf.size(unique, tf.int64))
    return MergedSlices(values, unique, slices.dense_shape)


def add_rows(values: tf.Tensor, position: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """``result[p] = Σ values[i]`` over all i with ``position[i] = p``, added in the order of i on a CPU.

    Args:
        values: ``[n, ...]``.
        position: int64 ``[n]``, in ``[0, count)``.
        count: int64 scalar.

    Returns:
        ``[count, ...]`` in the dtype of the values; half floats are added as float32.
    """
    if values.dtype in (tf.float16, tf.bfloat16):
        return tf.cast(add_rows(tf.cast(values, tf.float32), position, count), values.dtype)
    if values.dtype not in (tf.float32, tf.float64) or tf.config.get_visible_devices("GPU"):
        return tf.math.unsorted_segment_sum(values, position, count)
    # On CPUs a product with the sparse matrix of ones in these places takes a fifth of the segment sum's time.
    rows = tf.size(position, tf.int64)
    total = tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=tf.stack([position, tf.range(rows)], 1),
        a_values=tf.ones([rows], values.dtype),
        a_shape=tf.stack([count, rows]),
        b=tf.reshape(values, [rows, values.shape[1:].num_elements()]),
    )
    return tf.reshape(total, tf.concat([[count], tf.shape(values, tf.int64)[1:]], 0))


def change_values(slices: tf.IndexedSlices, values: tf.Tensor) -> tf.IndexedSlices:
    """Other numbers for the same rows, of the same kind as what came in."""
    return type(slices)(values, slices.indices, slices.dense_shape)
