"""Checks across the keys of a schema: names, id spaces, columns, and what a libfm log allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Problem, closest
from .fields import CrossField, DeclaredIds, LibfmField, WordField, column_of, columns_of
from .formats import DelimitedFormat, LibfmFormat

if TYPE_CHECKING:
    from .spec import FeatureSchema


def problems_of(spec: FeatureSchema) -> list[Problem]:
    """Everything that is wrong in a schema whose keys are each right by themselves."""
    problems = [*_field_names(spec), *_spaces(spec), *_columns(spec), *_side_tables(spec), *_libfm(spec)]
    if spec.negative_sampling and (spec.label is None or spec.label.kind != "binary"):
        problems.append(Problem(("negative_sampling",), "needs a binary label; remove it"))
    return problems


def _field_names(spec: FeatureSchema) -> list[Problem]:
    seen: set[str] = set()
    problems = []
    for index, field in enumerate(spec.fields):
        if field.name in seen:
            message = f"'{field.name}': an earlier field has this name; choose another (and set `column`)"
            problems.append(Problem(("fields", index, "name"), message))
        seen.add(field.name)
    return problems


def _spaces(spec: FeatureSchema) -> list[Problem]:
    problems = []
    used = {field.space for field in spec.fields if isinstance(field, WordField) and field.space}
    for index, field in enumerate(spec.fields):
        if isinstance(field, WordField) and field.space and field.space not in spec.spaces:
            hint = closest(field.space, list(spec.spaces)) or "; declare it under `spaces`"
            message = f"'{field.space}': there is no such id space{hint}"
            problems.append(Problem(("fields", index, "space"), message))
        elif isinstance(field, CrossField) and isinstance(spec.space_of(field).space, DeclaredIds):
            message = f"'{field.space}': declares ids; a cross takes a hash or a vocabulary"
            problems.append(Problem(("fields", index, "space"), message))
        elif field.name in spec.spaces and spec.space_of(field).space is not spec.spaces[field.name]:
            message = f"'{field.name}' is also a shared id space; rename one, or use `space: {field.name}`"
            problems.append(Problem(("fields", index, "name"), message))
    for name in spec.spaces:
        if name not in used:
            problems.append(Problem(("spaces", name), f"no field says `space: {name}`; remove it"))
    return problems


def _columns(spec: FeatureSchema) -> list[Problem]:
    log = spec.format
    if isinstance(log, LibfmFormat):
        return []
    problems = []
    for location, column in _named_columns(spec):
        # With a header line a column need not be listed: the reader looks for it among the headers.
        listed = isinstance(log, DelimitedFormat) and not log.header
        taken = next((c.name for c in log.columns if c.header == column and c.name != column), None)
        if column in log.names:
            continue
        if listed:
            hint = closest(column, log.names) or f" (the columns are {_few(log.names)})"
            problems.append(Problem(location, f"'{column}': the log has no such column{hint}"))
        elif taken:
            problems.append(
                Problem(location, f"'{column}': that header is named '{taken}' under format.columns; use it")
            )
    if spec.label:
        for index, field in enumerate(spec.fields):
            if spec.label.column in columns_of(field):
                message = f"reads '{spec.label.column}', the label's column; a label cannot be a feature"
                problems.append(Problem(("fields", index), message))
        if spec.weight == spec.label.column:
            problems.append(Problem(("weight",), f"'{spec.weight}' is the label's column; name another"))
    for index, field in enumerate(spec.fields):
        separator = getattr(field, "separator", None)
        if separator and isinstance(log, DelimitedFormat) and log.delimiter in separator and not log.quote:
            message = f"{separator!r} holds the log's delimiter, which needs `format.quote: true`"
            problems.append(Problem(("fields", index, "separator"), message))
    return problems


def _named_columns(spec: FeatureSchema) -> list[tuple[tuple[str | int, ...], str]]:
    """Where the schema names a column of the log, and which."""
    named: list[tuple[tuple[str | int, ...], str]] = []
    if spec.label:
        named.append((("label", "column"), spec.label.column))
    named += [((key,), text) for key in ("key", "group", "weight") if (text := getattr(spec, key))]
    for index, field in enumerate(spec.fields):
        if isinstance(field, CrossField):
            named += [(("fields", index, "columns", place), text) for place, text in enumerate(field.columns)]
        elif not isinstance(field, LibfmField):
            named.append((("fields", index, "column" if field.column else "name"), column_of(field)))
    own = [(location, column) for location, column in named if column not in spec.joined_columns]
    return own + [(("side_tables", name, "key"), table.key.log) for name, table in spec.side_tables.items()]


def _side_tables(spec: FeatureSchema) -> list[Problem]:
    problems = []
    joined = spec.joined_columns
    read = {column for field in spec.fields for column in columns_of(field)}
    own = {} if isinstance(spec.format, LibfmFormat) else dict.fromkeys(spec.format.names, "a column of the log")
    if spec.label:
        own[spec.label.column] = "the label's column"
    for key in ("key", "group", "weight"):
        if (text := getattr(spec, key)) in joined:
            message = f"'{text}': a side table brings it, and a {key} must be the log's own; name another column"
            problems.append(Problem((key,), message))
    for name, table in spec.side_tables.items():
        here = ("side_tables", name)
        for index, column in enumerate(table.names):
            taken = own.get(column) or (joined.count(column) > 1 and "brought twice")
            if taken:
                message = f"'{column}': is {taken}; give it another name under the table's format.columns"
                problems.append(Problem((*here, "columns", index), message))
        if not read & set(table.names):
            problems.append(Problem(here, "no field reads a column that it brings; remove it"))
        if spec.label and table.key.log == spec.label.column:
            problems.append(Problem((*here, "key"), f"'{table.key.log}' is the label's column; join by another"))
    if spec.side_tables and isinstance(spec.format, LibfmFormat):
        problems.append(Problem(("side_tables",), "a libfm line has no columns to join by; remove it"))
    return problems


def _libfm(spec: FeatureSchema) -> list[Problem]:
    problems = []
    is_libfm = isinstance(spec.format, LibfmFormat)
    for index, field in enumerate(spec.fields):
        if is_libfm and not isinstance(field, LibfmField):
            message = f"'{field.kind}': a libfm log has fields of kind 'libfm' only"
            problems.append(Problem(("fields", index, "kind"), message))
        elif not is_libfm and isinstance(field, LibfmField):
            problems.append(Problem(("fields", index, "kind"), "'libfm': needs `format: {kind: libfm}`"))
    if not is_libfm:
        return problems
    for key in ("key", "group", "weight"):
        if text := getattr(spec, key):
            problems.append(Problem((key,), f"'{text}': a libfm line has no columns; remove it"))
    if spec.missing_values:
        problems.append(Problem(("missing_values",), "a libfm line leaves out what is missing; remove it"))
    if spec.label and spec.label.column != "label":
        problems.append(Problem(("label", "column"), f"'{spec.label.column}': a libfm label is the column 'label'"))
    owners = sorted((f.ids, i, f.name) for i, f in enumerate(spec.fields) if isinstance(f, LibfmField))
    end, owner = 0, ""
    for (lo, hi), index, name in owners:
        if lo < end:
            message = f"[{lo}, {hi}]: meets the ids of field '{owner}'; ranges must not overlap"
            problems.append(Problem(("fields", index, "ids"), message))
        if hi > end:
            end, owner = hi, name
    return problems


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
