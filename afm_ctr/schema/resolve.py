"""Resolves a schema from the analysis of the train split; may continue an earlier resolved schema.

A schema may continue an earlier one only if no id moves or changes its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.schema.analysis_results import Analysis
from afm_ctr.schema.boundaries import quantile_boundaries
from afm_ctr.schema.fields import (
    BucketEncoding,
    DeclaredIds,
    HashSpace,
    LibfmField,
    MissingValue,
    NumericField,
    ValueEncoding,
    VocabularySpace,
    WordField,
    columns_of,
)
from afm_ctr.schema.keys import checked_key, key_check
from afm_ctr.schema.resolved import IdRange, NumericStatistics, ResolvedSchema, missing_space, statistics_from_spec
from afm_ctr.schema.spec import FeatureSchema
from afm_ctr.schema.times import PART_SIZES, TimeField

_LARGEST_VALUE = float(np.finfo(np.float32).max)
_ROUNDING = 1e-14  # relative error of the mean of equal numbers; float64's rounding error is 1.1e-16


def resolve(spec: FeatureSchema, analysis: Analysis, parent: ResolvedSchema | None = None) -> ResolvedSchema:
    """Decide ids, statistics and vocabularies.

    Without a parent the spaces get their ranges in the order of the fields. With one, the parent's decisions stay:
    ids never move, statistics and boundaries are the parent's, vocabularies keep their entries. New vocabulary
    entries (those that pass ``min_count`` and ``top`` in these data) are appended within the capacity, and beyond it
    in another range at the end of the table; so are declared ids whose size has grown. If nothing is new, the parent
    is returned.

    Args:
        analysis: results of the train split (``Analysis.empty()`` if the schema needs none).
        parent: the schema that this one continues.

    Returns:
        The resolved schema; deterministic in its arguments.

    Raises:
        UserError: the schema needs results that are absent, a vocabulary exceeds its capacity at the first
            resolve, or the schema does not match its parent.
    """
    if parent is not None:
        _check_parent(spec, parent)
    statistics = parent.statistics if parent is not None else _statistics(spec, analysis)
    vocabularies = {name: _entries(name, space, analysis, parent) for name, space in spec.vocabulary_spaces.items()}
    ranges = _ranges(spec, vocabularies, statistics, parent.ranges if parent is not None else ())
    checks = _key_checks(spec, parent)

    def resolved(lineage: tuple[str, ...]) -> ResolvedSchema:
        return ResolvedSchema(
            spec=spec,
            lineage=lineage,
            ranges=ranges,
            statistics=statistics,
            vocabularies=vocabularies,
            key_checks=checks,
        )

    if parent is None:
        return resolved(())
    return parent if resolved(parent.lineage).id == parent.id else resolved((*parent.lineage, parent.id))


def _key_checks(spec: FeatureSchema, parent: ResolvedSchema | None) -> dict[str, str]:
    spaces = dict(spec.space_of(field) for field in spec.fields)
    keyed = {
        name: space.key_file for name, space in spaces.items() if isinstance(space, HashSpace) and space.key_file
    }
    if parent is None:
        return {name: key_check(path) for name, path in keyed.items()}
    for name, path in keyed.items():
        checked_key(path, parent.key_checks[name])
    return parent.key_checks


def _statistics(spec: FeatureSchema, analysis: Analysis) -> dict[str, NumericStatistics]:
    found = statistics_from_spec(spec)
    for field in spec.fields:
        if not isinstance(field, NumericField) or field.name in found:
            continue
        facts = analysis.numbers.get(field.name)
        if facts is None:
            raise _not_analysed(f"field '{field.name}'")
        if isinstance(field.encoding, ValueEncoding):
            if not (math.isfinite(facts.mean) and math.isfinite(facts.std)):
                raise UserError(f"field '{field.name}': its numbers are too large to standardise; add `log: true`")
            # A column that never varies (or is always missing) keeps std 1. Its computed deviation need not be 0,
            # since the mean is rounded: that of 0.1, 0.1, 0.1 is 1.4e-17.
            varies = facts.std > _ROUNDING * abs(facts.mean)
            found[field.name] = NumericStatistics(mean=facts.mean, std=facts.std if varies else 1.0)
        else:
            assert field.encoding.quantiles is not None
            boundaries = quantile_boundaries(facts.sample, field.encoding.quantiles)
            found[field.name] = NumericStatistics(boundaries=boundaries)
    for field in spec.fields:
        if isinstance(field, NumericField) and isinstance(field.missing, MissingValue):
            _check_number_of_missing(field, field.missing.value, found[field.name])
    return {field.name: found[field.name] for field in spec.fields if field.name in found}


def _check_number_of_missing(field: NumericField, number: float, statistics: NumericStatistics) -> None:
    """Refuse a number for missing cells that a slot cannot hold; in the log such a number is a bad cell."""
    logged = isinstance(field.encoding, ValueEncoding) and field.encoding.log
    encoded = math.copysign(math.log1p(abs(number)), number) if logged else number
    if not abs((encoded - statistics.mean) / statistics.std) <= _LARGEST_VALUE:
        remedy = "give a smaller one" if logged else "give a smaller one, or `log: true`"
        raise UserError(f"field '{field.name}': missing: {number:g}: the slot's value overflows float32; {remedy}")


def _entries(
    name: str, space: VocabularySpace, analysis: Analysis, parent: ResolvedSchema | None
) -> tuple[bytes, ...]:
    counts: Mapping[bytes, int] | None = analysis.counts.get(name)
    old = parent.vocabularies[name] if parent is not None else ()
    if counts is None:
        if parent is None:
            raise _not_analysed(f"vocabulary '{name}'")
        return old
    # A vocabulary file cannot hold line breaks, and an empty cell is missing.
    frequent = [
        (value, count)
        for value, count in counts.items()
        if count >= space.min_count and value and b"\n" not in value and b"\r" not in value
    ]
    frequent.sort(key=lambda entry: (-entry[1], entry[0]))
    known = set(old)
    new = [value for value, _ in frequent[: space.top] if value not in known]
    if parent is None and space.capacity is not None and len(new) > space.capacity:
        raise UserError(
            f"vocabulary '{name}': {len(new)} values occur at least {space.min_count} times, and its capacity is "
            f"{space.capacity}; raise `capacity` or `min_count`, or set `top: {space.capacity}`"
        )
    return (*old, *new)


def _not_analysed(what: str) -> UserError:
    return UserError(f"{what} is fitted to the data, which was not analysed; `afm-ctr prepare` does that")


def _ranges(
    spec: FeatureSchema,
    vocabularies: Mapping[str, tuple[bytes, ...]],
    statistics: Mapping[str, NumericStatistics],
    existing: tuple[IdRange, ...],
) -> tuple[IdRange, ...]:
    """The existing ranges, followed by the further rows that the spaces need."""
    ranges = list(existing)
    end = ranges[-1].start + ranges[-1].size if ranges else 1
    covered: dict[str, int] = {}
    for owned in ranges:
        covered[owned.space] = covered.get(owned.space, 0) + owned.size
    for field in spec.fields:
        name, space = spec.space_of(field)
        wanted = [(name, _rows(field, space, len(vocabularies.get(name, ())), statistics.get(name)))]
        if field.missing == "own":
            wanted.append((missing_space(field.name), 1))
        for owner, rows in wanted:
            have = covered.get(owner, 0)
            if rows > have:
                ranges.append(IdRange(space=owner, local_start=have, start=end, size=rows - have))
                covered[owner] = rows
                end += rows - have
    return tuple(ranges)


def _rows(field: Any, space: Any, entries: int, statistics: NumericStatistics | None) -> int:
    """The number of rows that a field's space needs."""
    if isinstance(space, HashSpace):
        return space.buckets
    if isinstance(space, DeclaredIds):
        return space.size
    if isinstance(space, VocabularySpace):
        return space.oov + max(entries, space.capacity or 0)
    if isinstance(field, LibfmField):
        return field.ids[1] - field.ids[0]
    if isinstance(field, TimeField):
        return PART_SIZES[field.part]
    assert statistics is not None
    return len(statistics.boundaries) + 1 if isinstance(field.encoding, BucketEncoding) else 1


