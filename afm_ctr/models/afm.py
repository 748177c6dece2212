"""Attentional factorization machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.interactions import (
    Dropout,
    attentional_pooling,
    block_rows,
    count_pairs,
    pair_presence,
    pair_products,
    request_attentional_pooling,
    stateless_keep,
    training_attentional_pooling,
)
from afm_ctr.models.base import Interaction, InteractionInputs
from afm_ctr.models.options import AFMOptions

PAIR_SALT, POOLED_SALT = 1, 2


class AFM(Interaction):
    """y = w0 + Σ w_i x_i + pᵀ Σ_{i<j} a_ij (v_i ⊙ v_j) x_i x_j, with a_ij a softmax over the pairs of present slots.

    Initial values: W Glorot uniform, b zero, h Glorot uniform as a ``[t, 1]`` matrix, p ones. So a new model is close
    to a factorization machine (divided by the number of pairs unless ``scale_by_pairs``), and attention starts nearly
    uniform because the products of new vectors are small.

    Reference:
        Xiao, Ye, He, Zhang, Wu, Chua: Attentional Factorization Machines: Learning the Weight of Feature
        Interactions via Attention Networks, IJCAI 2017, equations 2 to 8.
    """

    Options: type[AFMOptions] = AFMOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        k, t = self.options.factors, self.options.attention
        glorot = keras.initializers.GlorotUniform
        self.W = self.add_weight(shape=(k, t), initializer=glorot(seed=self.seed), name="attention_matrix")
        self.b = self.add_weight(shape=(t,), initializer="zeros", name="attention_bias")
        # A flat variable is easier to serve than a [t, 1] one; the bound is that of the matrix.
        bound = (6.0 / (t + 1)) ** 0.5
        uniform = keras.initializers.RandomUniform(-bound, bound, seed=self.seed + 1)
        self.h = self.add_weight(shape=(t,), initializer=uniform, name="attention_projection")
        self.p = self.add_weight(shape=(k,), initializer="ones", name="pooled_projection")

    def call(self, inputs: InteractionInputs, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        drop = self._dropout(training, rows, self.options.attention_dropout, PAIR_SALT)
        pooled = self._pool(inputs, training, drop)
        pooled = self._thinned(pooled, training, rows, POOLED_SALT)
        return tf.reduce_sum(inputs.linear, axis=1) + tf.linalg.matvec(pooled, self.p.value)

    def _pool(self, inputs: InteractionInputs, training: bool, dropout: Dropout | None) -> tf.Tensor:
        """The pooled vectors: by the fastest implementation in training and for batches of a size known in advance.

        A batch of unknown size is a request to an exported model, and a small one is an explanation or a check: for
        both the plain form is the simpler graph, of stock ops; a request is computed a block at a time.
        """
        assert inputs.vectors is not None
        size = inputs.vectors.shape[0]
        block = block_rows(inputs.vectors.shape[1], self.options.factors, self.options.attention)
        if training or (size is not None and size > block):
            low = tf.as_dtype(self.network_dtype) if training else None
            return training_attentional_pooling(
                *self._arguments(inputs), dropout=dropout, network_dtype=low, **self._switches()
            )
        if size is None:
            return request_attentional_pooling(*self._arguments(inputs), **self._switches())
        return attentional_pooling(*self._arguments(inputs), dropout=dropout, **self._switches())[0]

    def _attend(self, inputs: InteractionInputs) -> tuple[tf.Tensor, tf.Tensor]:
        return attentional_pooling(*self._arguments(inputs), **self._switches())

    def _arguments(self, inputs: InteractionInputs) -> tuple[Any, ...]:
        return inputs.vectors, inputs.present, self.W.value, self.b.value, self.h.value, self.pairs

    def _switches(self) -> dict[str, Any]:
        return {"scale_by_pairs": self.options.scale_by_pairs}

    def _dropout(self, training: bool, rows: tf.Tensor | None, rate: float, salt: int) -> Dropout | None:
        if not training or rate == 0:
            return None
        if rows is None:
            raise ValueError("dropout needs `rows`: a number for each example and step, int64 [B]")
        return Dropout(rows, rate, self.seed, salt)

    def _thinned(self, values: tf.Tensor, training: bool, rows: tf.Tensor | None, salt: int) -> tf.Tensor:
        """``[B, width]`` after the dropout ``pooled_dropout``."""
        drop = self._dropout(training, rows, self.options.pooled_dropout, salt)
        if drop is None:
            return values
        return values * stateless_keep(drop.rows, values.shape[1], drop.rate, drop.seed, drop.salt, values.dtype)

    def penalties(self) -> list[tuple[keras.Variable, float]]:
        return [(self.W, self.options.attention_l2)] if self.options.attention_l2 else []

    def explain(self, inputs: InteractionInputs) -> tf.Tensor:
        """a_ij: ``[B, P]``."""
        return self._attend(inputs)[1]

    def contributions(self, inputs: InteractionInputs) -> tf.Tensor:
        """a_ij pᵀ(u_i ⊙ u_j), scaled as in the logit: ``[B, P]``; their sum is the pairs' part of the logit."""
        _, attention = self._attend(inputs)
        values, scale = self._values(inputs)
        return attention * values * scale

    def ablations(self, inputs: InteractionInputs) -> tf.Tensor:
        """How much the logit falls if one pair is removed and the others share its attention: ``[B, P]``.

        With s_q = pᵀ(u_i ⊙ u_j) of pair q and S = Σ a s, the others pool to (S − a_q s_q) / (1 − a_q), and with
        ``scale_by_pairs`` their number is n − 1: exact, without a second pass through the network. The only pair of
        a row leaves 0.
        """
        _, attention = self._attend(inputs)
        if not len(self.pairs):
            return attention
        values, scale = self._values(inputs)
        total = tf.reduce_sum(attention * values, axis=1, keepdims=True)
        # A pair with nearly all attention leaves next to nothing of the differences: there the rest is summed.
        top = tf.one_hot(tf.argmax(attention, axis=1), attention.shape[1], dtype=attention.dtype)
        rest = attention * (1.0 - top)
        left = tf.where(top > 0, tf.reduce_sum(rest, axis=1, keepdims=True), 1.0 - attention)
        pooled = tf.where(top > 0, tf.reduce_sum(rest * values, axis=1, keepdims=True), total - attention * values)
        others = tf.math.divide_no_nan(pooled, left)
        fewer = tf.maximum(scale - 1.0, 0.0) if self.options.scale_by_pairs else scale
        mask = pair_presence(inputs.present, self.pairs)
        return tf.where(mask, total * scale - others * fewer, tf.zeros_like(attention))

    def group_ablations(self, inputs: InteractionInputs, groups: Sequence[np.ndarray]) -> tf.Tensor:
        """How much the logit falls if all pairs of a group are removed, and the others share their attention.

        The model is computed again with fewer pairs: ``[B, G]``.
        """
        pairs, logits = self.pairs, self(inputs)
        changes = []
        try:
            for group in groups:
                self.pairs = np.delete(pairs, group, axis=0)
                changes.append(logits - self(inputs))
        finally:
            self.pairs = pairs
        return tf.stack(changes, axis=1)

    def _values(self, inputs: InteractionInputs) -> tuple[tf.Tensor, tf.Tensor]:
        """pᵀ(u_i ⊙ u_j), ``[B, P]``, and the factor of the pooled vector, ``[B, 1]``."""
        assert inputs.vectors is not None
        values = tf.tensordot(pair_products(inputs.vectors, self.pairs), self.p.value, axes=1)
        count = count_pairs(pair_presence(inputs.present, self.pairs), values.dtype)
        return values, count if self.options.scale_by_pairs else tf.ones_like(count)
