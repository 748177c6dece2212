"""Follow the regularised leader, proximal, per coordinate."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from afm_ctr.optimizers.base import RowOptimizer, check


@keras.saving.register_keras_serializable(package="afm_ctr")
class FTRL(RowOptimizer):
    """FTRL-Proximal with L1 and L2, for weights that may start anywhere.

    With n and z zero at first, in every coordinate whose gradient is not zero::

        if n = 0:  z ← −β w                           (w: where the coordinate starts)
        n' ← n + g²
        z ← z + η g − (√n' − √n) w
        w ← −(z − sgn(z) η λ₁) / (β + √n' + η λ₂)  if |z| > η λ₁, else 0

    For weights that start at zero this is algorithm 1 of the paper, with its z multiplied by η: with a constant η
    the weights are the same, and a learning rate that changes weighs the gradients to come and does not rescale
    the weights that there are. For weights that start elsewhere (factors must, or they never leave zero) the first
    line centres the paper's β-term on the start, where the usual form pulls every coordinate to zero at its first
    touch. A coordinate with zero gradient does not move at all, so the sparse step and the dense one are the same.

    Args:
        learning_rate: η, the paper's α.
        beta: β; the larger, the smaller the first steps.
        l1: λ₁; weights whose evidence is too small are exactly 0.
        l2: λ₂.

    Reference:
        McMahan et al.: Ad Click Prediction: a View from the Trenches, KDD 2013, section 3.1, algorithm 1.
    """

    default_name = native_rule = "ftrl"

    def __init__(
        self, learning_rate: Any = 0.05, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0, **common: Any
    ) -> None:
        super().__init__(learning_rate, **common)
        self.beta = check("beta", beta, 0.0)
        self.l1 = check("l1", l1, 0.0)
        self.l2 = check("l2", l2, 0.0)
        self.slots |= {"accumulator": 0.0, "linear": 0.0}

    def rule(
        self, weights: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        before = slots["accumulator"]
        after = before + tf.square(gradient)
        linear = tf.where(before > 0, slots["linear"], -self.beta * weights)
        linear += rate * gradient - (tf.sqrt(after) - tf.sqrt(before)) * weights
        bound = rate * self.l1
        # Subtracted, since TensorFlow rewrites a sum of three scalars, in an order that differs from trace to trace.
        below = tf.sqrt(after) - (-self.beta - rate * self.l2)
        moved = tf.math.divide_no_nan(tf.clip_by_value(linear, -bound, bound) - linear, below)
        # A gradient whose square underflows would leave n at 0 and start the coordinate again: it counts as zero.
        moves = tf.logical_and(tf.not_equal(gradient, 0), after > 0)
        moved = tf.where(moves, moved, weights)
        return moved, {"accumulator": after, "linear": tf.where(moves, linear, slots["linear"])}

    def native_options(self, rate: tf.Tensor) -> list[tf.Tensor | float]:
        return [rate, self.beta, rate * self.l1, rate * self.l2]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "l1": self.l1, "l2": self.l2}
