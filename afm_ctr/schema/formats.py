"""How a log is written: delimited or libfm text, JSON Lines or Parquet; its columns, its label."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from afm_ctr.io.validation import Problem, Problems, Strict
from afm_ctr.schema.base import Count, Name, NamedEntry, cell_texts

MAX_LINE_BYTES = 1 << 20


class Column(NamedEntry):
    """A column of a log.

    Attributes:
        name: what the schema and the serving signature call it.
        header: what the log calls it, when that is not the name itself: its text in the header line, its key in a
            JSON object, its name in a Parquet file. In the latter two ``a.b`` reaches into an object or struct
            ``a``, where no key or column is called ``a.b`` as it stands.
    """

    header: str | None = None


class _NamedColumns(Strict):
    """Columns by name: what all formats but libfm have in common.

    Attributes:
        columns: names for what the log calls its columns; one that is not listed is called what the log calls it.
            A plain name stands for ``{name: …}``.
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
    """Text, one row a line.

    Attributes:
        max_line_bytes: longest line that is read, without its end; a longer one is a reject, and is never held in
            memory as a whole.
    """

    max_line_bytes: Count = MAX_LINE_BYTES


class DelimitedFormat(_NamedColumns, _Lines):
    """Delimited text: one row a line, with or without a header line.

    Attributes:
        delimiter: the one character between cells.
        header: whether the first line of every file names its columns.
        quote: whether a cell may be wrapped in double quotes (``""`` inside is one quote).
        trim: whether blanks at either end of a cell and of a header text are dropped: ``a, "b, c"`` is two
            cells. Inside quotes too.
        columns: without a header line: every column, in file order. With one: names for header texts; a header
            text that is not listed and is itself a fit name can be used as it is.
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
            raise Problems([Problem(("trim",), "drops blanks, and the delimiter is one; remove it")])
        return self

    @property
    def listed_alone(self) -> bool:
        """Without a header line they are."""
        return not self.header


class LibfmFormat(_Lines):
    """libsvm / libfm text: ``label id:value id:value …``; the columns are ``label`` and ``features``."""

    kind: Literal["libfm"]


class _Typed(_NamedColumns):
    """Formats whose cells have types: they become the texts that a delimited log would have.

    Attributes:
        list_separator: what stands between the cells of a list. A row whose list has an element that holds it, or
            that holds the ``separator`` of a field that reads the column, is rejected (``bad_list``).
    """

    list_separator: Annotated[str, Field(min_length=1)] = "|"


class JsonlFormat(_Typed, _Lines):
    """JSON Lines: one object a line.

    A string is its text, a whole number its digits, another number the shortest text that is the same float (``1.1``
    for 1.10), ``true`` and ``false`` are those words, ``null``, ``NaN`` and a key that is not there are missing, a
    list of those is its cells with ``list_separator`` between them. The whole table: docs/cells.md.
    """

    kind: Literal["jsonl"]


class ParquetFormat(_Typed):
    """Apache Parquet: the columns that the schema reads, and no others, are read.

    Whole numbers become their digits, floating-point ones the shortest text that is the same number (``2.0``,
    ``1e-07``), booleans ``true`` and ``false``, dates and times ISO 8601 (UTC where they have a zone), null and NaN
    are missing, a list of those is its cells with ``list_separator`` between them. The whole table: docs/cells.md.
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
    """The column that says what happened.

    Attributes:
        column: its name (libfm: always ``label``).
        kind: ``binary`` is stored 0 or 1; ``real`` is parsed as a number.
        positive: the texts that mean 1; ``["1"]`` when not given.
        negative: the texts that mean 0, or ``"*"`` for every other text. When neither list is given: ``["0"]``
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
                    [Problem((key,), "belongs to a binary label; remove it or say `kind: binary`") for key in given]
                )
        elif self.negative is None and self.positive != ("1",):
            raise Problems([Problem(("negative",), 'must be given with `positive`; "*" means every other text')])
        elif isinstance(self.negative, tuple) and (both := sorted(set(self.negative) & set(self.positive))):
            raise Problems([Problem(("negative",), f"{both[0]!r} is positive too; keep it in one list")])
        return self


class NegativeSampling(Strict):
    """Says that only a share ``rate`` of the negatives is trained on, and how that is corrected.

    Attributes:
        rate: share of negatives kept, in (0, 1].
        correct: ``weights`` trains negatives with weight 1/rate; ``logit`` adds ln(rate) to the exported bias.
        apply: ``already``: the log was thinned before, in all its splits. ``here``: ``prepare`` thins the split
            ``train``, and no other, by a hash of the record's key; rows of one key stay or go together.
    """

    rate: Annotated[float, Field(gt=0, le=1)]
    correct: Literal["weights", "logit"]
    apply: Literal["already", "here"] = "already"
