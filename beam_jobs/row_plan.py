"""The C++ library's plan for each field; its results equal those of ``afm_ctr.features.FeatureTransform``."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from afm_ctr.native import RowField, TextIndex
from afm_ctr.schema import (
    BucketEncoding,
    HashSpace,
    LibfmField,
    MissingValue,
    NumericField,
    ResolvedSchema,
    TimeField,
    VocabularySpace,
    columns_of,
    missing_space,
    slots_of,
)
from afm_ctr.schema.keys import checked_key
from afm_ctr.schema.times import form_of


def row_plan(schema: ResolvedSchema) -> list[RowField]:
    """How to encode each field, in the order of slots.

    Raises:
        UserError: the key of a hashed field cannot be read, or is not the schema's.
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
                kind = "logarithm" if field.encoding.log else "value"
                more = {"kind": kind, "mean": statistics.mean, "std": statistics.std}
                if isinstance(field.missing, MissingValue):
                    more["fill"] = field.missing.value
        elif isinstance(field, TimeField):
            form, layout = form_of(field.format)
            more = {"kind": "time", "form": form, "layout": layout, "part": field.part}
        elif isinstance(field, LibfmField):
            first, end = field.ids
            more = {"kind": "libfm", "first": first, "size": end - first, "slots": slots_of(field)}
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
            missing=() if isinstance(field, LibfmField) else schema.spec.missing_of(field),
            own=schema.global_id(missing_space(field.name), 0) if field.missing == "own" else 0,
            starts=np.array([owned.local_start for owned in ranges], np.int64),
            shifts=np.array([owned.start - owned.local_start for owned in ranges], np.int64),
            **more,
        )

    return [row_field(field) for field in schema.spec.fields]
