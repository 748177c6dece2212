"""An attentional factorization machine that pools by slot and feeds the pooled vectors to a small network."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr import native
from afm_ctr.interactions import (
    attention_scores,
    count_pairs,
    masked_softmax,
    pair_presence,
    pair_products,
    pool_by_slot,
    uses_fused,
)
from afm_ctr.models.afm import AFM, PAIR_SALT, POOLED_SALT
from afm_ctr.models.base import InteractionInputs
from afm_ctr.models.options import DeepAFMOptions

_PASSES = 16  # of the network over the ablations of a batch
_EPSILON = 1e-12  # added to a variance: products of new vectors are about 1e-4


class DeepAFM(AFM):
    """The paper's attention over pairs, pooled for each slot separately, and a network next to the projection.

    With the attention a_ij of :class:`AFM` and n the number of present pairs::

        m_i = u_i ⊙ n Σ_j a_ij u_j                                         each slot's attended products: [F, k]
        y   = w0 + Σ w_i x_i + ½ Σ_i pᵀ m_i + network(normalised(m_1, …, m_F))

    Σ_i m_i is twice AFM's pooled vector, so without the network this is AFM with ``scale_by_pairs``. The network sees
    two slots together only through the weight of their pair: a pair of weight 0 plays no part.

    With ``read_vectors`` the network also reads normalised(u_1, …, u_F), as DeepFM's does: better if ids occur often.
    Then it can combine two slots without their pair, and removing a pair shows only what its attended product adds to
    the vectors.

    ``normalise`` brings the F·k numbers of a row to mean 0 and variance 1 before the network reads them (layer
    normalisation without gain and offset), so a strong L2 penalty on the vectors does not starve it. It helps if ids
    occur often; if most are rare it lets their noise through, and a penalty that keeps their products near 0 is
    better. Unlike batch normalisation it is a function of the row only: any number of ranks computes the same.

    References:
        Xiao et al., IJCAI 2017, equations 2 to 5, for the attention.
        He, Chua: Neural Factorization Machines for Sparse Predictive Analytics, SIGIR 2017, for a network on
        pooled products.
        Guo, Tang, Ye, Li, He: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, IJCAI 2017,
        for a network on the vectors.
        Ba, Kiros, Hinton: Layer Normalization, 2016.
    """

    Options = DeepAFMOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.network: list[tuple[keras.Variable, keras.Variable]] = []

    def build(self, inputs_shape: Any) -> None:
        """Create the network's kernels and offsets: the width of the first depends on the number of slots."""
        slots = inputs_shape[1][1]
        width = self._width = self._width_of_sums(slots)
        width += slots * self.options.factors if self.options.read_vectors else 0
        for place, units in enumerate((*self.options.hidden, 1)):
            last = place == len(self.options.hidden)
            kind = keras.initializers.GlorotUniform if last else keras.initializers.HeNormal
            initial = kind(seed=self.seed + 2 + place)
            kernel = self.add_weight(shape=(width, units), initializer=initial, name=f"kernel_{place}")
            offset = self.add_weight(shape=(units,), initializer="zeros", name=f"offset_{place}")
            self.network.append((kernel, offset))
            width = units

    def call(self, inputs: InteractionInputs, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        drop = self._dropout(training, rows, self.options.attention_dropout, PAIR_SALT)
        pooled = self._pool(inputs, training, drop)
        vectors_part = self._vectors_part(inputs, training)
        return tf.reduce_sum(inputs.linear, axis=1) + self._read(pooled, vectors_part, training, rows)

    def _vectors_part(self, inputs: InteractionInputs, training: bool = False) -> tf.Tensor:
        """The vectors' and the offset's part of the first layer, ``[B or 1, width]``: no pair changes it."""
        kernel, offset = self.network[0]
        if not self.options.read_vectors:
            return offset.value[tf.newaxis]
        read, _ = self._normalised(tf.convert_to_tensor(inputs.vectors), training)
        return self._product(read, kernel.value[self._width :], training) + offset.value

    def _read(
        self, pooled: tf.Tensor, vectors_part: tf.Tensor, training: bool = False, rows: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The pairs' part of the logit, ``[B]``, with the network, from the slots' sums ``[B, F, k]``."""
        read, total = self._sums_read(pooled, training)
        straight = 0.5 * tf.linalg.matvec(total, self.p.value)
        layer = self._product(read, self.network[0][0].value[: self._width], training)
        layer += vectors_part
        for place, (kernel, offset) in enumerate(self.network[1:]):
            layer = self._thinned(tf.nn.relu(layer), training, rows, POOLED_SALT + place)
            layer = self._product(layer, kernel.value, training) + offset.value
        return straight + tf.squeeze(layer, axis=1)

    def _sums_read(self, pooled: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The network's input from the slots' sums, and their sum ``[B, k]``."""
        return self._normalised(pooled, training)

    def _normalised(self, values: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """``[B, F·k]`` of ``[B, F, k]``, each row with mean 0 and variance 1 if ``normalise``; and the slots' sum."""
        if self.options.normalise and training and uses_fused(values.dtype) and not native.uses_gpu():
            return native.normalise(values, _EPSILON)
        layer = tf.reshape(values, [-1, values.shape[1] * values.shape[2]])
        return self._brought_to_one(layer), tf.reduce_sum(values, axis=1)

    def _brought_to_one(self, layer: tf.Tensor) -> tf.Tensor:
        """Each row with mean 0 and variance 1, if ``normalise``."""
        if not self.options.normalise:
            return layer
        apart = layer - tf.reduce_mean(layer, axis=1, keepdims=True)
        return apart * tf.math.rsqrt(tf.reduce_mean(tf.square(apart), axis=1, keepdims=True) + _EPSILON)

    def _product(self, layer: tf.Tensor, kernel: tf.Tensor, training: bool) -> tf.Tensor:
        low = self.network_dtype if training else layer.dtype
        return tf.cast(tf.matmul(tf.cast(layer, low), tf.cast(kernel, low)), layer.dtype)

    def _width_of_sums(self, slots: int) -> int:
        """Width of the network's input from a row's sums."""
        return int(slots * self.options.factors)

    def _switches(self) -> dict[str, Any]:
        return {**super()._switches(), "by_slot": True}

    def contributions(self, inputs: InteractionInputs) -> None:
        """None: through the network the pairs do not add up; :meth:`ablations` gives the effect of each."""
        return None

    def ablations(self, inputs: InteractionInputs) -> tf.Tensor:
        """How much the logit falls if one pair is removed and the others share its attention: ``[B, P]``.

        Without pair q the sums of its two slots lose its part, and all are divided by 1 − a_q. If a_q is the row's
        largest, that would cancel, and the softmax over the others is computed separately. For a row's only
        pair it reads zeros instead. The network reads the sums of a sixteenth of the pairs at a time.
        """
        if not len(self.pairs):
            return tf.zeros([tf.shape(inputs.present)[0], 0], inputs.linear.dtype)
        u = tf.convert_to_tensor(inputs.vectors)
        pairs = self.pairs
        mask = pair_presence(inputs.present, pairs)
        products = pair_products(u, pairs)
        scores = attention_scores(products, self.W.value, self.b.value, self.h.value)
        attention = masked_softmax(scores, mask)
        largest = tf.one_hot(tf.argmax(attention, axis=1), len(pairs), True, False, dtype=tf.bool)
        sums = pool_by_slot(u, attention, pairs)
        sums_of_others = pool_by_slot(u, masked_softmax(scores, mask & ~largest), pairs)
        count = count_pairs(mask, u.dtype) if self.options.scale_by_pairs else tf.ones_like(scores[:, :1])
        members = np.zeros((len(pairs), u.shape[1]))
        members[np.arange(len(pairs))[:, np.newaxis], pairs] = 1
        vectors_part = self._vectors_part(inputs)
        whole = self._read(sums * count[:, :, tf.newaxis], vectors_part)

        def without(some: tf.Tensor) -> tf.Tensor:
            """The logits without each of some pairs, ``[n, B]``."""
            share, top = tf.gather(attention, some, axis=1), tf.gather(largest, some, axis=1)
            part = share[:, :, tf.newaxis] * tf.gather(products, some, axis=1)
            lost = tf.gather(tf.constant(members, u.dtype), some)[:, :, tf.newaxis] * part[:, :, tf.newaxis]
            rest = tf.where(top, tf.ones_like(share), 1 - share)[:, :, tf.newaxis, tf.newaxis]
            left = (sums[:, tf.newaxis] - lost) / rest
            left = tf.where(top[:, :, tf.newaxis, tf.newaxis], sums_of_others[:, tf.newaxis], left)
            if self.options.scale_by_pairs:
                left *= tf.maximum(count - 1, 0)[:, :, tf.newaxis, tf.newaxis]
            logits = self._read(
                tf.reshape(left, [-1, *u.shape[1:]]), tf.repeat(vectors_part, tf.shape(some)[0], axis=0)
            )
            return tf.transpose(tf.reshape(logits, [-1, tf.shape(some)[0]]))

        at_once = -(-len(pairs) // _PASSES)
        numbers = np.minimum(np.arange(at_once * -(-len(pairs) // at_once)), len(pairs) - 1)
        found = tf.map_fn(without, numbers.reshape(-1, at_once), fn_output_signature=whole.dtype)
        changes = whole - tf.reshape(found, [len(numbers), -1])[: len(pairs)]
        return tf.where(mask, tf.transpose(changes), tf.zeros_like(scores))
