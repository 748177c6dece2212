"""Models that differ from ``afm`` or ``deep_afm`` in one thing, for ``ablation.py``; nothing else has them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from afm_ctr.interactions import (
    Dropout,
    attention_scores,
    count_pairs,
    masked_softmax,
    pair_presence,
    pair_products,
    pool_by_slot,
    stateless_keep,
)
from afm_ctr.models import InteractionInputs, register
from afm_ctr.models.afm import AFM
from afm_ctr.models.deep_afm import DeepAFM


class Uniform(AFM):
    """Every present pair has the same share: the attention network is there, and says 0."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.h.assign(tf.zeros_like(self.h))
        self.h.trainable = False


class DeepUniform(Uniform, DeepAFM):
    """The same of ``deep_afm``."""


class OnePool(DeepAFM):
    """The network reads the paper's pooled vector, in which all slots are added up: [k] in place of [F, k]."""

    def _width_of_sums(self, slots: int) -> int:
        return self.options.factors

    def _sums_read(self, pooled: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        total = tf.reduce_sum(pooled, axis=1)
        return self._brought_to_one(0.5 * total), total


class PairBias(DeepAFM):
    """Field-aware attention: a learned number for each pair of slots is added to its score."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pair_bias = self.add_weight(shape=(len(self.pairs),), initializer="zeros", name="pair_bias")

    def _pool(self, inputs: InteractionInputs, training: bool, dropout: Dropout | None) -> tf.Tensor:
        mask = pair_presence(inputs.present, self.pairs)
        products = pair_products(inputs.vectors, self.pairs)
        scores = attention_scores(products, self.W.value, self.b.value, self.h.value)
        weights = masked_softmax(scores + self.pair_bias.value, mask)
        weights *= count_pairs(mask, weights.dtype)
        if dropout is not None:
            keep = (dropout.rows, len(self.pairs), dropout.rate, dropout.seed, dropout.salt)
            weights *= stateless_keep(*keep, weights.dtype)
        return pool_by_slot(inputs.vectors, weights, self.pairs)


for _name, _model in {
    "afm_uniform": Uniform,
    "deep_afm_uniform": DeepUniform,
    "deep_afm_one_pool": OnePool,
    "deep_afm_pair_bias": PairBias,
}.items():
    register(_name, _model)
