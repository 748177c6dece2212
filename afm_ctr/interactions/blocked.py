"""Attentional pooling for training: a few rows at a time, with a backward pass that recomputes them.

The plain form keeps several ``[B, P, ·]`` tensors from the forward pass to the backward pass: at 39 slots and
k = t = 16 that is 190 MB each for 4,096 rows, and none of it is in the cache when it is needed. Here a loop computes
blocks of rows that fit the cache, and only inputs and outputs outlive a block.

Inside a block the pairs are laid out by distance: the pairs (i, i + d mod F) for d = 1 … ⌊F/2⌋ are all pairs
(for even F those of the last distance occur twice, and one of them is masked). So the second factors are shifted
copies of the first, and there is no gather or scatter of vectors. Weighted sums over pairs use the symmetric
``[F, F]`` matrix of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from afm_ctr.interactions.dropout import Dropout, stateless_keep
from afm_ctr.interactions.pooling import PoolingInputs, attentional_pooling, count_pairs, masked_softmax

# Size of one tensor of a block: on a CPU it should stay in the caches, on a GPU it should occupy the whole device.
_CPU_BYTES = 3 << 20
_GPU_BYTES = 256 << 20


class _Layout(NamedTuple):
    """Positions of the pairs in a block; Q = ⌊F/2⌋·F positions, distance by distance."""

    listed: np.ndarray  # bool ``[Q]``, whether the pair takes part
    number: np.ndarray  # ``[Q]``, its index in the list of pairs (0 if it does not take part)
    cell: np.ndarray  # int32 ``[Q]``, its index in a flattened ``[F, F]`` matrix
    # int32 ``[F²]``, for each cell of that matrix the position of its pair; Q if there is none
    position: np.ndarray


@lru_cache(maxsize=32)
def _layout(slots: int, pairs: tuple[tuple[int, int], ...]) -> _Layout:
    numbers = {pair: index for index, pair in enumerate(pairs)}
    half = slots // 2
    listed = np.zeros(half * slots, bool)
    number = np.zeros(half * slots, np.int64)
    cell = np.zeros(half * slots, np.int32)
    position = np.full(slots * slots, half * slots, np.int32)
    for q in range(half * slots):
        i, j = q % slots, (q % slots + q // slots + 1) % slots
        cell[q] = i * slots + j
        index = numbers.pop((min(i, j), max(i, j)), None)
        if index is not None:
            listed[q], number[q] = True, index
            position[i * slots + j] = position[j * slots + i] = q
    if numbers:
        raise ValueError(f"pairs must be distinct and be (i, j) with 0 <= i < j < {slots}, got {min(numbers)}")
    return _Layout(listed, number, cell, position)


def block_rows(slots: int, k: int, t: int, block_bytes: int | None = None) -> int:
    """Number of rows per block, such that a tensor of a block takes at most ``block_bytes``.

    Args:
        slots: F.
        k: width of the vectors.
        t: width of the attention network.
        block_bytes: by default 3 MB, or 256 MB with a GPU. At 39 slots, k = t = 16, on a CPU, blocks of 32 to 128
            rows differed by less than a tenth.
    """
    budget = block_bytes or (_GPU_BYTES if tf.config.get_visible_devices("GPU") else _CPU_BYTES)
    row = 4 * max(1, slots // 2) * slots * max(k, t)
    return int(np.clip(budget // row, 1, budget // 3072))


@tf.autograph.experimental.do_not_convert
def blocked_attentional_pooling(
    *inputs: *PoolingInputs,
    scale_by_pairs: bool = False,
    by_slot: bool = False,
    dropout: Dropout | None = None,
    rows_at_once: int | None = None,
    network_dtype: tf.DType | None = None,
) -> tf.Tensor:
    """The pooled vectors of :func:`attentional_pooling`, with its arguments, in little memory.

    Differentiable once, by u, W, b and h. In addition to inputs and results it holds a few tensors of one block.

    Args:
        rows_at_once: size of a block; by default that of :func:`block_rows`.
        network_dtype: of the factors in the products with W and h, forward and backward; None: that of ``u``. Sums
            over pairs or rows, and the softmax, are in the dtype of ``u``.
    """
    u, present, W, b, h = (tf.convert_to_tensor(x) for x in inputs[:5])
    pairs = inputs[5]
    slots = u.shape[1]
    layout = _layout(slots, tuple((int(i), int(j)) for i, j in pairs))
    low = tf.as_dtype(network_dtype or u.dtype)
    if not len(pairs):
        return tf.zeros_like(u if by_slot else u[:, 0, :])
    shape = list(u.shape[1:]) if by_slot else [W.shape[0]]
    block = rows_at_once or block_rows(slots, W.shape[0], W.shape[1])
    total = tf.shape(u)[0]

    def keep(start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor | None:
        if dropout is None or dropout.rate == 0:
            return None
        rows = dropout.rows[start:stop]
        return stateless_keep(rows, layout.number, dropout.rate, dropout.seed, dropout.salt, u.dtype)

    @tf.custom_gradient
    def pooled(u: tf.Tensor, W: tf.Tensor, b: tf.Tensor, h: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def attend(start: tf.Tensor, stop: tf.Tensor) -> _Attended:
            network = tuple(tf.cast(x, low) for x in (W, b, h))
            return _attend(u[start:stop], present[start:stop], network, layout, scale_by_pairs, keep(start, stop))

        def forward(start: tf.Tensor, stop: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            part = attend(start, stop)
            slots_pooled = part.u * part.mixed
            return slots_pooled if by_slot else 0.5 * tf.reduce_sum(slots_pooled, axis=1), []

        def backward(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            def step(start: tf.Tensor, stop: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
                part = attend(start, stop)
                # Half of each slot's sum belongs to the sum over all slots.
                by_sum = upstream[start:stop] if by_slot else 0.5 * upstream[start:stop, tf.newaxis]
                return _gradients(part, by_sum, W, h, layout)

            by_u, sums = _over_blocks(step, total, block, u.shape[1:], [W, b, h], u.dtype)
            return by_u, *sums

        return _over_blocks(forward, total, block, shape, [], u.dtype)[0], backward

    result = pooled(u, W, b, h)
    result.set_shape([u.shape[0], *shape])
    return result


@tf.autograph.experimental.do_not_convert
def request_attentional_pooling(
    *inputs: *PoolingInputs, scale_by_pairs: bool = False, by_slot: bool = False, rows_at_once: int | None = None
) -> tf.Tensor:
    """The pooled vectors of :func:`attentional_pooling`, with its arguments and its bits, a block of rows at a time.

    Built from stock ops, for exported graphs: a request of any size needs the memory of one block in addition to its
    own.

    Args:
        rows_at_once: size of a block; by default that of :func:`block_rows` on a CPU.
    """
    u, present, *network = inputs
    k = u.shape[2]
    block = rows_at_once or block_rows(u.shape[1], k, network[0].shape[1], _CPU_BYTES)

    def pooled(start: tf.Tensor, stop: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        some = attentional_pooling(
            u[start:stop], present[start:stop], *network, scale_by_pairs=scale_by_pairs, by_slot=by_slot
        )
        return some[0], []

    shape = list(u.shape[1:]) if by_slot else [k]
    result = _over_blocks(pooled, tf.shape(u)[0], block, shape, [], u.dtype)[0]
    result.set_shape([u.shape[0], *shape])
    return result


def _over_blocks(
    step: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, list[tf.Tensor]]],
    total: tf.Tensor,
    block: int,
    shape: object,
    like: list[tf.Tensor],
    dtype: tf.DType,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Run a step over the blocks of rows: its first results are concatenated, the others added up in order."""
    count = tf.maximum(1, (total + block - 1) // block)  # an empty TensorArray cannot be concatenated
    kept = tf.TensorArray(dtype, count, infer_shape=False, element_shape=tf.TensorShape([None]).concatenate(shape))

    def body(index: tf.Tensor, kept: tf.TensorArray, *sums: tf.Tensor) -> tuple[Any, ...]:
        start = index * block
        part, more = step(start, tf.minimum(start + block, total))
        return index + 1, kept.write(index, part), *(total + new for total, new in zip(sums, more, strict=True))

    _, kept, *sums = tf.while_loop(
        lambda index, *_: index < count, body, (0, kept, *(tf.zeros_like(x) for x in like)), parallel_iterations=1
    )
    return kept.concat(), list(sums)


class _Attended(NamedTuple):
    """A block after the forward pass; c rows, Q positions."""

    u: tf.Tensor  # ``[c, F, k]``
    other: tf.Tensor  # ``[c, ⌊F/2⌋, F, k]``, the second factor of each pair
    products: tf.Tensor  # ``[c·Q, k]``
    hidden: tf.Tensor  # ``[c·Q, t]``, after the relu
    attention: tf.Tensor  # ``[c, Q]``
    factor: tf.Tensor  # ``[c, Q]`` or ``[c, 1]``, factor of dropout and scaling
    matrix: tf.Tensor  # ``[c, F, F]``, a_ij·factor, symmetric
    mixed: tf.Tensor  # ``[c, F, k]``, Σ_j a_ij·factor u_j


def _attend(
    u: tf.Tensor,
    present: tf.Tensor,
    network: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    layout: _Layout,
    scale_by_pairs: bool,
    keep: tf.Tensor | None,
) -> _Attended:
    W, b, h = network
    slots, k, places = u.shape[1], u.shape[2], len(layout.listed)
    other = _shifted(u)
    products = tf.cast(tf.reshape(u[:, tf.newaxis] * other, [-1, k]), W.dtype)
    hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(products, W), b))
    mask = tf.reshape(tf.logical_and(present[:, tf.newaxis], _shifted(present)), [-1, places])
    mask = tf.logical_and(mask, layout.listed)
    scores = tf.cast(tf.matmul(hidden, h[:, tf.newaxis]), u.dtype)
    attention = masked_softmax(tf.reshape(scores, [-1, places]), mask)
    factor = count_pairs(mask, u.dtype) if scale_by_pairs else tf.ones([1, 1], u.dtype)
    if keep is not None:
        factor *= keep
    # The diagonal and the pairs that are not listed refer to the appended column of zeros.
    matrix = tf.gather(tf.pad(attention * factor, [[0, 0], [0, 1]]), layout.position, axis=1)
    matrix = tf.reshape(matrix, [-1, slots, slots])
    return _Attended(u, other, products, hidden, attention, factor, matrix, tf.matmul(matrix, u))


