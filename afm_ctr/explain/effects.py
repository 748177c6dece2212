"""Effects of pairs, summed over rows without keeping them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.interactions import pair_presence
from afm_ctr.models import CTRModel


class PairProbe:
    """What a model says of the pairs of a batch.

    Attributes:
        has_changes: whether it knows what the logit loses without a pair.
        has_attention: whether its pairs have shares.
    """

    def __init__(self, model: CTRModel) -> None:
        self._model = model
        blank = tf.zeros([1, model.num_slots], tf.int64)
        inputs = model.inputs_of({"feature_ids": blank, "feature_vals": tf.zeros(blank.shape)})
        self.has_changes = model.interaction.ablations(inputs) is not None
        self.has_attention = model.interaction.explain(inputs) is not None
        ids = tf.TensorSpec([None, model.num_slots], tf.int64)
        vals = tf.TensorSpec([None, model.num_slots], tf.float32)
        self._measure = tf.function(self._measured, input_signature=[ids, vals])

    def __call__(self, feature_ids: Any, feature_vals: Any) -> dict[str, np.ndarray]:
        """``present`` bool [B, P], and ``changes`` and ``attention`` float32 [B, P] as far as the model has them."""
        return {name: value.numpy() for name, value in self._measure(feature_ids, feature_vals).items()}

    def _measured(self, feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = self._model.inputs_of({"feature_ids": feature_ids, "feature_vals": feature_vals})
        found = {"present": pair_presence(inputs.present, self._model.pairs)}
        if self.has_changes:
            found["changes"] = self._model.interaction.ablations(inputs)
        if self.has_attention:
            found["attention"] = self._model.interaction.explain(inputs)
        return found


@dataclass
class PairSums:
    """Running sums over rows, float64 [P] each."""

    rows: int
    present: np.ndarray
    change: np.ndarray
    square: np.ndarray
    absolute: np.ndarray
    attention: np.ndarray

    @classmethod
    def of(cls, pairs: int) -> PairSums:
        return cls(0, *(np.zeros(pairs) for _ in range(5)))

    def add(self, found: dict[str, np.ndarray]) -> None:
        """Add the rows of a batch, as :class:`PairProbe` found them."""
        self.rows += len(found["present"])
        self.present += found["present"].sum(axis=0)
        if "changes" in found:
            changes = found["changes"].astype(np.float64)
            self.change += changes.sum(axis=0)
            self.square += np.square(changes).sum(axis=0)
            self.absolute += np.abs(changes).sum(axis=0)
        if "attention" in found:
            self.attention += found["attention"].sum(axis=0, dtype=np.float64)

    def deviation(self) -> np.ndarray:
        """Standard deviation of the change over all rows; a row without the pair counts as 0."""
        mean = self.change / self.rows
        return np.sqrt(np.maximum(self.square / self.rows - mean * mean, 0.0))
