"""What a row of a log holds, as a user writes it down in ``schema.yaml``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from .base import NAME_PATTERN, Frozen, Name, Problem, Problems, closest
from .fields import (
    AnyField,
    CategoricalField,
    DeclaredIds,
    LibfmField,
    NumericField,
    Space,
    ValueEncoding,
    VocabularySpace,
)
from .formats import DelimitedFormat, Format, Label, LibfmFormat, NegativeSampling
from .reading import read_yaml, validate

LIBFM_COLUMN = "features"


class FieldSpace(NamedTuple):
    """The id space of a field: its name and what fills it (``None`` for a numeric or libfm field: its own rows)."""

    name: str
    space: Any


class FeatureSchema(Frozen):
    """What a row holds and how it becomes ids and values. Frozen; written by hand, read by :meth:`load`.

    Attributes:
        name: what the data set is called.
        format: how the log is written.
        label: what happened; ``None``: the log has no label.
        key: column whose text travels to predictions and rejects; ``None``: ``<file>#<line>``.
        group: column by which the group AUC groups rows.
        weight: column of example weights (numbers ≥ 0).
        negative_sampling: says that negatives were thinned before, or that ``prepare`` is to do it, and how that is
            corrected.
        spaces: id spaces that several fields share, by name.
        fields: the fields, in slot order.
    """

    name: Annotated[str, Field(min_length=1)]
    format: Format
    label: Label | None = None
    key: Name | None = None
    group: Name | None = None
    weight: Name | None = None
    negative_sampling: NegativeSampling | None = None
    spaces: dict[Name, Space] = Field(default_factory=dict)
    fields: Annotated[tuple[AnyField, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: str | Path) -> FeatureSchema:
        """Read and check a schema file.

        Raises:
            UserError: names the file, the key path, the value and the remedy.
        """
        return validate(cls, read_yaml(Path(path)), path)

    @model_validator(mode="after")
    def _check(self) -> FeatureSchema:
        problems = [*_field_names(self), *_spaces(self), *_columns(self), *_libfm(self)]
        if self.negative_sampling and (self.label is None or self.label.kind != "binary"):
            problems.append(Problem(("negative_sampling",), "needs a binary label; remove it"))
        if problems:
            raise Problems(problems)
        if self.label and self.label.kind == "binary" and self.label.negative is None:
            negative = ("-1", "0") if isinstance(self.format, LibfmFormat) else ("0",)
            object.__setattr__(self, "label", self.label.model_copy(update={"negative": negative}))
        return self

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """Columns that the fields read, in schema order, each once: the inputs of a raw row."""
        if isinstance(self.format, LibfmFormat):
            return (LIBFM_COLUMN,)
        return tuple(dict.fromkeys(column_of(field) for field in self.fields))

    def space_of(self, field: CategoricalField | NumericField | LibfmField) -> FieldSpace:
        """The id space that a field's ids come from."""
        if isinstance(field, CategoricalField):
            if field.space is not None:
                return FieldSpace(field.space, self.spaces[field.space])
            return FieldSpace(field.name, field.encoding)
        return FieldSpace(field.name, None)

    def bad_reason(self, field: CategoricalField | NumericField | LibfmField) -> str | None:
        """The reject's reason code for a bad cell of a field; ``None``: no cell of it can be bad."""
        if isinstance(field, NumericField):
            return "bad_number"
        may_be_bad = isinstance(field, LibfmField) or isinstance(self.space_of(field).space, DeclaredIds)
        return "bad_id" if may_be_bad else None

    @property
    def vocabulary_spaces(self) -> dict[str, VocabularySpace]:
        """The vocabularies that the fields use, by name, in order of first use."""
        used = dict(self.space_of(field) for field in self.fields)
        return {name: space for name, space in used.items() if isinstance(space, VocabularySpace)}


def column_of(field: CategoricalField | NumericField | LibfmField) -> str:
    """The raw column that a field reads."""
    if isinstance(field, LibfmField):
        return LIBFM_COLUMN
    return field.column or field.name


def needs_statistics(field: CategoricalField | NumericField | LibfmField) -> bool:
    """Whether a field's encoding is fitted to the train split."""
    if not isinstance(field, NumericField):
        return False
    encoding = field.encoding
    return encoding.standardise if isinstance(encoding, ValueEncoding) else encoding.quantiles is not None


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
    used = {field.space for field in spec.fields if isinstance(field, CategoricalField) and field.space}
    for index, field in enumerate(spec.fields):
        if isinstance(field, CategoricalField) and field.space and field.space not in spec.spaces:
            hint = closest(field.space, list(spec.spaces)) or "; declare it under `spaces`"
            message = f"'{field.space}': there is no such id space{hint}"
            problems.append(Problem(("fields", index, "space"), message))
        elif field.name in spec.spaces and spec.space_of(field).space is not spec.spaces[field.name]:
            message = f"'{field.name}' is also a shared id space; rename one, or use `space: {field.name}`"
            problems.append(Problem(("fields", index, "name"), message))
    for name in spec.spaces:
        if name not in used:
            problems.append(Problem(("spaces", name), f"no field says `space: {name}`; remove it"))
    return problems


def _columns(spec: FeatureSchema) -> list[Problem]:
    if not isinstance(spec.format, DelimitedFormat):
        return []
    problems = []
    log = spec.format
    named: list[tuple[tuple[str | int, ...], str]] = []
    if spec.label:
        named.append((("label", "column"), spec.label.column))
    named += [((key,), text) for key in ("key", "group", "weight") if (text := getattr(spec, key))]
    for index, field in enumerate(spec.fields):
        if not isinstance(field, LibfmField):
            key = "column" if field.column else "name"
            named.append((("fields", index, key), column_of(field)))
    for location, column in named:
        # With a header line a column need not be listed: the reader looks for it among the headers.
        taken = log.header and any(c.header == column and c.name != column for c in log.columns)
        if not log.header and column not in log.names:
            hint = closest(column, log.names) or f" (the columns are {_few(log.names)})"
            problems.append(Problem(location, f"'{column}': the log has no such column{hint}"))
        elif taken and column not in log.names:
            name = next(c.name for c in log.columns if c.header == column)
            problems.append(
                Problem(location, f"'{column}': that header is named '{name}' under format.columns; use it")
            )
    if spec.label:
        for index, field in enumerate(spec.fields):
            if column_of(field) == spec.label.column:
                message = f"reads '{spec.label.column}', the label's column; a label cannot be a feature"
                problems.append(Problem(("fields", index), message))
        if spec.weight == spec.label.column:
            problems.append(Problem(("weight",), f"'{spec.weight}' is the label's column; name another"))
    for index, field in enumerate(spec.fields):
        separator = getattr(field, "separator", None)
        if separator and log.delimiter in separator and not log.quote:
            message = f"{separator!r} holds the log's delimiter, which needs `format.quote: true`"
            problems.append(Problem(("fields", index, "separator"), message))
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


def fits_name(text: str) -> bool:
    """Whether a header text can be a column's name as it is."""
    return re.fullmatch(NAME_PATTERN, text) is not None
