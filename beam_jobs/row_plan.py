"""Schemas whose fields are encoded without TensorFlow: what the library in C++ is to do for each field.

The transform is :class:`afm_ctr.features.FeatureTransform`. Of some kinds of fields the library makes the same bytes,
and a job whose fields are all of these does not load TensorFlow. With one slot each they are: numbers in buckets,
numbers as values (not their logarithms, whose last bit is TensorFlow's), hashes without a key, crosses of such, and
declared ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from afm_ctr.native import RowField
from afm_ctr.schema import (
    BucketEncoding,
    DeclaredIds,
    HashSpace,
    MissingValue,
    NumericField,
    ResolvedSchema,
    ValueEncoding,
    columns_of,
    missing_space,
    slots_of,
)


def row_plan(schema: ResolvedSchema) -> list[RowField] | None:
    """How each field is encoded, in the order of slots; None where a field is of another kind."""
    plan = [_row_field(schema, field) for field in schema.spec.fields]
    return [field for field in plan if field is not None] if None not in plan else None


def _row_field(schema: ResolvedSchema, field: Any) -> RowField | None:
    name, space = schema.spec.space_of(field)
    if slots_of(field) > 1 or getattr(field, "separator", None) is not None:
        return None
    more: dict[str, Any] = {}
    if isinstance(field, NumericField):
        statistics = schema.statistics[field.name]
        if isinstance(field.encoding, BucketEncoding):
            more = {"kind": "buckets", "boundaries": np.array(statistics.boundaries, np.float64)}
        elif isinstance(field.encoding, ValueEncoding) and not field.encoding.log:
            more = {"kind": "value", "mean": statistics.mean, "std": statistics.std}
            if isinstance(field.missing, MissingValue):
                more["fill"] = field.missing.value
    elif field.kind in ("categorical", "cross") and isinstance(space, HashSpace) and space.key_file is None:
        more = {"kind": "hash", "size": space.buckets}
    elif field.kind == "categorical" and isinstance(space, DeclaredIds):
        more = {"kind": "ids", "size": space.size}
    if not more:
        return None
    ranges = schema.ranges_of(name)
    return RowField(
        columns=columns_of(field),
        missing=schema.spec.missing_of(field),
        own=schema.global_id(missing_space(field.name), 0) if field.missing == "own" else 0,
        starts=np.array([owned.local_start for owned in ranges], np.int64),
        shifts=np.array([owned.start - owned.local_start for owned in ranges], np.int64),
        **more,
    )
