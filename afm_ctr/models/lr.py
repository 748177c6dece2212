"""Logistic (or linear) regression."""

from __future__ import annotations

import tensorflow as tf

from afm_ctr.models.base import Interaction, InteractionInputs
from afm_ctr.models.options import LROptions


class LR(Interaction):
    """y = w0 + Σ w_i x_i."""

    Options = LROptions

    def call(self, inputs: InteractionInputs, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        return tf.reduce_sum(inputs.linear, axis=1)
