"""A model's quality on slices of a split, by the values of a field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.explain.content import describe_buckets, describe_slot
from afm_ctr.metrics import Interval
from afm_ctr.report.scored import ScoredSplit
from afm_ctr.schema import BucketEncoding, NumericField, ResolvedSchema, TimeField, ValueEncoding, missing_space

MOST = 10  # maximum number of values, or groups of numbers, of a field

Mask = np.ndarray


@dataclasses.dataclass(frozen=True)
class Slice:
    """The rows of a split in which a field has certain values."""

    field: str
    name: str  # the field's values
    rows: int
    positives: int | None  # positive rows; None if labels are real or missing
    quality: Interval | None  # AUC, or RMSE if labels are real; None if undefined
    why_not: str  # why it is undefined
    predicted: float  # mean prediction, weighted
    observed: float | None  # mean of the labels on that scale, weighted; None without labels


def chosen_fields(schema: ResolvedSchema, names: Sequence[str] | None) -> list[str]:
    """The fields to slice by: the given ones, or all. Raises UserError: there is no such field."""
    known = [field.name for field in schema.spec.fields]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UserError(f"--slices {unknown[0]}: the schema has no such field; it has: {', '.join(known)}")
    return [name for name in known if name in names] if names else known


def slots_of(schema: ResolvedSchema, names: Sequence[str]) -> list[int]:
    """The slots of some fields."""
    return [slot.index for slot in schema.slots if slot.field in names]


def slices_of(scored: ScoredSplit, schema: ResolvedSchema, names: Sequence[str]) -> dict[str, list[Slice]]:
    """The slices of each field, in display order.

    A row with several values of a field is in the slice of each of them.
    """
    of_slot = [schema.slots[index].field for index in scored.slots]
    found: dict[str, list[Slice]] = {}
    predictions = scored.predictions[scored.sampled]
    targets = scored.targets[scored.sampled] if scored.labels is not None else None
    for name in names:
        columns = [place for place, field in enumerate(of_slot) if field == name]
        groups = _groups(schema, name, scored.ids[:, columns], scored.values[:, columns])
        found[name] = [_slice(scored, name, label, mask, predictions, targets) for label, mask in groups]
    return found


def _slice(
    scored: ScoredSplit, field: str, name: str, mask: Mask, predictions: np.ndarray, targets: np.ndarray | None
) -> Slice:
    rows = scored.sampled[mask]
    weights = scored.weights[rows].astype(np.float64)
    quality, why_not = scored.quality(rows)
    binary = scored.labels is not None and scored.label_kind == "binary"
    return Slice(
        field=field,
        name=name,
        rows=rows.size,
        positives=int(scored.labels[rows].sum()) if binary else None,  # type: ignore[index]
        quality=quality,
        why_not=why_not,
        predicted=float(np.average(predictions[mask], weights=weights)),
        observed=None if targets is None else float(np.average(targets[mask], weights=weights)),
    )


def _groups(schema: ResolvedSchema, name: str, ids: np.ndarray, values: np.ndarray) -> Iterator[tuple[str, Mask]]:
    """Names and rows of a field's slices, without empty ones; ``ids`` and ``values`` are [m, slots of the field]."""
    field = next(field for field in schema.spec.fields if field.name == name)
    own = [owner.start for owner in schema.ranges_of(missing_space(name))]
    missing = np.asarray(np.isin(ids, own).any(axis=1))
    absent = np.asarray((ids == 0).all(axis=1))
    present = ~missing & ~absent
    if isinstance(field, NumericField):
        yield from _numbers(schema, field, ids[:, 0], values[:, 0], present)
    else:
        yield from _values(schema, field, ids, present)
    for label, mask in (("missing", missing), ("absent", absent)):
        if mask.any():
            yield label, mask


def _values(schema: ResolvedSchema, field: Any, ids: np.ndarray, present: Mask) -> Iterator[tuple[str, Mask]]:
    slot = next(slot for slot in schema.slots if slot.field == field.name)
    distinct, counts = np.unique(ids[present], return_counts=True)
    distinct, counts = distinct[distinct > 0], counts[distinct > 0]
    order = np.argsort(-counts, kind="stable")
    # Parts of time are ordered, and few.
    top = distinct if isinstance(field, TimeField) else distinct[order[:MOST]]
    named: dict[str, Mask] = {}
    others = present.copy()
    for feature_id in top.tolist():
        mask = (ids == feature_id).any(axis=1)
        label = describe_slot(schema, slot, feature_id, 1.0)
        named[label] = named[label] | mask if label in named else mask  # ids of unknown words share a name
        others &= ~mask
    yield from named.items()
    if others.any():
        yield f"others ({distinct.size - top.size:,} ids)", others


def _numbers(
    schema: ResolvedSchema, field: NumericField, ids: np.ndarray, values: np.ndarray, present: Mask
) -> Iterator[tuple[str, Mask]]:
    """Slices of about equally many rows; equal numbers stay together."""
    if not present.any():
        return
    buckets = isinstance(field.encoding, BucketEncoding)
    numbers = schema.local_ids(field.name, ids) if buckets else values
    distinct, counts = np.unique(numbers[present], return_counts=True)
    if distinct.size <= MOST:
        group = np.arange(distinct.size)
    else:
        group = ((np.cumsum(counts) - 0.5 * counts) / counts.sum() * MOST).astype(np.int64)
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    last = np.r_[first[1:], group.size] - 1
    for low, high in zip(distinct[first], distinct[last], strict=True):
        label = _between(schema, field, low, high)
        yield label, present & (numbers >= low) & (numbers <= high)


def _between(schema: ResolvedSchema, field: NumericField, low: Any, high: Any) -> str:
    """Both ends in the log's unit: the outer boundaries of buckets, or else the numbers in the data."""
    statistics = schema.statistics[field.name]
    if isinstance(field.encoding, BucketEncoding):
        return describe_buckets(statistics.boundaries, int(low), int(high))

    def raw(number: float) -> float:
        assert isinstance(field.encoding, ValueEncoding)
        value = number * statistics.std + statistics.mean if field.encoding.standardise else number
        return math.copysign(math.expm1(min(abs(value), 709.0)), value) if field.encoding.log else value

    ends = [f"{raw(float(number)):.4g}" for number in (low, high)]
    return ends[0] if low == high else " to ".join(ends)
