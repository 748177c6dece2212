"""Log formats (delimited or libfm text, JSON Lines, Parquet), their columns, and the label."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from afm_ctr.io.validation import Problem, Problems, Strict
from afm_ctr.schema.base import Count, Name, NamedEntry, cell_texts

MAX_LINE_BYTES = 1 << 20


class Column(NamedEntry):
    """A column of a log.

    Attributes:
        name: the column's name in the schema and in the serving signature.
        header: the column's name in the log if it differs: its text in the header line, its key in a JSON object,
            its name in a Parquet file. In the latter two ``a.b`` is ``b`` inside the object or struct ``a``, unless a
            key or column is literally called ``a.b``.
    """

    header: str | None = None


class _NamedColumns(Strict):
    """Columns by name, in all formats except libfm.

    Attributes:
        columns: names for the log's columns; unlisted columns keep the log's names. A plain name stands for
            ``{name: …}``.
    """

    columns: tuple[Column, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The listed columns' names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def listed_alone(self) -> bool:
        """Whether the log has the listed columns and no others."""
        return False

    @model_validator(mode="after")
    def _check_columns(self) -> _NamedColumns:
        problems = []
        if self.listed_alone and not self.columns:
            problems.append(Problem(("columns",), "must list every column in file order when `header` is false"))
        names: set[str] = set()
        headers: set[str] = set()
        for index, column in enumerate(self.columns):
            here = ("columns", index)
            if column.name in names:
                problems.append(Problem((*here, "name"), f"'{column.name}' is listed twice; give it another name"))
            if self.listed_alone and column.header is not None:
                problems.append(Problem((*here, "header"), "there is no header line (`header: false`); remove it"))
            elif (text := column.header or column.name) in headers:
                problems.append(Problem((*here, "header"), f"the header '{text}' is listed twice; keep one"))
            names.add(column.name)
            headers.add(column.header or column.name)
        if problems:
            raise Problems(problems)
        return self


class _Lines(Strict):
    """Text, one row per line.

    Attributes:
        max_line_bytes: maximum length of a line, without its line end; longer lines are rejected, and never held
            in memory as a whole.
    """

    max_line_bytes: Count = MAX_LINE_BYTES


class DelimitedFormat(_NamedColumns, _Lines):
    """Delimited text: one row per line, with or without a header line.

    Attributes:
        delimiter: the single character between cells.
        header: whether the first line of every file names its columns.
        quote: whether a cell may be enclosed in double quotes (``""`` inside is one quote).
        trim: whether to strip blanks from both ends of cells and header texts, also inside quotes: ``a, "b, c"``
            is two cells.
        columns: without a header line: every column, in file order. With one: names for header texts; an unlisted
            header text that is a valid name can be used directly.
    """

    kind: Literal["delimited"]
    delimiter: str = ","
    header: bool = Field(default=True, strict=True)
    quote: bool = Field(default=True, strict=True)
    trim: bool = Field(default=False, strict=True)

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, text: str) -> str:
        if len(text) != 1 or not text.isascii() or text in '\r\n"':
            raise ValueError('must be one ASCII character such as "," or "\\t"')
        return text

    @model_validator(mode="after")
    def _check_trim(self) -> DelimitedFormat:
        if self.trim and self.delimiter == " ":
            raise Problems([Problem(("trim",), "strips blanks, and the delimiter is one; remove it")])
        return self

    @property
    def listed_alone(self) -> bool:
        """True without a header line."""
        return not self.header


class LibfmFormat(_Lines):
    """libsvm / libfm text: ``label id:value id:value …``; the columns are ``label`` and ``features``."""

    kind: Literal["libfm"]


class _Typed(_NamedColumns):
    """Formats with typed cells; the cells become the texts that a delimited log would have.

    Attributes:
        list_separator: text between the elements of a list. A row is rejected (``bad_list``) if an element contains
            it, or contains the ``separator`` of a field that reads the column.
    """

    list_separator: Annotated[str, Field(min_length=1)] = "|"


class JsonlFormat(_Typed, _Lines):
    """JSON Lines: one object per line.

    A string becomes its text, an integer its digits, another number the shortest text of the same float (``1.1``
    for 1.10), ``true`` and ``false`` those words; ``null``, ``NaN`` and an absent key are missing; a list becomes
    its elements joined by ``list_separator``. The whole table: docs/cells.md.
    """

    kind: Literal["jsonl"]


class ParquetFormat(_Typed):
    """Apache Parquet; only the columns that the schema uses are read.

    Integers become their digits, floats the shortest text of the same number (``2.0``, ``1e-07``), booleans ``true``
    and ``false``, dates and times ISO 8601 (in UTC if they have a zone); null and NaN are missing; a list becomes
    its elements joined by ``list_separator``. The whole table: docs/cells.md.
    """

    kind: Literal["parquet"]


Format = Annotated[DelimitedFormat | LibfmFormat | JsonlFormat | ParquetFormat, Field(discriminator="kind")]


def _texts(value: Any) -> Any:
    if not value:
        raise ValueError("must be a list of cell texts with at least one entry")
    return cell_texts(value)


def _negative_texts(value: Any) -> Any:
    return value if value is None or value == "*" else _texts(value)


class Label(Strict):
    """The label's column.

    Attributes:
        column: its name (libfm: always ``label``).
        kind: ``binary`` is stored as 0 or 1; ``real`` is parsed as a number.
        positive: the texts that mean 1; default ``["1"]``.
        negative: the texts that mean 0, or ``"*"`` for every other text. If neither list is given: ``["0"]``
            (libfm: ``["-1", "0"]``). Any other text is a bad label.
    """

    column: Name = "label"
    kind: Literal["binary", "real"] = "binary"
    positive: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ("1",)
    negative: Annotated[tuple[str, ...] | Literal["*"] | None, BeforeValidator(_negative_texts)] = None

    @model_validator(mode="after")
    def _check_lists(self) -> Label:
        if self.kind == "real":
            given = sorted(self.model_fields_set & {"positive", "negative"})
            if given:
                raise Problems(
                    [Problem((key,), "belongs to a binary label; remove it or set `kind: binary`") for key in given]
                )
        elif self.negative is None and self.positive != ("1",):
            raise Problems([Problem(("negative",), 'must be given with `positive`; "*" means every other text')])
        elif isinstance(self.negative, tuple) and (both := sorted(set(self.negative) & set(self.positive))):
            raise Problems([Problem(("negative",), f"{both[0]!r} is positive too; keep it in one list")])
        return self


class NegativeSampling(Strict):
    """Sampling of negatives, and its correction.

    Attributes:
        rate: share of negatives kept, in (0, 1].
        correct: ``weights`` trains negatives with weight 1/rate; ``logit`` adds ln(rate) to the exported bias.
        apply: ``already``: the log was sampled before, in all its splits. ``here``: ``prepare`` samples the split
            ``train`` only, by a hash of the record's key; rows of one key are kept or dropped together.
    """

    rate: Annotated[float, Field(gt=0, le=1)]
    correct: Literal["weights", "logit"]
    apply: Literal["already", "here"] = "already"
