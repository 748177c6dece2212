"""Whether a schema may continue an earlier one: what would move or change the meaning of an id is refused."""

from __future__ import annotations

from typing import Any

from afm_ctr.errors import UserError

from .fields import DeclaredIds, HashSpace, LibfmField, VocabularySpace, WordField, columns_of
from .resolved import ResolvedSchema
from .spec import FeatureSchema
from .times import TimeField


def check_parent(spec: FeatureSchema, parent: ResolvedSchema) -> None:
    """Refuse a schema whose ids would mean something else than its parent's.

    The same fields in the same order, of the same kinds and encodings, in the same id spaces. What may differ: how
    the log is written (format, names of columns, the format of a time, ``missing_values``), ``min_count``, ``top``,
    ``capacity``, the place of a key, and the size of declared or libfm ids, which may grow.

    Raises:
        UserError: names the first difference.
    """
    old = parent.spec
    names, old_names = [f.name for f in spec.fields], [f.name for f in old.fields]
    if names != old_names:
        changed = next((a or b for a, b in zip([*names, ""], [*old_names, ""], strict=False) if a != b), "")
        _refuse(parent, f"fields: differ at '{changed}'; a continued schema has the same fields in the same order")
    if spec.label and old.label and spec.label.kind != old.label.kind:
        _refuse(parent, f"label.kind: is '{spec.label.kind}', there '{old.label.kind}'")
    for index, (field, before) in enumerate(zip(spec.fields, old.fields, strict=True)):
        here = f"fields[{index}] ('{field.name}')"
        for key, mine, theirs in _differences(_fixed(field), _fixed(before)):
            _refuse(parent, f"{here}.{key}: is {mine}, there {theirs}")
        if len(columns_of(field)) != len(columns_of(before)):
            _refuse(parent, f"{here}.columns: are {len(columns_of(field))}, there {len(columns_of(before))}")
        (name, space), (old_name, old_space) = spec.space_of(field), old.space_of(before)
        if name != old_name:
            _refuse(parent, f"{here}: its id space is '{name}', there '{old_name}'")
        for key, mine, theirs in _differences(_fixed(space), _fixed(old_space)):
            _refuse(parent, f"{here}: {key} of its id space is {mine}, there {theirs}")
        if isinstance(space, DeclaredIds) and space.size < old_space.size:
            _refuse(parent, f"{here}: size is {space.size}, there {old_space.size}; it may only grow")
        if isinstance(field, LibfmField) and isinstance(before, LibfmField):
            (lo, hi), (old_lo, old_hi) = field.ids, before.ids
            if lo != old_lo or hi < old_hi:
                _refuse(parent, f"{here}.ids: [{lo}, {hi}], there [{old_lo}, {old_hi}]; only the end may grow")


def _refuse(parent: ResolvedSchema, what: str) -> None:
    raise UserError(f"the schema does not continue '{parent.spec.name}' ({parent.id}): {what}")


def _fixed(part: Any) -> dict[str, Any]:
    """What must stay as it is."""
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
