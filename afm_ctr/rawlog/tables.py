"""Parquet logs: rows, read in batches and converted to cells one column at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, BinaryIO, overload

from afm_ctr.errors import UserError
from afm_ctr.rawlog.arrow_texts import (
    EXTENSIONS,
    ArrowTexts,
    is_utf8_array,
    load_arrow,
    nested_kind,
    objects,
    plain_schema,
    plain_table,
)
from afm_ctr.rawlog.codecs import BLOCK, PARQUET_MAGIC
from afm_ctr.rawlog.layout import TWICE, require
from afm_ctr.rawlog.tokenizers import Cells, Reasons, is_utf8, list_separators
from afm_ctr.schema import FeatureSchema, ParquetFormat

_READ_ROWS = 4096
_ADVICE = {"a map": ", which has no columns", "a struct": "; name what is in it: `header: a.b`"}


class RowBatch(Sequence[bytes]):
    """Rows of a table in place of lines; each item is a row as a JSON object of the columns read.

    Attributes:
        table: the rows, a ``pyarrow.Table``.
    """

    def __init__(self, table: Any) -> None:
        self.table = plain_table(table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> RowBatch: ...
    def __getitem__(self, at: int | slice) -> bytes | RowBatch:
        if isinstance(at, slice):
            return self.pick(range(*at.indices(len(self))))
        row = {name: _plain(self.table.column(i)[at]) for i, name in enumerate(self.table.column_names)}
        return json.dumps(row, default=str, ensure_ascii=False).encode("utf-8")

    def pick(self, rows: Sequence[int]) -> RowBatch:
        """Select rows by index."""
        return RowBatch(self.table.take(load_arrow().array(rows, load_arrow().int64())))


def _plain(scalar: Any) -> Any:
    try:
        value = scalar.as_py()
    except UnicodeDecodeError:
        value = scalar.cast(load_arrow().binary()).as_py()
    except ValueError:  # a timestamp with nanoseconds, which Python's datetime cannot hold
        value = str(scalar.cast(load_arrow().string()))
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


class ParquetLog:
    """An open Parquet file.

    Args:
        stream: the content; must stay open.

    Attributes:
        groups: number of rows of each row group.

    Raises:
        UserError: it is not a Parquet file, or is damaged.
    """

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._path = path
        arrow = load_arrow()
        if stream.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC:
            raise UserError(f"{path} is not a Parquet file; say in the schema how it is written (format.kind)")
        stream.seek(0)
        try:
            self._file = arrow.parquet.ParquetFile(stream, buffer_size=BLOCK)
        except (arrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: a broken Parquet file ({_said(error)}); repair it or leave it out") from error
        metadata = self._file.metadata
        self.groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    @property
    def schema(self) -> Any:
        """The columns and their types, a ``pyarrow.Schema``."""
        return plain_schema(self._file.schema_arrow)

    @cached_property
    def header(self) -> bytes:
        """The serialised schema, for :class:`TableCutter`."""
        return self.schema.serialize().to_pybytes()

    def rows(self, columns: Sequence[str], first_group: int = 0) -> TableStream:
        """The rows from a row group on, with the given columns."""
        return TableStream(self._batches(columns, first_group))

    def _batches(self, columns: Sequence[str], first_group: int) -> Iterator[Any]:
        arrow = load_arrow()
        for group in range(first_group, len(self.groups)):
            try:
                yield from self._file.iter_batches(_READ_ROWS, [group], list(columns), use_threads=False)
            except (arrow.ArrowException, OSError) as error:
                where = f"{self._path}: row group {group}"
                raise UserError(
                    f"{where} cannot be read ({_said(error)}); repair the file or leave it out"
                ) from error


class TableStream:
    """Rows out of batches, any number at a time; the counterpart of :class:`LineStream`."""

    broken = None

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._rest: Any = None  # of the current batch

    def take(self, count: int) -> RowBatch | list[bytes]:
        """Take up to ``count`` rows; fewer only at the end."""
        parts = list(self._parts(count))
        return RowBatch(load_arrow().Table.from_batches(parts).combine_chunks()) if parts else []

    def skip(self, count: int) -> int:
        """Skip up to ``count`` rows; returns the number skipped."""
        return sum(part.num_rows for part in self._parts(count))

    def _parts(self, count: int) -> Iterator[Any]:
        left = count
        while left:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            self._rest = None
            if batch is None:
                return
            if batch.num_rows > left:
                batch, self._rest = batch.slice(0, left), batch.slice(left)
            left -= batch.num_rows
            yield batch


class TableCutter:
    """Converts columns of a table into cells.

    Args:
        header: the file's columns and types: :attr:`ParquetLog.header`.

    Attributes:
        reads: names of the columns in the file.
        types: their Arrow types, by the schema's names.

    Raises:
        UserError: a wanted column is missing, occurs twice, or has a type whose values cannot be cells.
    """

    def __init__(self, spec: FeatureSchema, header: bytes, wanted: Sequence[str], source: str) -> None:
        assert isinstance(spec.format, ParquetFormat)
        self._arrow = load_arrow()
        schema = self._arrow.ipc.read_schema(self._arrow.py_buffer(header))
        headers = {column.name: column.header or column.name for column in spec.format.columns}
        texts = {name: headers.get(name, name) for name in wanted}
        names = {text: name for name, text in headers.items()}
        places = {
            names.get(text, text): i for i, text in enumerate(schema.names) if text in names or text not in headers
        }
        self._paths: dict[str, tuple[str, ...]] = {}
        self.types: dict[str, Any] = {}
        for name, text in texts.items():
            path = (text,) if text in schema.names else tuple(text.split("."))
            if (kind := _type_at(schema, path)) is not None:
                self.types[name] = kind
                places[name] = TWICE if schema.names.count(path[0]) > 1 else places.get(name, len(places))
                if why := self._no_cell(kind):
                    raise UserError(f"{source or 'the log'}: column {name!r} is {why}")
            self._paths[name] = path
        require(places, wanted, source)
        self.reads = sorted({".".join(path) for path in self._paths.values()})
        separators = {name: list_separators(spec, name) for name in wanted}
        self._texts = ArrowTexts(spec.format.list_separator, separators)

    def check(self, lines: Sequence[bytes], bad: Reasons) -> bytes:
        """Rows of a table need no check."""
        return b""

    def cut(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> Cells:
        """The wanted columns, object arrays of bytes; rows with text that is not UTF-8 are added to ``bad``."""
        if not isinstance(lines, RowBatch):
            return {name: () for name in self._paths}
        cells: Cells = {}
        for name, (first, *rest) in self._paths.items():
            column = lines.table.column(first).combine_chunks()
            column = self._arrow.compute.struct_field(column, rest) if rest else column
            texts = self._texts.of(name, column, bad)
            if not is_utf8_array(texts):
                for i, cell in enumerate(texts.to_pylist()):
                    if not is_utf8(cell):
                        bad.setdefault(i, ("bad_utf8", f"column {name!r}"))
            cells[name] = objects(texts)
        return cells

    def _no_cell(self, kind: Any) -> str | None:
        """Why values of a type cannot be cells; None: they can."""
        types = self._arrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        if isinstance(kind, self._arrow.BaseExtensionType):
            if kind.extension_name in EXTENSIONS:
                return None
            if not types.is_string(kind.storage_type) and not types.is_large_string(kind.storage_type):
                return f"of type {kind.extension_name}, which no cell can have; write it as text"
        why = nested_kind(kind)
        return why and why + _ADVICE.get(why, "")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _type_at(schema: Any, path: tuple[str, ...]) -> Any:
    """The type of a column, or of a field inside a struct; None: there is no such column."""
    if path[0] not in schema.names:
        return None
    kind = schema.field(schema.names.index(path[0])).type
    for name in path[1:]:
        if not load_arrow().types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind
