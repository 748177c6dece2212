"""Sparse gradients with each row once.

Keras hands its optimizers ``tf.IndexedSlices`` in which a row that a batch reads n times stands n times. Any
optimizer whose step is not linear in the gradient (Adagrad, Adam, FTRL) is wrong on such slices, and an
exchange between ranks sends each repeat. So both the optimizers and the exchange merge first.
"""

from __future__ import annotations

import tensorflow as tf


def merge_slices(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    """Add up the rows of like index: the same gradient with every index once.

    Args:
        slices: values ``[n, ...]`` of a floating dtype and indices ``[n]`` of any integer dtype; n may be 0.

    Returns:
        Values ``[u, ...]`` in the dtype that came in, indices int64 ``[u]`` in the order of their first
        appearance (so equal inputs give equal outputs, on every rank), and the same dense shape.

    The result is deterministic on a CPU. On a GPU the segment sum adds with atomics: the last bits may differ
    from run to run unless ``tf.config.experimental.enable_op_determinism()`` is on.
    """
    unique, position = tf.unique(tf.cast(slices.indices, tf.int64))
    values = tf.math.unsorted_segment_sum(slices.values, position, tf.size(unique))
    return tf.IndexedSlices(values, unique, slices.dense_shape)
