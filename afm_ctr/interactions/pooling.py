"""Pooling over pairs of features, in the plain form that holds all pairs of a batch at once.

The mathematics of Xiao et al., "Attentional Factorization Machines", IJCAI 2017, equations 2 to 6, restricted to
the slots that are present.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
import tensorflow as tf

from afm_ctr.interactions.dropout import Dropout, stateless_keep

PoolingInputs = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, np.ndarray]
"""u, present, W, b, h and pairs of :func:`attentional_pooling`, for all its implementations."""


class PoolingOptions(TypedDict, total=False):
    """The keyword arguments of :func:`attentional_pooling`, for all its implementations."""

    scale_by_pairs: bool
    by_slot: bool
    dropout: Dropout | None


def pair_presence(present: tf.Tensor, pairs: np.ndarray) -> tf.Tensor:
    """Which pairs have both slots present: bool ``[B, P]``."""
    return tf.logical_and(tf.gather(present, pairs[:, 0], axis=1), tf.gather(present, pairs[:, 1], axis=1))


def pair_products(u: tf.Tensor, pairs: np.ndarray) -> tf.Tensor:
    """The elementwise products u_i ⊙ u_j of the listed pairs: ``[B, P, k]`` (equation 2)."""
    return tf.gather(u, pairs[:, 0], axis=1) * tf.gather(u, pairs[:, 1], axis=1)


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis among the true entries of the mask; all zero if there is none."""
    scores = tf.where(mask, scores, tf.constant(scores.dtype.min, scores.dtype))
    highest = tf.stop_gradient(tf.reduce_max(scores, axis=-1, keepdims=True))
    weights = tf.where(mask, tf.exp(scores - highest), tf.zeros_like(scores))
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=-1, keepdims=True))


def attention_scores(products: tf.Tensor, W: tf.Tensor, b: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
    """hᵀ relu(Wᵀ(u_i ⊙ u_j) + b), the input of the softmax in equation 5: ``[…, k]`` to ``[…]``.

    Args:
        products: ``[…, k]``, of two dimensions or more.
        W: ``[k, t]``.
        b: ``[t]``.
        h: ``[t]``.
    """
    flat = tf.reshape(products, [-1, W.shape[0]])
    scores = tf.matmul(tf.nn.relu(tf.nn.bias_add(tf.matmul(flat, W), b)), h[:, tf.newaxis])
    return tf.reshape(scores, tf.shape(products)[:-1])


def attentional_pooling(
    u: tf.Tensor,
    present: tf.Tensor,
    W: tf.Tensor,
    b: tf.Tensor,
    h: tf.Tensor,
    pairs: np.ndarray,
    *,
    scale_by_pairs: bool = False,
    by_slot: bool = False,
    dropout: Dropout | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Σ a_ij (u_i ⊙ u_j) over the pairs of present slots (equation 4), and the weights a_ij.

    This is the plain form, built from stock ops, which holds tensors of ``[B, P, max(k, t)]``: the reference, and the
    one that is exported.

    Args:
        u: floating ``[B, F, k]``, the vectors x_i v_i.
        present: bool ``[B, F]``. A row with fewer than two present slots pools to 0 with all weights 0.
        W: ``[k, t]``, the attention matrix (the paper's W transposed).
        b: ``[t]``.
        h: ``[t]``.
        pairs: int32 ``[P, 2]``, the pairs of slots that take part.
        scale_by_pairs: multiply by the number of present pairs, so that uniform attention is a factorization
            machine, and not one divided by the number of pairs.
        by_slot: pool each slot's pairs separately: u_i ⊙ Σ_j a_ij u_j. Half their sum is the plain pooled vector.
        dropout: on the pair weights, after the softmax; the returned weights are without it.

    Returns:
        pooled ``[B, k]`` (by slot ``[B, F, k]``), attention ``[B, P]``, which sums to 1 over the present pairs.
    """
    mask = pair_presence(present, pairs)
    # Pairs before rows: a gather then copies the whole batch of a slot at once, not k numbers.
    slots_first = tf.reshape(tf.transpose(u, [1, 0, 2]), [u.shape[1], -1])
    products = tf.gather(slots_first, pairs[:, 0]) * tf.gather(slots_first, pairs[:, 1])
    products = tf.reshape(products, [len(pairs), tf.shape(u)[0], u.shape[2]])
    attention = masked_softmax(tf.transpose(attention_scores(products, W, b, h)), mask)
    weights = attention
    if dropout is not None and dropout.rate > 0:
        weights *= stateless_keep(dropout.rows, len(pairs), dropout.rate, dropout.seed, dropout.salt, u.dtype)
    if scale_by_pairs:
        weights *= count_pairs(mask, u.dtype)
    if by_slot:
        return pool_by_slot(u, weights, pairs), attention
    return tf.reduce_sum(tf.transpose(weights)[:, :, tf.newaxis] * products, axis=0), attention


def pool_by_slot(u: tf.Tensor, weights: tf.Tensor, pairs: np.ndarray) -> tf.Tensor:
    """u_i ⊙ Σ_j weight_ij u_j, each slot's sum over its pairs: ``[B, F, k]``.

    Args:
        u: floating ``[B, F, k]``; absent slots hold zeros.
        weights: ``[B, P]``.
        pairs: int32 ``[P, 2]``.
    """
    slots = u.shape[1]
    place = np.full((slots, slots), len(pairs), np.int32)
    place[pairs[:, 0], pairs[:, 1]] = place[pairs[:, 1], pairs[:, 0]] = np.arange(len(pairs))
    # The diagonal and the pairs that are not listed refer to the appended column of zeros.
    matrix = tf.gather(tf.pad(weights, [[0, 0], [0, 1]]), place, axis=1)
    return u * tf.matmul(matrix, u)


def count_pairs(mask: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Number of true entries per row: ``[B, 1]``."""
    return tf.reduce_sum(tf.cast(mask, dtype), axis=1, keepdims=True)


@tf.custom_gradient
def _pool_all(u: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """½ ((Σ u)² − Σ u²). Its gradient is hand-written: that of a sum is tiled, which costs more than the rest."""
    total = tf.reduce_sum(u, axis=1, keepdims=True)
    pooled = 0.5 * (tf.square(tf.squeeze(total, axis=1)) - tf.reduce_sum(tf.square(u), axis=1))
    return pooled, lambda upstream: upstream[:, tf.newaxis] * (total - u)


def fm_pooling(u: tf.Tensor, pairs: np.ndarray) -> tf.Tensor:
    """Σ u_i ⊙ u_j over the listed pairs: ``[B, k]``, in time linear in the slots when most pairs take part.

    Source: Rendle, "Factorization Machines", ICDM 2010, lemma 3.1: ½ ((Σ u)² − Σ u²); pairs that are not listed are
    subtracted.

    Args:
        u: floating ``[B, F, k]``; absent slots hold zeros.
        pairs: int32 ``[P, 2]``.
    """
    slots = u.shape[1]
    listed = {(int(i), int(j)) for i, j in pairs}
    others = [(i, j) for i in range(slots) for j in range(i + 1, slots) if (i, j) not in listed]
    if len(others) >= len(listed):
        return tf.reduce_sum(pair_products(u, pairs), axis=1)
    pooled = _pool_all(u)
    if others:
        pooled -= tf.reduce_sum(pair_products(u, np.asarray(others, np.int32)), axis=1)
    return pooled
