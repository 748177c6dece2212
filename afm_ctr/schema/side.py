"""Side tables: columns that are joined to the log from another table by a key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from afm_ctr.io.validation import Problem, Problems, Strict
from afm_ctr.schema.base import Name, NamedEntry
from afm_ctr.schema.formats import DelimitedFormat, JsonlFormat, ParquetFormat

FLAG_SEPARATOR = "|"


class JoinKey(Strict):
    """The columns to join by; a plain name is a column of that name on both sides.

    Attributes:
        log: the log's column.
        table: the table's column.
    """

    log: Name
    table: Name

    @model_validator(mode="before")
    @classmethod
    def _accept_plain_name(cls, data: Any) -> Any:
        return {"log": data, "table": data} if isinstance(data, str) else data


class JoinedColumn(NamedEntry):
    """A column that the table adds.

    Attributes:
        name: its name in fields and in the serving signature; without ``flags`` also its name in the table.
        flags: columns of the table with 0 or 1: the cell is the names of those with 1, joined by ``|`` (a
            multi-valued cell).
    """

    flags: tuple[Name, ...] = ()


class SideTable(Strict):
    """A table joined to the log, with at most one row per key. Log rows without a match get missing cells.

    Attributes:
        input: path or glob of its files, relative to the schema file's folder.
        format: the files' format; they have no label.
        encoding: encoding of text files.
        key: the columns to join by.
        columns: the columns to add.
    """

    input: Annotated[str, Field(min_length=1)]
    format: Annotated[DelimitedFormat | JsonlFormat | ParquetFormat, Field(discriminator="kind")]
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    key: JoinKey
    columns: Annotated[tuple[JoinedColumn, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> SideTable:
        problems = []
        if self.encoding != "utf-8" and isinstance(self.format, ParquetFormat):
            problems.append(Problem(("encoding",), "a Parquet file has texts of its own encoding; remove it"))
        if isinstance(self.format, DelimitedFormat) and not self.format.header:
            named: list[tuple[tuple[str | int, ...], str]] = [(("key",), self.key.table)]
            for index, column in enumerate(self.columns):
                named += [(("columns", index), text) for text in column.flags or (column.name,)]
            for location, text in named:
                if text not in self.format.names:
                    problems.append(Problem(location, f"'{text}': the table has no such column under format.columns"))
        if problems:
            raise Problems(problems)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The raw columns that it adds."""
        return tuple(column.name for column in self.columns)

    @property
    def table_columns(self) -> tuple[str, ...]:
        """The columns to read from the table, the key's first."""
        read = [name for column in self.columns for name in column.flags or (column.name,)]
        return tuple(dict.fromkeys([self.key.table, *read]))
