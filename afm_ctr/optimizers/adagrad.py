"""Adagrad, with an accumulator for each weight or for each row."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from afm_ctr.optimizers.average import AVERAGE
from afm_ctr.optimizers.base import RowOptimizer, check


@keras.saving.register_keras_serializable(package="afm_ctr")
class Adagrad(RowOptimizer):
    """n ← n + g²,  w ← w − η g / √(n + ε): diagonal Adagrad, in the form of ``keras.optimizers.Adagrad``.

    A row without gradient does not move, so the sparse step and the dense one are the same step.

    Args:
        learning_rate: η.
        initial_accumulator_value: n before the first step.
        epsilon: ε.

    Reference:
        Duchi, Hazan, Singer: Adaptive Subgradient Methods for Online Learning and Stochastic Optimization,
        JMLR 12 (2011), figure 1 with the diagonal matrix.
    """

    default_name = native_rule = "adagrad"

    def __init__(
        self, learning_rate: Any = 0.01, initial_accumulator_value: float = 0.1, epsilon: float = 1e-7, **common: Any
    ) -> None:
        super().__init__(learning_rate, **common)
        self.initial_accumulator_value = check("initial_accumulator_value", initial_accumulator_value, 0.0)
        self.epsilon = check("epsilon", epsilon, 0.0)
        if self.initial_accumulator_value + self.epsilon == 0:
            raise ValueError("initial_accumulator_value and epsilon are both 0: a zero gradient would give 0/0")
        self.slots |= {"accumulator": self.initial_accumulator_value}

    def rule(
        self, weights: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        accumulator = slots["accumulator"] + self._squares(gradient, slots["accumulator"])
        return weights - rate * gradient / tf.sqrt(accumulator + self.epsilon), {"accumulator": accumulator}

    def _squares(self, gradient: tf.Tensor, accumulator: tf.Tensor) -> tf.Tensor:
        """What is added to the accumulators."""
        return tf.square(gradient)

    def native_options(self, rate: tf.Tensor) -> list[tf.Tensor | float]:
        return [rate, self.epsilon]

    def get_config(self) -> dict[str, Any]:
        own = {"initial_accumulator_value": self.initial_accumulator_value, "epsilon": self.epsilon}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="afm_ctr")
class RowWiseAdagrad(Adagrad):
    """n ← n + mean(g²),  w ← w − η g / √(n + ε): Adagrad with one accumulator n for a row of a table.

    The mean is over the columns of the row's gradient. So a table of vectors takes little more memory than its
    weights, where Adagrad takes twice and Adam three times as much. A table of one column, such as the linear
    weights, and what is no table (biases, layers) steps as by Adagrad: rows are those of
    :class:`~afm_ctr.embedding.EmbeddingTable` and of ``keras.layers.Embedding``. A row without gradient does not
    move, so the sparse step and the dense one are the same.

    Args:
        learning_rate: η.
        initial_accumulator_value: n before the first step.
        epsilon: ε.

    Reference:
        Mudigere et al.: Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation
        Models, ISCA 2022 (row-wise AdaGrad; FBGEMM's ``EXACT_ROWWISE_ADAGRAD``, with ε under the root).
    """

    default_name = "rowwise_adagrad"

    def slot_width(self, slot: str, width: int) -> int:
        return width if slot == AVERAGE else 1

    def _squares(self, gradient: tf.Tensor, accumulator: tf.Tensor) -> tf.Tensor:
        squares = super()._squares(gradient, accumulator)
        if accumulator.shape[-1:] == gradient.shape[-1:]:
            return squares
        return tf.reduce_mean(squares, axis=-1, keepdims=True)
