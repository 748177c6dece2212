"""The content of a slot of a prepared row, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from afm_ctr.schema import (
    CROSS_SEPARATOR,
    BucketEncoding,
    CrossField,
    HashSpace,
    LibfmField,
    NumericField,
    ResolvedSchema,
    Slot,
    TimeField,
    VocabularySpace,
    missing_space,
)
from afm_ctr.schema.times import moment_name


def describe_slot(schema: ResolvedSchema, slot: Slot, feature_id: int, value: float) -> str:
    """The word, the bucket or the number behind an id and a value; a hash has only its number."""
    if feature_id == 0:
        return "absent"
    owner = next(r for r in schema.ranges if r.start <= feature_id < r.start + r.size)
    if owner.space == missing_space(slot.field):
        return "missing"
    field = next(field for field in schema.spec.fields if field.name == slot.field)
    local = owner.local_start + feature_id - owner.start
    weight = "" if value == 1.0 else f" (value {value:.6g})"
    if isinstance(field, NumericField):
        if not isinstance(field.encoding, BucketEncoding):
            return f"value {value:.6g}"
        return describe_buckets(schema.statistics[field.name].boundaries, local, local)
    if isinstance(field, LibfmField):
        return f"id {field.ids[0] + local}{weight}"
    if isinstance(field, TimeField):
        return moment_name(field.part, local)
    name, space = schema.spec.space_of(field)
    if isinstance(space, VocabularySpace):
        entries = schema.vocabularies[name]
        known = space.oov <= local < space.oov + len(entries)
        if not known:
            return f"unknown word{weight}"
        entry = entries[local - space.oov]
        parts = entry.split(CROSS_SEPARATOR) if isinstance(field, CrossField) else [entry]
        return " & ".join(part.decode("utf-8", "replace") for part in parts) + weight
    return f"hash {local}{weight}" if isinstance(space, HashSpace) else f"id {local}{weight}"


def describe_buckets(boundaries: Sequence[float], first: int, last: int) -> str:
    """The numbers of a bucket, or of several adjacent ones."""
    low = boundaries[first - 1] if first else -math.inf
    high = boundaries[last] if last < len(boundaries) else math.inf
    short = f"[{low:.6g}, {high:.6g})"
    # Neighbouring floats look alike when rounded.
    return short if f"{low:.6g}" != f"{high:.6g}" else f"[{low!r}, {high!r})"
