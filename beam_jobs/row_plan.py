"""Schemas whose fields are encoded without TensorFlow: what the library in C++ is to do for each field.

The transform is :class:`afm_ctr.features.FeatureTransform`. Of most kinds of fields the library makes the same bytes,
and a job whose fields are all of these does not load TensorFlow. The other kinds are logarithms, whose last bit is
TensorFlow's, times, and libfm text.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from afm_ctr.native import RowField, TextIndex
from afm_ctr.schema import (
    BucketEncoding,
    FeatureSchema,
    HashSpace,
    MissingValue,
    NumericField,
    ResolvedSchema,
    ValueEncoding,
    VocabularySpace,
    columns_of,
    missing_space,
    slots_of,
)
from afm_ctr.schema.keys import checked_key


def has_row_plan(spec: FeatureSchema) -> bool:
    """Whether all fields are of kinds that the library encodes."""
    return all(
        not (isinstance(field.encoding, ValueEncoding) and field.encoding.log)
        if isinstance(field, NumericField)
        else field.kind in ("categorical", "cross")
        for field in spec.fields
    )


def row_plan(schema: ResolvedSchema) -> list[RowField]:
    """How each field is encoded, in the order of slots, where the schema :func:`has_row_plan`.

    Raises:
        UserError: the key of a hashed field cannot be read, or is another one.
    """

    @cache
    def entries(space: str) -> TextIndex:
        return TextIndex(schema.vocabularies[space])

    def row_field(field: Any) -> RowField:
        name, space = schema.spec.space_of(field)
        more: dict[str, Any] = {}
        if isinstance(field, NumericField):
            statistics = schema.statistics[field.name]
            if isinstance(field.encoding, BucketEncoding):
                more = {"kind": "buckets", "boundaries": np.array(statistics.boundaries, np.float64)}
            else:
                more = {"kind": "value", "mean": statistics.mean, "std": statistics.std}
                if isinstance(field.missing, MissingValue):
                    more["fill"] = field.missing.value
        elif isinstance(space, VocabularySpace):
            more = {"kind": "vocabulary", "size": space.oov, "entries": entries(name)}
        elif isinstance(space, HashSpace):
            more = {"kind": "hash", "size": space.buckets}
            if space.key_file is not None:
                more |= {"kind": "keyed hash", "key": checked_key(space.key_file, schema.key_checks[name])}
        else:
            more = {"kind": "ids", "size": space.size}
        if getattr(field, "separator", None) is not None:
            more |= {"separator": field.separator.encode(), "slots": slots_of(field)}
            more |= {"last": field.keep == "last", "mean_of_values": field.value == "mean"}
        ranges = schema.ranges_of(name)
        return RowField(
            columns=columns_of(field),
            missing=schema.spec.missing_of(field),
            own=schema.global_id(missing_space(field.name), 0) if field.missing == "own" else 0,
            starts=np.array([owned.local_start for owned in ranges], np.int64),
            shifts=np.array([owned.start - owned.local_start for owned in ranges], np.int64),
            **more,
        )

    return [row_field(field) for field in schema.spec.fields]
