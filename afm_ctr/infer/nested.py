"""Nested objects and structs: the values of a log that can be cells, and those that cannot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from afm_ctr.rawlog.arrow_texts import is_list, nested_kind

_SEPARATORS = ("|", ";", ",", "^", "\x1f")
_RARE = 0.01  # maximum share of values that cannot be cells; prepare rejects those rows
_MOST_KEYS = 200  # an object with more keys, each of them rare, has data for keys
_RARE_KEY = 0.05


def json_object(line: bytes) -> dict[str, Any] | None:
    """Parse a line as a JSON object; ``None`` if it is not one."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def json_columns(rows: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, str], str]:
    """The columns of objects.

    A value inside an object is a column ``outer.inner``; an object that is null in some rows is not a column itself.

    Returns:
        Names of the columns in order of appearance; reasons by column for those left out; and a list separator that
        no element contains.
    """
    kinds: dict[str, Counter[str]] = {}
    keys: dict[str, set[str]] = {}
    elements: set[str] = set()
    for row in rows:
        for path, kind, value in _values(row):
            kinds.setdefault(path, Counter())[kind] += 1
            if kind == "object":
                keys.setdefault(path, set()).update(value)
            elif kind == "list":
                elements.update(mark for mark in _SEPARATORS for item in value if mark in str(item))
    crowded = {
        path
        for path, found in keys.items()
        if len(found) > _MOST_KEYS
        and sum(kinds[f"{path}.{key}"].total() for key in found) < _RARE_KEY * len(found) * kinds[path]["object"]
    }
    names, left_out = [], {}
    for path, seen in kinds.items():
        if any(path.startswith(f"{outer}.") for outer in crowded):
            continue
        why = f"an object of {len(keys[path])} keys that are data" if path in crowded else _no_cell(path, seen)
        if why:
            left_out[path] = why
        elif seen["cell"] or seen["list"] or not seen["object"]:
            names.append(path)
    separator = next((mark for mark in _SEPARATORS if mark not in elements), "|")
    return names, left_out, separator


def _values(row: dict[str, Any], before: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, kind, value) of everything in an object, outer objects first."""
    for key, value in row.items():
        path = before + key
        if isinstance(value, dict):
            yield path, "object", value
            yield from _values(value, f"{path}.")
        elif isinstance(value, list):
            yield path, "nested" if any(isinstance(item, (dict, list)) for item in value) else "list", value
        else:
            yield path, "null" if value is None else "cell", value


def _no_cell(path: str, seen: Counter[str]) -> str | None:
    there = seen.total() - seen["null"]
    cells = seen["cell"] + seen["list"]
    if not path or path.startswith(".") or path.endswith("."):
        return "a key without a name"
    if seen["nested"] > _RARE * there:
        return "a list of objects or lists"
    if cells and seen["object"] > _RARE * there:
        return f"an object in {seen['object'] / there:.0%} of the rows and a value in the others"
    return None


def parquet_columns(schema: Any) -> tuple[list[str], dict[str, str]]:
    """The columns of a Parquet file by its Arrow schema, and reasons by column for those left out."""
    names: list[str] = []
    left_out: dict[str, str] = {}
    for name, kind in _leaves(schema):
        if schema.names.count(name.split(".")[0]) > 1 and name in schema.names:
            left_out[name] = "the file has two columns of this name"
        elif why := _no_parquet_cell(kind) if name else "a column without a name":
            left_out[name] = why
        else:
            names.append(name)
    return [name for name in dict.fromkeys(names) if name not in left_out], left_out


def _leaves(fields: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    from pyarrow import types

    for field in fields:
        inner = [field.type.field(i) for i in range(field.type.num_fields)] if types.is_struct(field.type) else []
        if inner:
            yield from _leaves(inner, f"{before}{field.name}.")
        else:
            yield before + field.name, field.type


def _no_parquet_cell(kind: Any) -> str | None:
    """Why values of a type cannot be cells; ``None``: they can."""
    import pyarrow
    from pyarrow import types

    if why := nested_kind(kind):
        return "a struct without fields" if why == "a struct" else why
    if types.is_dictionary(kind):
        kind = kind.value_type
    if is_list(kind):
        return None
    try:
        pyarrow.nulls(0, getattr(kind, "storage_type", kind)).cast(pyarrow.string())
    except pyarrow.ArrowException:
        return None if types.is_binary(kind) or types.is_fixed_size_binary(kind) else f"of type {kind}"
    return None
