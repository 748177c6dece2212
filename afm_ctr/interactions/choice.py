"""Which implementation of attentional pooling training uses: the op in C++, or blocks of rows in TensorFlow."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import tensorflow as tf

from afm_ctr import native
from afm_ctr.interactions.blocked import blocked_attentional_pooling
from afm_ctr.interactions.dropout import Dropout, drop_key, drop_threshold
from afm_ctr.interactions.pooling import PoolingInputs, PoolingOptions

POOLING = "AFM_CTR_POOLING"


def uses_fused(dtype: tf.DType, slots: int = 2, k: int = 1, t: int = 1, by_slot: bool = False) -> bool:
    """Whether a training step uses the fused op: for float32, if its library is installed.

    On a GPU its kernels are compiled for the shape, if NVRTC is installed. The environment variable
    ``AFM_CTR_POOLING`` selects one: ``fused`` or ``tensorflow``.

    Args:
        dtype: of the vectors.
        by_slot: whether each slot's pairs are pooled separately.

    Raises:
        UserError: the selected one is not available.
    """
    if dtype != tf.float32:
        return False
    return native.asked_for(POOLING, "fused", "tensorflow", native.why_not(slots, k, t, by_slot))


@tf.autograph.experimental.do_not_convert
def training_attentional_pooling(
    *inputs: *PoolingInputs, network_dtype: tf.DType | None = None, **options: Unpack[PoolingOptions]
) -> tf.Tensor:
    """The pooled vectors of :func:`attentional_pooling`, with its arguments, by the implementation for training.

    ``network_dtype`` is that of :func:`blocked_attentional_pooling`: the fused op supports float32 only.
    """
    u, _, W, _, _, pairs = inputs
    same, by_slot = network_dtype in (None, u.dtype), options.get("by_slot", False)
    if len(pairs) and same and uses_fused(u.dtype, u.shape[1], W.shape[0], W.shape[1], by_slot):
        return fused_attentional_pooling(*inputs, **options)
    return blocked_attentional_pooling(*inputs, network_dtype=network_dtype, **options)


@tf.autograph.experimental.do_not_convert
def fused_attentional_pooling(
    *inputs: *PoolingInputs, scale_by_pairs: bool = False, by_slot: bool = False, dropout: Dropout | None = None
) -> tf.Tensor:
    """The pooled vectors of :func:`attentional_pooling`, with its arguments, by the op in C++.

    Raises:
        ValueError: the pairs are not distinct (i, j) with i < j.
        RuntimeError: the library cannot be used.
    """
    u, present, W, b, h, pairs = inputs
    pairs = np.asarray(pairs, np.int32).reshape(-1, 2)
    i, j = pairs.T.astype(np.int64)
    slots = u.shape[1]
    if np.any((i < 0) | (i >= j) | (j >= slots)) or len(np.unique(i * slots + j)) < len(pairs):
        raise ValueError(f"pairs must be distinct and be (i, j) with 0 <= i < j < {slots}")
    drop = {}
    if dropout is not None and dropout.rate > 0:
        drop = {
            "rows": dropout.rows,
            "threshold": drop_threshold(dropout.rate),
            "keep_scale": 1.0 / (1.0 - dropout.rate),
            "key": drop_key(dropout.seed, dropout.salt),
        }
    return native.fused_pooling(u, present, W, b, h, pairs, scale_by_pairs=scale_by_pairs, by_slot=by_slot, **drop)
