"""Logistic (or linear) regression."""

from __future__ import annotations

from typing import Literal

import tensorflow as tf
from pydantic import Field

from afm_ctr.models.base import Interaction, InteractionInputs, InteractionOptions


class LROptions(InteractionOptions):
    """Options of :class:`LR`: none; there are no vectors."""

    factors: Literal[0] = Field(0, description="there are no vectors")
    init_stddev: float = Field(0.0, ge=0, le=0, description="there are no vectors")


class LR(Interaction):
    """y = w0 + Σ w_i x_i."""

    Options = LROptions

    def call(self, inputs: InteractionInputs, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        return tf.reduce_sum(inputs.linear, axis=1)
