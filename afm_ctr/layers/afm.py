"""The attentional factorization machine's pairwise part as a Keras layer."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from afm_ctr.layers.attentional_pooling import AttentionalPooling, checked_rate


@keras.saving.register_keras_serializable(package="afm_ctr")
class AFM(keras.layers.Layer):
    """pᵀ Σ a_ij (e_i ⊙ e_j): the pairs' part of the logit, ``[B, 1]``.

    The linear terms and the bias of an AFM are separate layers (an ``Embedding`` of width 1, a sum); see the
    example.

    Args:
        attention_units: int, at least 1. t, the width of the attention network.
        attention_dropout: float in [0, 1). Share of the pair weights dropped in training.
        pooled_dropout: float in [0, 1). Share of the pooled vector dropped in training.
        scale_by_pairs: bool. Multiply by the number of present pairs, so that a layer of uniform attention is a
            factorization machine and not one divided by the number of pairs.
        projection_initializer: of p; with ones a new layer starts as a factorization machine.
        attention_initializer: of W and h, see :class:`AttentionalPooling`.
        attention_regularizer: of W.
        seed: int or None. Of the dropouts.
        **kwargs: of ``keras.layers.Layer``.

    Call arguments:
        inputs: floating ``[B, F, k]``, embeddings (times their values, if fields have values).
        mask: bool ``[B, F]`` or None. False marks an absent slot; an ``Embedding(mask_zero=True)`` sets it.
        training: bool. Whether dropout applies.

    Example:
        >>> ids = keras.Input([39], dtype="int64")
        >>> pairs = AFM()(keras.layers.Embedding(1000, 16, mask_zero=True)(ids))
        >>> linear = keras.ops.sum(keras.layers.Embedding(1000, 1)(ids), axis=1)
        >>> model = keras.Model(ids, keras.ops.sigmoid(linear + pairs))

    Reference:
        Xiao et al., "Attentional Factorization Machines", IJCAI 2017, equation 6.
    """

    def __init__(
        self,
        attention_units: int = 16,
        attention_dropout: float = 0.0,
        pooled_dropout: float = 0.0,
        scale_by_pairs: bool = False,
        projection_initializer: Any = "ones",
        attention_initializer: Any = "glorot_uniform",
        attention_regularizer: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.pooling = AttentionalPooling(
            attention_units,
            attention_dropout,
            scale_by_pairs,
            attention_initializer=attention_initializer,
            attention_regularizer=attention_regularizer,
            seed=seed,
            dtype=self.dtype_policy,
            name="pooling",
        )
        self.pooled_dropout = checked_rate("pooled_dropout", pooled_dropout)
        self.projection_initializer = keras.initializers.get(projection_initializer)
        self.dropout = keras.layers.Dropout(pooled_dropout, seed=seed, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True
        self.supports_jit = False

    def build(self, input_shape: Any) -> None:
        self.pooling.build(input_shape)
        self.projection = self.add_weight(
            name="projection", shape=(int(input_shape[2]), 1), initializer=self.projection_initializer
        )
        self.built = True

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> tf.Tensor:
        pooled = self.dropout(self.pooling(inputs, mask=mask, training=training), training=training)
        return tf.matmul(pooled, tf.cast(self.projection.value, pooled.dtype))

    def attention(self, inputs: Any, mask: Any = None) -> tf.Tensor:
        """The weights a_ij, ``[B, F(F−1)/2]``; see :meth:`AttentionalPooling.attention`."""
        return self.pooling.attention(inputs, mask)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: the result is one number per row."""

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        return input_shape[0], 1

    def get_config(self) -> dict[str, Any]:
        pooling = self.pooling.get_config()
        shared = ("attention_units", "attention_dropout", "scale_by_pairs")
        own = {
            **{name: pooling[name] for name in (*shared, "attention_initializer", "attention_regularizer", "seed")},
            "pooled_dropout": self.pooled_dropout,
            "projection_initializer": keras.initializers.serialize(self.projection_initializer),
        }
        config = {**super().get_config(), **own}
        config.pop("autocast", None)
        return config
