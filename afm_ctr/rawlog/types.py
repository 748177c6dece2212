"""Checks that a column has one type in all files: in another type the same value may have another text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from afm_ctr.errors import UserError
from afm_ctr.rawlog.arrow_texts import is_list
from afm_ctr.schema import FeatureSchema, JsonlFormat, LibfmField, ResolvedSchema, WordField, columns_of

_WHOLE, _FLOAT = re.compile(rb"-?[0-9]+"), re.compile(rb"-?[0-9]+\.0")


def word_columns(spec: FeatureSchema) -> set[str]:
    """The columns whose texts are compared or hashed: those of categorical fields and crosses, the key, the group and
    the keys of side tables. In these 5 and 5.0 differ; numbers and times are parsed."""
    words = [name for field in spec.fields if isinstance(field, WordField) for name in columns_of(field)]
    keys = [table.key.log for table in spec.side_tables.values()]
    return {name for name in (*words, *keys, spec.key, spec.group) if name}


class Learned(NamedTuple):
    """The forms of numbers in the vocabularies of a column's fields."""

    words: bool  # whether any field reads the column as words
    whole: bool  # whether any vocabulary has integers: ``5``
    floats: bool  # whether all have floats without a fraction: ``5.0``


def learned(schema: ResolvedSchema, column: str) -> Learned:
    """The forms of numbers learned for a column; values of hashes and declared ids are unknown."""
    spec = schema.spec
    spaces = {
        spec.space_of(field).name
        for field in spec.fields
        if isinstance(field, (WordField, LibfmField)) and column in columns_of(field)
    }
    entries = [schema.vocabularies.get(space, ()) for space in spaces]
    return Learned(
        bool(spaces),
        any(_WHOLE.fullmatch(entry) for one in entries for entry in one),
        all(any(_FLOAT.fullmatch(entry) for entry in one) for one in entries),
    )


def written_twice(schema: ResolvedSchema) -> list[str]:
    """A warning for every vocabulary that has learned numbers in two forms, 5 and 5.0.

    JSON Lines have no column types: an id that became a float next to a null is only noticed here.
    """
    if not isinstance(schema.spec.format, JsonlFormat):
        return []
    lines = []
    for name, entries in schema.vocabularies.items():
        known = set(entries)
        if twice := [entry for entry in entries if _FLOAT.fullmatch(entry) and entry[:-2] in known]:
            first = twice[0].decode()
            lines.append(
                f"vocabulary {name!r}: {len(twice):,} numbers are there as integers and as floats, such as "
                f"{first[:-2]} and {first}, which are two words; write them alike"
            )
    return lines


class ColumnTypes:
    """Compares the column types of Parquet files, file by file.

    Args:
        columns: the columns to check, see :func:`word_columns`.
        schema: also refuse floats in columns of which the schema has learned integers.
    """

    def __init__(self, columns: Iterable[str], schema: ResolvedSchema | None = None) -> None:
        self._checked = set(columns)
        known = {name: learned(schema, name) for name in schema.raw_columns} if schema is not None else {}
        self._whole = {name for name, found in known.items() if found.whole and not found.floats}
        self._first: dict[str, tuple[str, str, str]] = {}

    def add(self, types: Mapping[str, Any], source: str) -> None:
        """Compare the columns of a file with those of earlier files.

        Args:
            types: the file's Arrow types, by the schema's column names.

        Raises:
            UserError: a column has another type than in an earlier file (names both), or holds floats although the
                schema has learned integers.
        """
        for name in sorted(self._checked & types.keys()):
            kind = kind_of(types[name])
            if kind is None:
                continue
            if name in self._whole and kind.removeprefix("list of ") in ("double", "float", "halffloat"):
                raise UserError(
                    f"{source}: column {name!r} is {types[name]}, and the schema has learned whole numbers: 5 would "
                    "be 5.0, another word; write it as integers"
                )
            first, shown, path = self._first.setdefault(name, (kind, str(types[name]), source))
            if kind != first:
                raise UserError(
                    f"{source}: column {name!r} is {types[name]}, and {shown} in {path}: the same value would have "
                    "two texts; write it with one type in all files"
                )


def kind_of(kind: Any) -> str | None:
    """A name shared by all Arrow types that give the same texts; None: the type has no values."""
    from pyarrow import types

    if types.is_null(kind):
        return None
    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if is_list(kind):
        inside = kind_of(kind.value_type)
        return None if inside is None else f"list of {inside}"
    if types.is_integer(kind):
        return "whole number"
    if types.is_decimal(kind):
        return f"decimal of {kind.scale} places"
    if types.is_timestamp(kind):
        return "timestamp with a zone" if kind.tz else "timestamp"
    for name, belongs in (("date", types.is_date), ("time", types.is_time), ("duration", types.is_duration)):
        if belongs(kind):
            return name
    name = str(kind).removeprefix("large_").removesuffix("_view")
    return "string" if name == "binary" or name.startswith("fixed_size_binary") else name