def _check_parent(spec: FeatureSchema, parent: ResolvedSchema) -> None:
    """Refuse a schema whose ids would differ in meaning from its parent's.

    Fields, their order, kinds, encodings and id spaces must be the same. These may differ: the log's format, names
    of columns, formats of times, ``missing_values``, ``min_count``, ``top``, ``capacity``, the path of a key, and
    the size of declared or libfm ids, which may grow.

    Raises:
        UserError: names the first difference.
    """
    old = parent.spec
    names, old_names = [f.name for f in spec.fields], [f.name for f in old.fields]
    if names != old_names:
        changed = next((a or b for a, b in zip([*names, ""], [*old_names, ""], strict=False) if a != b), "")
        _refuse(parent, f"fields: differ at '{changed}'; a continued schema has the same fields in the same order")
    if spec.label and old.label and spec.label.kind != old.label.kind:
        _refuse(parent, f"label.kind: is '{spec.label.kind}', was '{old.label.kind}'")
    for index, (field, before) in enumerate(zip(spec.fields, old.fields, strict=True)):
        here = f"fields[{index}] ('{field.name}')"
        for key, mine, theirs in _differences(_fixed(field), _fixed(before)):
            _refuse(parent, f"{here}.{key}: is {mine}, was {theirs}")
        if len(columns_of(field)) != len(columns_of(before)):
            _refuse(parent, f"{here}.columns: are {len(columns_of(field))}, were {len(columns_of(before))}")
        (name, space), (old_name, old_space) = spec.space_of(field), old.space_of(before)
        if name != old_name:
            _refuse(parent, f"{here}: its id space is '{name}', was '{old_name}'")
        for key, mine, theirs in _differences(_fixed(space), _fixed(old_space)):
            _refuse(parent, f"{here}: {key} of its id space is {mine}, was {theirs}")
        if isinstance(space, DeclaredIds) and space.size < old_space.size:
            _refuse(parent, f"{here}: size is {space.size}, was {old_space.size}; it may only grow")
        if isinstance(field, LibfmField) and isinstance(before, LibfmField):
            (lo, hi), (old_lo, old_hi) = field.ids, before.ids
            if lo != old_lo or hi < old_hi:
                _refuse(parent, f"{here}.ids: [{lo}, {hi}], were [{old_lo}, {old_hi}]; only the end may grow")


def _refuse(parent: ResolvedSchema, what: str) -> None:
    raise UserError(f"the schema does not continue '{parent.spec.name}' ({parent.id}): {what}")


def _fixed(part: Any) -> dict[str, Any]:
    """The keys that must not change."""
    if part is None:
        return {}
    free = {"column", "separator", "missing_values"}
    if isinstance(part, VocabularySpace):
        free = {"min_count", "top", "capacity"}
    elif isinstance(part, DeclaredIds):
        free = {"size"}
    elif isinstance(part, HashSpace):
        return {"kind": part.kind, "buckets": part.buckets, "keyed": part.key_file is not None}
    elif isinstance(part, LibfmField):
        free = {"ids"}
    elif isinstance(part, TimeField):
        free |= {"format"}
    elif isinstance(part, WordField):
        free |= {"columns", "encoding", "space"}
    return {key: value for key, value in part.model_dump(mode="json").items() if key not in free}


def _differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = dict.fromkeys([*mine, *theirs])
    return [(key, mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)]
