"""What a row of a log holds, as a user writes it down in ``schema.yaml``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from .base import NAME_PATTERN, CellTexts, Frozen, Name, Problems
from .checks import problems_of
from .fields import (
    LIBFM_COLUMN,
    AnyField,
    DeclaredIds,
    LibfmField,
    NumericField,
    OneField,
    Space,
    ValueEncoding,
    VocabularySpace,
    WordField,
    columns_of,
)
from .formats import Format, Label, LibfmFormat, NegativeSampling
from .reading import read_yaml, validate
from .side import SideTable
from .times import TimeField


class FieldSpace(NamedTuple):
    """The id space of a field: its name and what fills it (``None``: rows of its own, by the field's kind)."""

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
        missing_values: texts that count as an empty cell, such as ``["\\N", "NULL", "nan"]``: in every field without
            a list of its own, in the label, the weight, the group and the keys of side tables. Compared exactly, on
            every path, the signature ``raw`` included.
        negative_sampling: says that negatives were thinned before, or that ``prepare`` is to do it, and how that is
            corrected.
        side_tables: tables that bring further columns, by name.
        spaces: id spaces that several fields share, by name.
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
            UserError: names the file, the key path, the value and the remedy.
        """
        return validate(cls, read_yaml(Path(path)), path)

    @model_validator(mode="after")
    def _check(self) -> FeatureSchema:
        if problems := problems_of(self):
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
        return tuple(dict.fromkeys(column for field in self.fields for column in columns_of(field)))

    @property
    def joined_columns(self) -> tuple[str, ...]:
        """Columns that the side tables bring."""
        return tuple(name for table in self.side_tables.values() for name in table.names)

    @property
    def log_columns(self) -> tuple[str, ...]:
        """Columns of the log that the raw columns are made of: those among them, and the keys of side tables."""
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
        """The reject's reason code for a bad cell of a field; ``None``: no cell of it can be bad."""
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
    """Whether a header text can be a column's name as it is."""
    return re.fullmatch(NAME_PATTERN, text) is not None
