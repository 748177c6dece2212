"""Figures of a model's pairs of slots and of fields, and their sums over rows, which are not kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from afm_ctr.interactions import pair_presence, pair_products
from afm_ctr.models import CTRModel
from afm_ctr.schema import ResolvedSchema

EffectOf = Literal["removal", "contribution"]

_FLOATS = 1 << 24  # 64 MB for a batch's largest tensor, [rows, pairs, width]
_MOST_ROWS = 512


@dataclass(frozen=True)
class FieldPairs:
    """Pairs of fields, in the order of the first pair of slots of each."""

    names: tuple[tuple[str, str], ...]  # the two fields of each pair
    members: tuple[np.ndarray, ...]  # the pairs of slots of each: int64 indices in ``ResolvedSchema.pairs``

    @classmethod
    def of(cls, schema: ResolvedSchema) -> FieldPairs:
        """For a schema with one field the slots replace the fields."""
        owner = labels_of_slots(schema)
        groups: dict[tuple[str, str], list[int]] = {}
        for place, (i, j) in enumerate(schema.pairs.tolist()):
            groups.setdefault((owner[i], owner[j]), []).append(place)
        return cls(tuple(groups), tuple(np.array(places, np.int64) for places in groups.values()))

    @property
    def several(self) -> list[int]:
        """Numbers of the pairs of fields with more than one pair of slots."""
        return [number for number, places in enumerate(self.members) if len(places) > 1]

    def reduce(self, how: np.ufunc, values: np.ndarray) -> np.ndarray:
        """``[B, P]`` of pairs of slots to ``[B, pairs of fields]``, by ``np.add`` or another ufunc."""
        starts = np.cumsum([0, *map(len, self.members)])[:-1]
        reduced: np.ndarray = how.reduceat(values[:, np.concatenate(self.members)], starts, axis=1)
        return reduced


def labels_of_slots(schema: ResolvedSchema) -> list[str]:
    """The label under which each slot's pairs are counted: its field's name, or its own in a schema of one field."""
    fields = [slot.field for slot in schema.slots]
    return fields if len(set(fields)) > 1 else [slot.name for slot in schema.slots]


def batch_rows(pairs: int, width: int) -> int:
    """Number of rows per batch, so that memory does not grow with the pairs."""
    return max(1, min(_MOST_ROWS, _FLOATS // max(pairs * width, 1)))


class PairProbe:
    """Figures of a model's pairs for a batch. Each may be missing.

    Attributes:
        has_attention: whether its pairs have shares.
        has_products: whether they also have products of vectors, which the shares multiply.
        has_contributions: whether its pairs add up, so that each has a part of the logit.
        effect_of: the meaning of its effects: ``removal``, what the logit loses without the pair; else
            ``contribution``, what the pair adds; None for a model that defines neither.
        rows: number of rows per batch.
        fields: how its pairs of slots form pairs of fields.
    """

    def __init__(self, model: CTRModel, fields: FieldPairs) -> None:
        self._model, self.fields = model, fields
        width = max(model.options.factors, getattr(model.options, "attention", 0))
        self.rows = batch_rows(len(model.pairs), width)
        blank = tf.zeros([1, model.num_slots], tf.int64)
        inputs = model.inputs_of({"feature_ids": blank, "feature_vals": tf.zeros(blank.shape)})
        self.has_attention = model.interaction.explain(inputs) is not None
        self.has_products = self.has_attention and inputs.vectors is not None
        self.has_contributions = model.interaction.contributions(inputs) is not None
        self._has_ablations = model.interaction.ablations(inputs) is not None
        self.effect_of: EffectOf | None = "contribution" if self.has_contributions else None
        if self._has_ablations:
            self.effect_of = "removal"
        ids = tf.TensorSpec([None, model.num_slots], tf.int64)
        vals = tf.TensorSpec([None, model.num_slots], tf.float32)
        self._measure = tf.function(self._measured, input_signature=[ids, vals], autograph=False)

    def __call__(self, feature_ids: Any, feature_vals: Any) -> dict[str, np.ndarray]:
        """``present`` bool [B, P], and as far as the model has them, float32 [B, P] each, ``attention``,
        ``weighted``, which is a_ij ‖u_i ⊙ u_j‖, ``contributions`` and ``changes``, the source of the effects."""
        return {name: value.numpy() for name, value in self._measure(feature_ids, feature_vals).items()}

    def by_field(self, found: dict[str, np.ndarray], feature_ids: Any, feature_vals: Any) -> dict[str, np.ndarray]:
        """The same for pairs of fields, from the figures of pairs of slots in these rows.

        Attention, weighted or not, and contributions are sums. A change is that of removing all pairs of slots at
        once, or the sum of theirs for a model that does not define it.
        """
        fields = self.fields
        present = fields.reduce(np.logical_or, found["present"])
        sums = {name: fields.reduce(np.add, values) for name, values in found.items() if name != "present"}
        if self._has_ablations and fields.several:
            features = {
                "feature_ids": tf.convert_to_tensor(feature_ids),
                "feature_vals": tf.convert_to_tensor(feature_vals),
            }
            inputs = self._model.inputs_of(features)
            groups = [fields.members[number] for number in fields.several]
            changes = self._model.interaction.group_ablations(inputs, groups)
            if changes is not None:
                sums["changes"][:, fields.several] = changes.numpy()
        return {"present": present, **{name: np.where(present, values, 0.0) for name, values in sums.items()}}

    def _measured(self, feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = self._model.inputs_of({"feature_ids": feature_ids, "feature_vals": feature_vals})
        interaction = self._model.interaction
        found = {"present": pair_presence(inputs.present, self._model.pairs)}
        if self.has_attention:
            found["attention"] = interaction.explain(inputs)
        if self.has_products:
            lengths = tf.norm(pair_products(inputs.vectors, self._model.pairs), axis=2)
            found["weighted"] = found["attention"] * lengths
        if self.has_contributions:
            found["contributions"] = interaction.contributions(inputs)
        if self.effect_of is not None:
            found["changes"] = interaction.ablations(inputs) if self._has_ablations else found["contributions"]
        return found


@dataclass
class PairSums:
    """Running sums over rows, float64 [P] each."""

    rows: int
    present: np.ndarray
    change: np.ndarray
    square: np.ndarray
    absolute: np.ndarray
    contribution: np.ndarray
    attention: np.ndarray
    weighted: np.ndarray

    @classmethod
    def of(cls, pairs: int) -> PairSums:
        return cls(0, *(np.zeros(pairs) for _ in range(7)))

    def add(self, found: dict[str, np.ndarray]) -> None:
        """Add the rows of a batch, in the form of :class:`PairProbe`."""
        self.rows += len(found["present"])
        self.present += found["present"].sum(axis=0)
        if "changes" in found:
            changes = found["changes"].astype(np.float64)
            self.change += changes.sum(axis=0)
            self.square += np.square(changes).sum(axis=0)
            self.absolute += np.abs(changes).sum(axis=0)
        if "contributions" in found:
            self.contribution += found["contributions"].sum(axis=0, dtype=np.float64)
        if "attention" in found:
            self.attention += found["attention"].sum(axis=0, dtype=np.float64)
        if "weighted" in found:
            self.weighted += found["weighted"].sum(axis=0, dtype=np.float64)

    def deviation(self) -> np.ndarray:
        """Standard deviation of the change over all rows; a row without the pair counts as 0."""
        mean = self.change / self.rows
        return np.sqrt(np.maximum(self.square / self.rows - mean * mean, 0.0))


def shares(absolute: np.ndarray) -> np.ndarray:
    """Each pair's part of a sum over the pairs, such as of summed |change|: float64 [P], 1 together (or all 0)."""
    total = absolute.sum()
    return absolute / total if total > 0 else np.zeros_like(absolute)
