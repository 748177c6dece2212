"""Kinds of fields: how a cell becomes ids and values."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from afm_ctr.io.validation import Problem, Problems, Strict
from afm_ctr.schema.base import CellTexts, Count, Name
from afm_ctr.schema.times import TimeField

LIBFM_COLUMN = "features"
CROSS_SEPARATOR = b"\x1f"


class HashSpace(Strict):
    """Local id = Fingerprint64(raw bytes) mod ``buckets``: no analysis, but distinct values may collide.

    With a key the hash is SipHash-2-4: without the key, ids cannot be reversed by hashing guessed values.

    Attributes:
        buckets: number of ids.
        key_file: absolute path of a file with the key, 32 hexadecimal digits. It is read wherever rows are encoded:
            by ``prepare`` and its workers, ``predict`` and ``export``. Data sets and runs hold its path and a digest
            to recognise the key, but not the key; the graph of an exported model holds the key, since its signature
            ``raw`` hashes. docs/cells.md lists what else holds raw values.
    """

    kind: Literal["hash"]
    buckets: Count
    key_file: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("key_file")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        if path is not None and not path.startswith("/"):
            raise ValueError("must be an absolute path: other commands read the key from other folders")
        return path


class VocabularySpace(Strict):
    """Each value seen in training gets a row; all others share the out-of-vocabulary rows.

    Attributes:
        min_count: values seen less often in the train split get no row.
        top: maximum number of values, the most frequent first; ties in order of their bytes.
        oov: number of out-of-vocabulary rows; unknown values are spread over them by Fingerprint64.
        capacity: rows reserved for values, with room for later ones; ``None``: as many as there are values now.
    """

    kind: Literal["vocabulary"]
    min_count: Count = 1
    top: Count | None = None
    oov: Count = 1
    capacity: Count | None = None


class DeclaredIds(Strict):
    """The cell is the local id: an integer in [0, ``size``).

    Attributes:
        size: number of ids.
    """

    kind: Literal["ids"]
    size: Count


Space = Annotated[HashSpace | VocabularySpace | DeclaredIds, Field(discriminator="kind")]


class CategoricalField(Strict):
    """A cell with one or several categorical values.

    Attributes:
        name: the field's name; its slots are named after it.
        column: the column to read; ``None``: the column of the same name.
        encoding: the field's own id space, or
        space: the name of a shared one.
        max_values: number of slots; further values of a cell are dropped, and prepare counts them.
        keep: which values to keep if a cell has more: the ``first`` (a history that begins with the newest) or the
            ``last`` (one that ends with it).
        separator: text between values; without it the whole cell is one value. Empty pieces are dropped, repeated
            ones kept; white space is kept (except around declared ids, ASCII only).
        value: the value of each of n kept ids: ``mean`` is 1/n, ``one`` is 1.
        within_field_pairs: whether the field's slots form pairs with one another.
        missing: empty and bad cells: ``absent`` leaves the slots empty, ``own`` gives them an id of their own.
        missing_values: texts that count as an empty cell, and as an empty piece of one; compared exactly. ``None``:
            the schema's ``missing_values``.
    """

    kind: Literal["categorical"]
    name: Name
    column: Name | None = None
    encoding: Space | None = None
    space: Name | None = None
    max_values: Count = 1
    keep: Literal["first", "last"] = "first"
    separator: Annotated[str, Field(min_length=1)] | None = None
    value: Literal["mean", "one"] = "mean"
    within_field_pairs: bool = Field(default=True, strict=True)
    missing: Literal["absent", "own"] = "absent"
    missing_values: CellTexts | None = None

    @model_validator(mode="after")
    def _check(self) -> CategoricalField:
        problems = _one_space(self)
        if self.max_values > 1 and self.separator is None:
            problems.append(Problem(("max_values",), f"{self.max_values} values need a `separator` between them"))
        if self.keep != "first" and self.separator is None:
            problems.append(Problem(("keep",), "a cell without a `separator` is one value; give one or remove it"))
        if problems:
            raise Problems(problems)
        return self


class CrossField(Strict):
    """Several cells of a row combined into one value: their texts, joined by the byte 0x1F.

    Attributes:
        name: the field's name.
        columns: the columns, at least two. A row in which any of them is empty has no value.
        encoding: the field's own id space, a hash or a vocabulary of joined texts, or
        space: the name of a shared one.
        missing: rows without a value: ``absent`` leaves the slot empty, ``own`` gives it an id of its own.
        missing_values: texts that count as an empty cell; compared exactly. ``None``: the schema's
            ``missing_values``.
    """

    kind: Literal["cross"]
    name: Name
    columns: Annotated[tuple[Name, ...], Field(min_length=2)]
    encoding: Annotated[HashSpace | VocabularySpace, Field(discriminator="kind")] | None = None
    space: Name | None = None
    missing: Literal["absent", "own"] = "absent"
    missing_values: CellTexts | None = None

    max_values: ClassVar[int] = 1
    separator: ClassVar[None] = None

    @model_validator(mode="after")
    def _check(self) -> CrossField:
        problems = _one_space(self)
        repeated = next((name for name in self.columns if self.columns.count(name) > 1), None)
        if repeated:
            problems.append(Problem(("columns",), f"'{repeated}' is listed twice; name each column once"))
        if problems:
            raise Problems(problems)
        return self


def _one_space(field: CategoricalField | CrossField) -> list[Problem]:
    if field.encoding is None and field.space is None:
        return [Problem(("encoding",), "is missing; give it, or `space`, the name of a shared id space")]
    if field.encoding is not None and field.space is not None:
        return [Problem(("space",), "must not be given with `encoding`; keep one of the two")]
    return []


class ValueEncoding(Strict):
    """One id; the number is the slot's value.

    Attributes:
        log: take sign(x)·ln(1 + |x|).
        standardise: then subtract the mean and divide by the standard deviation of the train split.
    """

    kind: Literal["value"]
    log: bool = Field(default=False, strict=True)
    standardise: bool = Field(default=False, strict=True)


class BucketEncoding(Strict):
    """One id per bucket, value 1: bucket = the number of boundaries ≤ x. Give exactly one of the three.

    Attributes:
        quantiles: number of buckets of about equal share in the train split.
        boundaries: strictly increasing numbers.
        log_square: the list of :func:`afm_ctr.schema.log_square_boundaries`.
    """

    kind: Literal["buckets"]
    quantiles: Annotated[int, Field(strict=True, ge=2)] | None = None
    boundaries: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    log_square: Literal[True] | None = None

    @field_validator("boundaries")
    @classmethod
    def _increasing(cls, numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if numbers and any(right <= left for left, right in itertools.pairwise(numbers)):
            raise ValueError("must be strictly increasing")
        return numbers

    @model_validator(mode="after")
    def _one_of_three(self) -> BucketEncoding:
        if sum(choice is not None for choice in (self.quantiles, self.boundaries, self.log_square)) != 1:
            raise ValueError("give exactly one of `quantiles`, `boundaries`, `log_square: true`")
        return self


class MissingValue(Strict):
    """A missing number is replaced by ``value`` (before log and standardising).

    Attributes:
        value: the number.
    """

    value: float


def _missing_form(data: Any) -> str:
    # In angle brackets, so that no tag is mistaken for a key of the file.
    return "<value>" if isinstance(data, (dict, MissingValue)) else "<policy>"


NumericMissing = Annotated[
    Annotated[Literal["absent", "own"], Tag("<policy>")] | Annotated[MissingValue, Tag("<value>")],
    Discriminator(_missing_form),
]


class NumericField(Strict):
    """A cell that is a number: decimal text, parsed to float64.

    White space around it is ignored. Anything else (hexadecimal, ``nan``, ``1_000``) is bad, and so is a number
    out of float64's range, or a value out of float32's. ``prepare`` rejects a row with a bad cell (``bad_number``);
    ``predict`` and a served model treat the cell as missing and count it in ``bad_cells``. List texts that mean a
    missing number in ``missing_values``.

    Attributes:
        name: the field's name.
        column: the column to read; ``None``: the column of the same name.
        encoding: how the number becomes an id and a value.
        missing: ``absent``, ``own``, or for the value encoding also ``{value: x}``. A present 0 is never missing.
        missing_values: texts that count as an empty cell; compared exactly. ``None``: the schema's
            ``missing_values``.
    """

    kind: Literal["numeric"]
    name: Name
    column: Name | None = None
    encoding: Annotated[ValueEncoding | BucketEncoding, Field(discriminator="kind")]
    missing: NumericMissing = "absent"
    missing_values: CellTexts | None = None

    max_values: ClassVar[int] = 1

    @model_validator(mode="after")
    def _check(self) -> NumericField:
        if isinstance(self.missing, MissingValue) and not isinstance(self.encoding, ValueEncoding):
            message = "a number for missing cells needs `encoding: {kind: value}`; give absent or own"
            raise Problems([Problem(("missing",), message)])
        return self


class LibfmField(Strict):
    """The entries of a libfm line with ids in [lo, hi).

    The file's values are the slots' values; entries of value 0 are absent.

    Attributes:
        name: the field's name; its slots are named after it.
        ids: (lo, hi), in the file's numbering.
        max_values: number of slots; more entries make the field bad.
        within_field_pairs: whether the field's slots form pairs with one another.
        missing: no entry, or a bad one: ``absent`` leaves the slots empty, ``own`` gives them an id of their own.
    """

    kind: Literal["libfm"]
    name: Name
    ids: tuple[Annotated[int, Field(strict=True, ge=0)], Count]
    max_values: Count = 1
    within_field_pairs: bool = Field(default=True, strict=True)
    missing: Literal["absent", "own"] = "absent"

    @field_validator("ids")
    @classmethod
    def _not_empty(cls, ids: tuple[int, int]) -> tuple[int, int]:
        if ids[0] >= ids[1]:
            raise ValueError("must be [lo, hi) with lo < hi")
        return ids


OneField = CategoricalField | CrossField | NumericField | TimeField | LibfmField
WordField = CategoricalField | CrossField  # fields whose cells name something in an id space
AnyField = Annotated[OneField, Field(discriminator="kind")]


def slots_of(field: OneField) -> int:
    """The number of a field's slots."""
    return field.max_values


def columns_of(field: OneField) -> tuple[str, ...]:
    """The raw columns that a field reads."""
    return field.columns if isinstance(field, CrossField) else (column_of(field),)


def column_of(field: CategoricalField | NumericField | TimeField | LibfmField) -> str:
    """The raw column of a field that reads only one."""
    if isinstance(field, LibfmField):
        return LIBFM_COLUMN
    return field.column or field.name
