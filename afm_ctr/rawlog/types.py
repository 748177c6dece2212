"""One type of a column in all files: of another type, the same value may have another text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from afm_ctr.errors import UserError
from afm_ctr.schema import FeatureSchema, WordField, columns_of


def word_columns(spec: FeatureSchema) -> set[str]:
    """The columns whose texts are compared or hashed: those of categorical fields and crosses, the key, the group and
    the keys of side tables. 5 and 5.0 would be two words there; numbers and times are parsed."""
    words = [name for field in spec.fields if isinstance(field, WordField) for name in columns_of(field)]
    keys = [table.key.log for table in spec.side_tables.values()]
    return {name for name in (*words, *keys, spec.key, spec.group) if name}


class ColumnTypes:
    """Holds the types of Parquet files against each other, file by file.

    Args:
        columns: which to check: see :func:`word_columns`.
    """

    def __init__(self, columns: Iterable[str]) -> None:
        self._checked = set(columns)
        self._first: dict[str, tuple[str, str, str]] = {}

    def add(self, types: Mapping[str, Any], source: str) -> None:
        """Hold the columns of a file against those of the files before it.

        Args:
            types: its Arrow types, by the schema's names of the columns.
            source: the file, for messages.

        Raises:
            UserError: a column has another type than in an earlier file; names both.
        """
        for name in sorted(self._checked & types.keys()):
            kind = kind_of(types[name])
            if kind is None:
                continue
            first, shown, path = self._first.setdefault(name, (kind, str(types[name]), source))
            if kind != first:
                raise UserError(
                    f"{source}: column {name!r} is {types[name]}, and {shown} in {path}: the same value would have "
                    "two texts; write it with one type in all files"
                )


def kind_of(kind: Any) -> str | None:
    """What an Arrow type has in common with others whose values have the same texts; None: it holds no values."""
    from pyarrow import types

    if types.is_null(kind):
        return None
    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
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
