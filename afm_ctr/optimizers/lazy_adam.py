"""Adam whose moments of a row move only when a batch touches the row."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from afm_ctr.optimizers.base import RowOptimizer, check


@keras.saving.register_keras_serializable(package="afm_ctr")
class LazyAdam(RowOptimizer):
    """Adam, exact on dense gradients, lazy on sparse ones.

    With t the number of the step, counted from 1 over the whole training and not by row::

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        w ← w − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)

    In a sparse step this happens to the rows of the batch. The moments of the other rows do not decay and the
    rows do not drift on by their momentum, as they would in Adam: that would cost a pass over the table.

    Args:
        learning_rate: η.
        beta_1: β₁, decay of the first moment.
        beta_2: β₂, decay of the second moment.
        epsilon: ε, the paper's "epsilon hat". A step is near η whatever the size of g, until √v is small against ε:
            then it is in proportion to g. So with ε about a tenth of one row's share of a batch's mean, 0.1 / batch,
            an id that one row holds moves less than one on which many rows agree.

    Reference:
        Kingma, Ba: Adam: A Method for Stochastic Optimization, ICLR 2015, the efficient form at the end of
        section 2.
    """

    default_name = native_rule = "adam"

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **common: Any,
    ) -> None:
        super().__init__(learning_rate, **common)
        self.beta_1 = check("beta_1", beta_1, 0.0, 1.0)
        self.beta_2 = check("beta_2", beta_2, 0.0, 1.0)
        self.epsilon = check("epsilon", epsilon, 0.0)
        if self.epsilon == 0:
            raise ValueError("epsilon must be above 0: a row whose gradient is zero would give 0/0")
        self.slots |= {"momentum": 0.0, "velocity": 0.0}

    def rule(
        self, weights: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        momentum = slots["momentum"] + (gradient - slots["momentum"]) * (1.0 - self.beta_1)
        velocity = slots["velocity"] + (tf.square(gradient) - slots["velocity"]) * (1.0 - self.beta_2)
        moved = weights - rate * self._correction(rate.dtype) * momentum / (tf.sqrt(velocity) + self.epsilon)
        return moved, {"momentum": momentum, "velocity": velocity}

    def native_options(self, rate: tf.Tensor) -> list[tf.Tensor | float]:
        return [rate * self._correction(rate.dtype), 1.0 - self.beta_1, 1.0 - self.beta_2, self.epsilon]

    def _correction(self, dtype: tf.DType) -> tf.Tensor:
        """√(1 − β₂ᵗ) / (1 − β₁ᵗ)."""
        step = tf.cast(self.iterations.value + 1, dtype)
        first, second = (1.0 - tf.pow(tf.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2))
        return tf.sqrt(second) / first

    def get_config(self) -> dict[str, Any]:
        own = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **own}
