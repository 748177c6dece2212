"""Attentional pooling as a Keras layer."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.interactions import Dropout, attentional_pooling, training_attentional_pooling

_PAIR_SALT = 1


@keras.saving.register_keras_serializable(package="afm_ctr")
class AttentionalPooling(keras.layers.Layer):
    """Σ a_ij (e_i ⊙ e_j) over all pairs of present slots, with a_ij a softmax of hᵀ relu(Wᵀ(e_i ⊙ e_j) + b).

    The tensors over pairs are never held whole in training: on CPUs a fused op computes the sum if it is built
    (``afm_ctr.native``), elsewhere blocks of rows do. Sums are in float32, also under a mixed policy.

    Args:
        attention_units: int, at least 1. t, the width of the attention network.
        attention_dropout: float in [0, 1). Share of the pair weights dropped in training, after the softmax.
        scale_by_pairs: bool. Multiply by the number of present pairs, so that uniform attention gives the sum of a
            factorization machine instead of the mean over pairs.
        by_slot: bool. Pool the pairs of each slot separately: e_i ⊙ Σ_j a_ij e_j.
        attention_initializer: of W and, as a ``[t, 1]`` matrix, of h.
        attention_regularizer: of W, the paper's λ‖W‖².
        seed: int or None. Of the dropout.
        **kwargs: of ``keras.layers.Layer``.

    Call arguments:
        inputs: floating ``[B, F, k]``, embeddings (times their values, if fields have values).
        mask: bool ``[B, F]`` or None. False marks an absent slot: it takes part in no pair. A
            ``keras.layers.Embedding(mask_zero=True)`` before this layer sets it.
        training: bool. Whether dropout applies.

    Returns:
        ``[B, k]``, or ``[B, F, k]`` with ``by_slot``; 0 for a row of fewer than two present slots.

    Raises:
        ValueError: an option out of range, or inputs that are not ``[B, F, k]`` with F and k known.

    Example:
        >>> embeddings = keras.random.normal((2, 5, 8))
        >>> AttentionalPooling(attention_units=4)(embeddings).shape
        TensorShape([2, 8])

    Reference:
        Xiao et al., "Attentional Factorization Machines", IJCAI 2017, equations 2 to 5.
    """

    def __init__(
        self,
        attention_units: int = 16,
        attention_dropout: float = 0.0,
        scale_by_pairs: bool = False,
        by_slot: bool = False,
        attention_initializer: Any = "glorot_uniform",
        attention_regularizer: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Embeddings are not cast: under a mixed policy the sums over pairs stay in float32.
        super().__init__(autocast=False, **kwargs)
        if not isinstance(attention_units, int | np.integer) or attention_units < 1:
            raise ValueError(f"attention_units must be an integer of at least 1, got {attention_units!r}")
        self.attention_units = int(attention_units)
        self.attention_dropout = checked_rate("attention_dropout", attention_dropout)
        self.scale_by_pairs = bool(scale_by_pairs)
        self.by_slot = bool(by_slot)
        self.attention_initializer = keras.initializers.get(attention_initializer)
        self.attention_regularizer = keras.regularizers.get(attention_regularizer)
        self.seed = seed
        self.dropout_seed = random.randint(1, 10**9) if seed is None else int(seed)
        self.seed_generator = keras.random.SeedGenerator(self.dropout_seed)
        self.supports_masking = True
        self.supports_jit = False  # the fused op is not an XLA op

    def build(self, input_shape: Any) -> None:
        if (
            len(input_shape) != 3
            or isinstance(input_shape[0], tuple)
            or input_shape[1] is None
            or input_shape[2] is None
        ):
            raise ValueError(
                f"{self.name} takes embeddings [batch, slots, width] with slots and width known, got {input_shape}"
            )
        slots, width = int(input_shape[1]), int(input_shape[2])
        self._pairs = np.stack(np.triu_indices(slots, 1), axis=1).astype(np.int32)
        units = self.attention_units
        self.kernel = self.add_weight(
            name="kernel",
            shape=(width, units),
            initializer=self.attention_initializer,
            regularizer=self.attention_regularizer,
            autocast=False,
        )
        self.bias = self.add_weight(name="bias", shape=(units,), initializer="zeros", autocast=False)
        self.projection = self.add_weight(
            name="projection",
            shape=(units, 1),
            initializer=keras.initializers.get(self.attention_initializer).clone(),
            autocast=False,
        )
        self.built = True

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> tf.Tensor:
        u, present = self._present(inputs, mask)
        arguments: tuple[Any, ...] = (u, present, *self._weights(), self._pairs)
        switches: dict[str, Any] = {"scale_by_pairs": self.scale_by_pairs, "by_slot": self.by_slot}
        if training:
            dropout = None
            if self.attention_dropout:
                dropout = Dropout(self._rows(u), self.attention_dropout, self.dropout_seed, _PAIR_SALT)
            pooled = training_attentional_pooling(*arguments, dropout=dropout, **switches)
        else:
            pooled = attentional_pooling(*arguments, **switches)[0]
        return tf.cast(pooled, self.compute_dtype)

    def attention(self, inputs: Any, mask: Any = None) -> tf.Tensor:
        """The weights a_ij, ``[B, F(F−1)/2]``, pairs (0, 1), (0, 2) … in lexicographic order; without dropout."""
        u, present = self._present(inputs, mask)
        return attentional_pooling(u, present, *self._weights(), self._pairs)[1]

    def _present(self, inputs: Any, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        u = tf.cast(inputs, self.variable_dtype)
        if mask is None:
            return u, tf.ones(tf.shape(u)[:2], tf.bool)
        present = tf.cast(mask, tf.bool)
        if not present.shape.is_compatible_with(u.shape[:2]):
            raise ValueError(f"mask must be [batch, slots], here {u.shape[:2]}, got {present.shape}")
        # The value of an absent slot, perhaps NaN, must not reach a product.
        return tf.where(present[..., tf.newaxis], u, tf.zeros_like(u)), present

    def _weights(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return self.kernel.value, self.bias.value, tf.squeeze(self.projection.value, axis=1)

    def _rows(self, u: tf.Tensor) -> tf.Tensor:
        """A number for each example of each call, int64 ``[B]``, for dropout."""
        call = tf.cast(self.seed_generator.next()[1], tf.int64)
        return call * 2**32 + tf.range(tf.shape(u)[0], dtype=tf.int64)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The slots' mask if slots remain; a pooled row has none."""
        return previous_mask if self.by_slot else None

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape) if self.by_slot else (input_shape[0], input_shape[2])

    def get_config(self) -> dict[str, Any]:
        own = {
            "attention_units": self.attention_units,
            "attention_dropout": self.attention_dropout,
            "scale_by_pairs": self.scale_by_pairs,
            "by_slot": self.by_slot,
            "attention_initializer": keras.initializers.serialize(self.attention_initializer),
            "attention_regularizer": keras.regularizers.serialize(self.attention_regularizer),
            "seed": self.seed,
        }
        config = {**super().get_config(), **own}
        config.pop("autocast", None)
        return config


def checked_rate(name: str, value: float) -> float:
    """A dropout rate, after a check that it is in [0, 1)."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    return float(value)