def _gradients(
    part: _Attended, upstream: tf.Tensor, W: tf.Tensor, h: tf.Tensor, layout: _Layout
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Gradients by u, and by W, b and h, from the gradient by the slots' sums: ``[c, F, k]``, or ``[c, 1, k]``."""
    u = part.u
    slots, half = u.shape[1], u.shape[1] // 2
    through = u * upstream
    # (g_i + g_j)ᵀ(u_i ⊙ u_j) of all pairs is one product of matrices, and its transpose.
    half_way = tf.matmul(through, u, transpose_b=True)
    by_weight = half_way + tf.linalg.matrix_transpose(half_way)
    by_weight = tf.gather(tf.reshape(by_weight, [-1, slots * slots]), layout.cell, axis=1)
    by_attention = by_weight * part.factor
    mean = tf.reduce_sum(part.attention * by_attention, axis=1, keepdims=True)
    by_score = tf.reshape(part.attention * (by_attention - mean), [-1, 1])
    by_h = tf.squeeze(_summed(part.hidden, by_score), axis=1)
    low = part.hidden.dtype
    by_hidden = tf.raw_ops.ReluGrad(gradients=tf.cast(by_score * h, low), features=part.hidden)
    by_W = _summed(part.products, tf.cast(by_hidden, u.dtype))
    by_product = tf.cast(tf.matmul(by_hidden, tf.cast(W, low), transpose_b=True), u.dtype)
    by_product = tf.reshape(by_product, [-1, half, slots, u.shape[2]])
    by_other = by_product * u[:, tf.newaxis]
    back = [tf.roll(by_other[:, d], d + 1, axis=1) for d in range(half)]
    by_u = tf.reduce_sum(by_product * part.other, axis=1) + tf.add_n(back)
    by_u += upstream * part.mixed + tf.matmul(part.matrix, through)
    return by_u, [by_W, tf.reduce_sum(tf.cast(by_hidden, u.dtype), axis=0), by_h]


def _summed(factors: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    """Σ over pairs and rows of factors ⊗ by, in the dtype of ``by``: ``[n, a]`` and ``[n, b]`` to ``[a, b]``."""
    return tf.matmul(tf.cast(factors, by.dtype), by, transpose_a=True)


def _shifted(x: tf.Tensor) -> tf.Tensor:
    """x shifted by 1, 2, … ⌊F/2⌋ slots, around the end: ``[c, F, …]`` to ``[c, ⌊F/2⌋, F, …]``."""
    slots = x.shape[1]
    twice = tf.concat([x, x], axis=1)
    return tf.stack([twice[:, d : d + slots] for d in range(1, slots // 2 + 1)], axis=1)
