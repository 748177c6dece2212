"""Side tables: columns that a log does not have itself, found in another table by a key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from afm_ctr.io.validation import Problem, Problems, Strict
from afm_ctr.schema.base import Name, NamedEntry
from afm_ctr.schema.formats import DelimitedFormat, JsonlFormat, ParquetFormat

FLAG_SEPARATOR = "|"


class JoinKey(Strict):
    """What rows are joined by; a plain name is a column of that name on both sides.

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
    """A column that the table brings.

    Attributes:
        name: what fields and the serving signature call it; without ``flags`` also its name in the table.
        flags: columns of the table that hold 0 or 1: the cell is the names of those that are 1, with ``|`` between
            them: a multi-valued cell.
    """

    flags: tuple[Name, ...] = ()


class SideTable(Strict):
    """A table whose rows are joined to the log's: at most one row of it for every key. No match: missing cells.

    Attributes:
        input: path or glob of its files; a relative one begins at the schema file's folder.
        format: how they are written; they have no label.
        encoding: of text files.
        key: the columns that must agree.
        columns: what it brings.
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
        """The raw columns that it brings."""
        return tuple(column.name for column in self.columns)

    @property
    def table_columns(self) -> tuple[str, ...]:
        """The columns that are read from it, the key's first."""
        read = [name for column in self.columns for name in column.flags or (column.name,)]
        return tuple(dict.fromkeys([self.key.table, *read]))
