"""The update rules: SGD, Adagrad in two forms, lazy Adam, FTRL-Proximal."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from afm_ctr.optimizers.average import AVERAGE
from afm_ctr.optimizers.base import RowOptimizer, check


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
        """The summand of the accumulators."""
        return tf.square(gradient)

    def native_options(self, rate: tf.Tensor) -> list[tf.Tensor | float]:
        return [rate, self.epsilon]

    def get_config(self) -> dict[str, Any]:
        own = {"initial_accumulator_value": self.initial_accumulator_value, "epsilon": self.epsilon}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="afm_ctr")
class RowWiseAdagrad(Adagrad):
    """n ← n + mean(g²),  w ← w − η g / √(n + ε): Adagrad with one accumulator n per row of a table.

    The mean is over the columns of the row's gradient. So a table of vectors takes little more memory than its
    weights, where Adagrad takes twice and Adam three times as much. A table of one column, such as the linear
    weights, and other variables (biases, layers) step as in Adagrad: rows are those of
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


@keras.saving.register_keras_serializable(package="afm_ctr")
class LazyAdam(RowOptimizer):
    """Adam, exact on dense gradients, lazy on sparse ones.

    With t the number of the step, counted from 1 over the whole training and not per row::

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        w ← w − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)

    A sparse step does this to the rows of the batch. The moments of the other rows do not decay and the rows do not
    drift on by their momentum, as they would in Adam: that would cost a pass over the table.

    Args:
        learning_rate: η.
        beta_1: β₁, decay of the first moment.
        beta_2: β₂, decay of the second moment.
        epsilon: ε, the paper's "epsilon hat". A step is near η whatever the size of g, until √v is small against ε:
            then it is proportional to g. So with ε about a tenth of one row's share of a batch's mean, 0.1 / batch,
            an id in one row moves less than one on which many rows agree.

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

        def correction() -> tf.Tensor:
            step = tf.cast(self.iterations.value + 1, dtype)
            first, second = (1.0 - tf.pow(tf.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2))
            return tf.sqrt(second) / first

        return self.once_a_step(f"correction {dtype.name}", correction)

    def get_config(self) -> dict[str, Any]:
        own = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="afm_ctr")
class FTRL(RowOptimizer):
    """FTRL-Proximal with L1 and L2, for weights that may start anywhere.

    With n and z zero at first, in every coordinate whose gradient is not zero::

        if n = 0:  z ← −β w                           (w: the coordinate's initial value)
        n' ← n + g²
        z ← z + η g − (√n' − √n) w
        w ← −(z − sgn(z) η λ₁) / (β + √n' + η λ₂)  if |z| > η λ₁, else 0

    For weights that start at zero this is algorithm 1 of the paper, with its z multiplied by η: with a constant η
    the weights are the same, and a changing learning rate weighs later gradients without rescaling the current
    weights. For weights that start elsewhere (factors must, or they never leave zero) the first line centres the
    paper's β-term on the start, where the usual form pulls every coordinate to zero at its first touch. A coordinate
    with zero gradient does not move at all, so the sparse step and the dense one are the same.

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
        # A difference, since TensorFlow reorders a sum of three scalars, differently from trace to trace.
        below = tf.sqrt(after) - (-self.beta - rate * self.l2)
        moved = tf.math.divide_no_nan(tf.clip_by_value(linear, -bound, bound) - linear, below)
        # A gradient whose square underflows would leave n at 0 and reset the coordinate: it counts as zero.
        moves = tf.logical_and(tf.not_equal(gradient, 0), after > 0)
        moved = tf.where(moves, moved, weights)
        return moved, {"accumulator": after, "linear": tf.where(moves, linear, slots["linear"])}

    def native_options(self, rate: tf.Tensor) -> list[tf.Tensor | float]:
        return [rate, self.beta, rate * self.l1, rate * self.l2]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "l1": self.l1, "l2": self.l2}
