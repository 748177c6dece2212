"""Factorization machines."""

from __future__ import annotations

import tensorflow as tf

from afm_ctr import native
from afm_ctr.interactions import fm_pooling, pair_products
from afm_ctr.models.base import Interaction, InteractionInputs
from afm_ctr.models.options import FMOptions
from afm_ctr.sparse_gradients import fm_logits


class FM(Interaction):
    """y = w0 + Σ w_i x_i + Σ_{i<j} ⟨v_i, v_j⟩ x_i x_j.

    Reference:
        Rendle: Factorization Machines, ICDM 2010, equation 1.
    """

    Options = FMOptions

    def call(self, inputs: InteractionInputs, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        assert inputs.vectors is not None
        read, slots = inputs.read, inputs.vectors.shape[1]
        all_pairs = 2 * len(self.pairs) == slots * (slots - 1)
        if read is not None and all_pairs and read.vectors is not None and native.steps_tables(read.vectors.dtype):
            return fm_logits(read.linear, read.vectors, read.position, read.values)
        linear = tf.reduce_sum(inputs.linear, axis=1)
        return linear + tf.reduce_sum(fm_pooling(inputs.vectors, self.pairs), axis=1)

    def contributions(self, inputs: InteractionInputs) -> tf.Tensor:
        """⟨v_i, v_j⟩ x_i x_j: ``[B, P]``."""
        assert inputs.vectors is not None
        return tf.reduce_sum(pair_products(inputs.vectors, self.pairs), axis=2)

    def ablations(self, inputs: InteractionInputs) -> tf.Tensor:
        """The same as :meth:`contributions`: the pairs do not share anything."""
        return self.contributions(inputs)
