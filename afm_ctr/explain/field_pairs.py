"""The pairs of slots by the two fields that they are of: a field of several values has several slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afm_ctr.schema import ResolvedSchema


@dataclass(frozen=True)
class FieldPairs:
    """Pairs of fields, in the order of the first pair of slots of each."""

    names: tuple[tuple[str, str], ...]  # of each the two fields
    members: tuple[np.ndarray, ...]  # of each its pairs of slots: int64 places in ``ResolvedSchema.pairs``

    @classmethod
    def of(cls, schema: ResolvedSchema) -> FieldPairs:
        """Of a schema with one field the slots take the place of fields."""
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
    """What the pairs of each slot are counted under: its field's name, or its own in a schema of one field."""
    fields = [slot.field for slot in schema.slots]
    return fields if len(set(fields)) > 1 else [slot.name for slot in schema.slots]
