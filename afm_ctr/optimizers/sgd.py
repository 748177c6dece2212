"""Plain stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from afm_ctr.optimizers.base import RowOptimizer


@keras.saving.register_keras_serializable(package="afm_ctr")
class SGD(RowOptimizer):
    """w ← w − η g.

    There is no momentum: its decay would move rows that the batch does not touch.

    Args:
        learning_rate: η.
    """

    default_name = native_rule = "sgd"

    def __init__(self, learning_rate: Any = 0.01, **common: Any) -> None:
        super().__init__(learning_rate, **common)

    def rule(
        self, weights: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        return weights - rate * gradient, {}

    def native_options(self, rate: tf.Tensor) -> list[tf.Tensor | float]:
        return [rate]
