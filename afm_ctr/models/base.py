"""The base class of interaction models: a Keras layer from slots to a logit, with options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.models.options import InteractionOptions


class RowsRead(NamedTuple):
    """The distinct rows from which ``linear`` and ``vectors`` of a batch are gathered.

    Attributes:
        linear: ``[U, 1]``.
        vectors: ``[U, k]``; None for a model without factors.
        position: int64 ``[B, F]``, the row of each slot.
        values: ``[B, F]``, x; 0 in absent slots.
    """

    linear: tf.Tensor
    vectors: tf.Tensor | None
    position: tf.Tensor
    values: tf.Tensor


class InteractionInputs(NamedTuple):
    """A batch as an interaction sees it; absent slots hold zeros.

    Attributes:
        linear: ``[B, F]``, w_i x_i.
        vectors: ``[B, F, k]``, x_i v_i; None for a model without factors.
        present: bool ``[B, F]``.
        read: in training, for a model that needs none of the others, which are then not computed.
    """

    linear: tf.Tensor
    vectors: tf.Tensor | None
    present: tf.Tensor
    read: RowsRead | None = None


class Interaction(keras.layers.Layer):
    """Base class of a model: a Keras layer that turns :class:`InteractionInputs` into logits without the bias.

    To plug in your own model, subclass this, implement :meth:`call`, and name the class in the entry point group
    ``afm_ctr.models`` of your package. Preparation, training, export and serving stay the same.

    Inputs, variables and logits are float32 for any ``precision`` of the run. A model with matrix products may cast
    their factors to ``network_dtype`` in training: "bfloat16" if the run's precision is, else the layer's dtype.

    Args:
        options: an instance of the class's ``Options``.
        pairs: int32 ``[P, 2]``, the pairs of slots that take part, i < j, in lexicographic order.
        seed: for initial values and dropout.
        **kwargs: of ``keras.layers.Layer``.

    Example:
        >>> class Sum(Interaction):
        ...     def call(self, inputs, training=False, rows=None):
        ...         return tf.reduce_sum(inputs.linear, axis=1)
    """

    Options: type[InteractionOptions] = InteractionOptions

    def __init__(self, options: Any, pairs: np.ndarray, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = options
        self.pairs = np.asarray(pairs, np.int32).reshape(-1, 2)
        self.seed = int(seed)
        self.network_dtype = self.compute_dtype

    def call(self, inputs: InteractionInputs, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        """Logits ``[B]`` without the global bias; they include the linear terms if the model has them.

        Args:
            inputs: the batch.
            training: whether dropout applies.
            rows: int64 ``[B]``, a number for each example and step, for dropout that is a function of the example.
        """
        raise NotImplementedError

    def penalties(self) -> list[tuple[keras.Variable, float]]:
        """Variables and λ for which λ‖variable‖² is added to the loss, once per step on any number of ranks."""
        return []

    def explain(self, inputs: InteractionInputs) -> tf.Tensor | None:
        """The share of each pair, ``[B, P]``, for a model that defines it."""
        return None

    def contributions(self, inputs: InteractionInputs) -> tf.Tensor | None:
        """Each pair's part of the logit, ``[B, P]``, for a model in which the pairs add up."""
        return None

    def ablations(self, inputs: InteractionInputs) -> tf.Tensor | None:
        """Logit with all pairs minus the logit without that pair, ``[B, P]``, for a model that defines it."""
        return None

    def group_ablations(self, inputs: InteractionInputs, groups: Sequence[np.ndarray]) -> tf.Tensor | None:
        """Logit with all pairs minus the logit without any pair of a group, ``[B, G]``, for a model that defines it.

        Args:
            inputs: the batch.
            groups: the indices in ``pairs`` of each group.

        Returns:
            None: the sum of the pairs' :meth:`ablations` is used, which is the same if pairs do not influence one
            another.
        """
        return None
