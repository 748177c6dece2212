"""The feature schema, as a user writes it in ``schema.yaml``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from afm_ctr.io.validation import Problem, Problems, Strict, closest, validate
from afm_ctr.io.yaml import read_yaml
from afm_ctr.schema.base import NAME_PATTERN, CellTexts, Name, is_argument
from afm_ctr.schema.fields import (
    LIBFM_COLUMN,
    AnyField,
    CrossField,
    DeclaredIds,
    LibfmField,
    NumericField,
    OneField,
    Space,
    ValueEncoding,
    VocabularySpace,
    WordField,
    column_of,
    columns_of,
    slots_of,
)
from afm_ctr.schema.formats import DelimitedFormat, Format, Label, LibfmFormat, NegativeSampling
from afm_ctr.schema.side import SideTable
from afm_ctr.schema.times import TimeField

_MOST_SLOTS = 1 << 16  # the list of their pairs takes 2 GB; more is a mistake


class FieldSpace(NamedTuple):
    """The id space of a field: its name and its definition (``None``: rows by the field's kind)."""

    name: str
    space: Any


class FeatureSchema(Strict):
    """The columns of a row, and how they become ids and values. Immutable; read by :meth:`load`.

    Attributes:
        name: name of the data set.
        format: format of the log.
        label: the label's column; ``None``: the log has no label.
        key: column whose text identifies rows in predictions and rejects; ``None``: ``<file>#<line>``.
        group: column by which the group AUC groups rows.
        weight: column of example weights (numbers ≥ 0).
        missing_values: texts that count as an empty cell, such as ``["\\N", "NULL", "nan"]``: in every field without
            its own list, in the label, the weight, the group and the keys of side tables. Compared exactly, on every
            path including the signature ``raw``.
        negative_sampling: sampling of negatives, done before or by ``prepare``, and its correction.
        side_tables: tables that add columns, by name.
        spaces: id spaces shared by several fields, by name.
        fields: the fields, in slot order.
    """

    name: Annotated[str, Field(min_length=1)]
    format: Format
    label: Label | None = None
    key: Name | None = None
    group: Name | None = None
    weight: Name | None = None
    missing_values: CellTexts = ()
    negative_sampling: NegativeSampling | None = None
    side_tables: dict[Name, SideTable] = Field(default_factory=dict)
    spaces: dict[Name, Space] = Field(default_factory=dict)
    fields: Annotated[tuple[AnyField, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: str | Path) -> FeatureSchema:
        """Read and check a schema file.

        Raises:
            UserError: the message names the file, the key path, the value and the remedy.
        """
        return validate(cls, read_yaml(Path(path)), path)

    @model_validator(mode="after")
    def _check(self) -> FeatureSchema:
        if problems := _problems(self):
            raise Problems(problems)
        if self.label and self.label.kind == "binary" and self.label.negative is None:
            negative = ("-1", "0") if isinstance(self.format, LibfmFormat) else ("0",)
            object.__setattr__(self, "label", self.label.model_copy(update={"negative": negative}))
        return self

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """Columns that the fields read, in schema order without repeats: the inputs of a raw row."""
        if isinstance(self.format, LibfmFormat):
            return (LIBFM_COLUMN,)
        return tuple(dict.fromkeys(column for field in self.fields for column in columns_of(field)))

    @property
    def joined_columns(self) -> tuple[str, ...]:
        """Columns that the side tables add."""
        return tuple(name for table in self.side_tables.values() for name in table.names)

    @property
    def log_columns(self) -> tuple[str, ...]:
        """Columns of the log needed for the raw columns: those in the log, and the keys of side tables."""
        keys = [table.key.log for table in self.side_tables.values()]
        own = [name for name in self.raw_columns if name not in self.joined_columns]
        return tuple(dict.fromkeys([*own, *keys]))

    def space_of(self, field: OneField) -> FieldSpace:
        """The id space that a field's ids come from."""
        if isinstance(field, WordField):
            if field.space is not None:
                return FieldSpace(field.space, self.spaces[field.space])
            return FieldSpace(field.name, field.encoding)
        return FieldSpace(field.name, None)

    def missing_of(self, field: OneField) -> tuple[bytes, ...]:
        """The texts that count as an empty cell of a field."""
        own = None if isinstance(field, LibfmField) else field.missing_values
        return tuple(text.encode() for text in dict.fromkeys(self.missing_values if own is None else own) if text)

    def bad_reason(self, field: OneField) -> str | None:
        """The reject's reason code for a bad cell of a field; ``None``: its cells cannot be bad."""
        if isinstance(field, NumericField):
            return "bad_number"
        if isinstance(field, TimeField):
            return "bad_time"
        may_be_bad = isinstance(field, LibfmField) or isinstance(self.space_of(field).space, DeclaredIds)
        return "bad_id" if may_be_bad else None

    @property
    def vocabulary_spaces(self) -> dict[str, VocabularySpace]:
        """The vocabularies that the fields use, by name, in order of first use."""
        used = dict(self.space_of(field) for field in self.fields)
        return {name: space for name, space in used.items() if isinstance(space, VocabularySpace)}


def needs_statistics(field: OneField) -> bool:
    """Whether a field's encoding is fitted to the train split."""
    if not isinstance(field, NumericField):
        return False
    encoding = field.encoding
    return encoding.standardise if isinstance(encoding, ValueEncoding) else encoding.quantiles is not None


def fits_name(text: str) -> bool:
    """Whether a header text is a valid column name."""
    return re.fullmatch(NAME_PATTERN, text) is not None and is_argument(text)


def _problems(spec: FeatureSchema) -> list[Problem]:
    """Problems across keys of a schema: names, id spaces, columns, and the rules of libfm logs."""
    problems = [*_names_and_slots(spec), *_spaces(spec), *_columns(spec), *_side_tables(spec), *_libfm(spec)]
    if spec.negative_sampling and (spec.label is None or spec.label.kind != "binary"):
        problems.append(Problem(("negative_sampling",), "needs a binary label; remove it"))
    return problems


def _names_and_slots(spec: FeatureSchema) -> list[Problem]:
    seen: set[str] = set()
    problems = []
    slots = 0
    for index, field in enumerate(spec.fields):
        slots += slots_of(field)
        if slots > _MOST_SLOTS >= slots - slots_of(field):
            message = f"{slots_of(field)}: a row would have {slots} slots; at most {_MOST_SLOTS} are allowed"
            problems.append(Problem(("fields", index, "max_values"), message))
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
            problems.append(Problem(("spaces", name), f"no field has `space: {name}`; remove it"))
    return problems


def _columns(spec: FeatureSchema) -> list[Problem]:
    log = spec.format
    if isinstance(log, LibfmFormat):
        return []
    problems = []
    for location, column in _named_columns(spec):
        # With a header line, columns need not be listed: the reader finds them among the headers.
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
    """The columns of the log that the schema names, with their locations in the schema."""
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
            message = f"'{text}': comes from a side table, but a {key} must be a column of the log; name another"
            problems.append(Problem((key,), message))
    for name, table in spec.side_tables.items():
        here = ("side_tables", name)
        for index, column in enumerate(table.names):
            taken = own.get(column) or (joined.count(column) > 1 and "added twice")
            if taken:
                message = f"'{column}': is {taken}; give it another name under the table's format.columns"
                problems.append(Problem((*here, "columns", index), message))
        if not read & set(table.names):
            problems.append(Problem(here, "no field reads any of its columns; remove it"))
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
            message = f"[{lo}, {hi}]: overlaps the ids of field '{owner}'; ranges must not overlap"
            problems.append(Problem(("fields", index, "ids"), message))
        if hi > end:
            end, owner = hi, name
    return problems


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
