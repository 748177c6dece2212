"""Parquet files: their rows as a log has them, read in batches and turned to cells a column at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, BinaryIO, overload

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.rawlog.codecs import BLOCK, PARQUET_MAGIC
from afm_ctr.rawlog.layout import TWICE, require
from afm_ctr.rawlog.tokenizers import Cells, Reasons, is_utf8, list_separators
from afm_ctr.schema import FeatureSchema, ParquetFormat
from serving.cell_text import bad_element, cell_text

_READ_ROWS = 4096


def _arrow() -> Any:
    """pyarrow and what is used of it: loaded where a Parquet file is, since not every installation has it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "a Parquet file needs the package pyarrow, which is not installed: pip install pyarrow"
        ) from error
    return pyarrow


class RowBatch(Sequence[bytes]):
    """Rows of a table where a text log has lines; one by one they are JSON objects of the columns that were read.

    Attributes:
        table: the rows, a ``pyarrow.Table``.
    """

    def __init__(self, table: Any) -> None:
        self.table = table

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
        """Some of the rows."""
        return RowBatch(self.table.take(_arrow().array(rows, _arrow().int64())))


def _plain(scalar: Any) -> Any:
    try:
        value = scalar.as_py()
    except UnicodeDecodeError:
        value = scalar.cast(_arrow().binary()).as_py()
    except ValueError:  # a moment to the nanosecond, which Python's own do not hold
        value = str(scalar.cast(_arrow().string()))
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


class ParquetLog:
    """An open Parquet file.

    Args:
        stream: its content; must stay open.
        path: for messages.

    Attributes:
        groups: rows of each row group.

    Raises:
        UserError: it is no Parquet file, or not a whole one.
    """

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._path = path
        arrow = _arrow()
        if stream.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC:
            raise UserError(f"{path} is no Parquet file; say in the schema how it is written (format.kind)")
        stream.seek(0)
        try:
            self._file = arrow.parquet.ParquetFile(stream, buffer_size=BLOCK)
        except (arrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: no whole Parquet file ({_said(error)}); repair it or leave it out") from error
        metadata = self._file.metadata
        self.groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    @cached_property
    def header(self) -> bytes:
        """Its columns and their types, as :class:`TableCutter` takes them."""
        return self._file.schema_arrow.remove_metadata().serialize().to_pybytes()

    def rows(self, columns: Sequence[str], first_group: int = 0) -> TableStream:
        """The rows from a row group on, with some of the columns."""
        return TableStream(self._batches(columns, first_group))

    def _batches(self, columns: Sequence[str], first_group: int) -> Iterator[Any]:
        arrow = _arrow()
        for group in range(first_group, len(self.groups)):
            try:
                yield from self._file.iter_batches(_READ_ROWS, [group], list(columns), use_threads=False)
            except (arrow.ArrowException, OSError) as error:
                where = f"{self._path}: row group {group}"
                raise UserError(
                    f"{where} cannot be read ({_said(error)}); repair the file or leave it out"
                ) from error


class TableStream:
    """Rows out of batches, any number at a time: what :class:`LineStream` is for text."""

    broken = None

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._rest: Any = None  # of the batch at hand

    def take(self, count: int) -> RowBatch | list[bytes]:
        """Up to ``count`` rows; fewer only at the end."""
        parts = list(self._parts(count))
        return RowBatch(_arrow().Table.from_batches(parts).combine_chunks()) if parts else []

    def skip(self, count: int) -> int:
        """Pass over up to ``count`` rows; returns how many there were."""
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
    """Turns columns of a table into cells.

    Args:
        header: the file's columns and types: :attr:`ParquetLog.header`.

    Attributes:
        reads: what the columns are called in the file.
        types: their Arrow types, by the schema's names.

    Raises:
        UserError: a wanted column is not there, twice there, or of a type that is no cell.
    """

    def __init__(self, spec: FeatureSchema, header: bytes, wanted: Sequence[str], source: str) -> None:
        assert isinstance(spec.format, ParquetFormat)
        self._arrow = _arrow()
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
        self._separator = spec.format.list_separator
        self._separators = {name: list_separators(spec, name) for name in wanted}

    def check(self, lines: Sequence[bytes], bad: Reasons) -> bytes:
        """Nothing is wrong with a row as a whole."""
        return b""

    def cut(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> Cells:
        """The wanted columns, object arrays of bytes; rows with a text that is not UTF-8 are noted."""
        if not isinstance(lines, RowBatch):
            return {name: () for name in self._paths}
        cells: Cells = {}
        for name, (first, *rest) in self._paths.items():
            column = lines.table.column(first).combine_chunks()
            column = self._arrow.compute.struct_field(column, rest) if rest else column
            texts = self._texts(column)
            if _is_list(self._arrow.types, column.type):
                self._check_elements(name, column, bad)
            try:
                texts.cast(self._arrow.string()).validate(full=True)
            except self._arrow.ArrowInvalid:
                for i, cell in enumerate(texts.cast(self._arrow.binary()).to_pylist()):
                    if not is_utf8(cell or b""):
                        bad.setdefault(i, ("bad_utf8", f"column {name!r}"))
            texts = texts.cast(self._arrow.binary()).fill_null(b"")
            cells[name] = texts.to_numpy(zero_copy_only=False)
        return cells

    def _check_elements(self, name: str, column: Any, bad: Reasons) -> None:
        """Note the rows with a list that holds an element with a separator in it."""
        compute, elements = self._arrow.compute, self._elements(column)
        rows = np.repeat(np.arange(len(column)), self._lengths(column))
        for separator in self._separators[name]:
            found = compute.match_substring(elements, separator)
            for at in compute.indices_nonzero(found).to_pylist():
                bad.setdefault(int(rows[at]), ("bad_list", f"column {name!r}: {bad_element(elements[at].as_py())}"))

    def _lengths(self, lists: Any) -> np.ndarray:
        return self._arrow.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)

    def _elements(self, lists: Any) -> Any:
        """The texts of all elements of a column of lists, one after the other: binary."""
        return self._texts(self._arrow.compute.list_flatten(lists)).cast(self._arrow.binary()).fill_null(b"")

    def _no_cell(self, kind: Any) -> str | None:
        """Why values of a type are no cells; None: they are."""
        types = self._arrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_map(kind):
            return "a map, which has no columns"
        if types.is_struct(kind):
            return "a struct; name what is in it: `header: a.b`"
        if _is_list(types, kind):
            inside = kind.value_type
            return "a list of lists or structs" if types.is_nested(inside) else None
        return None

    def _texts(self, column: Any) -> Any:
        """An array of a column's cells, as :func:`serving.cell_text.cell_text` has them: string or binary, null where
        they are missing.

        The usual types are turned as a whole; a test holds them against that function.
        """
        arrow, types, kind = self._arrow, self._arrow.types, column.type
        if isinstance(kind, arrow.BaseExtensionType):
            named = kind.extension_name in ("arrow.uuid", "arrow.bool8")
            return self._one_by_one(column) if named else self._texts(column.storage)
        if types.is_dictionary(kind):
            return self._texts(column.dictionary_decode())
        if _is_list(types, kind):
            offsets = np.r_[0, np.cumsum(self._lengths(column))].astype(np.int32)
            lists = arrow.ListArray.from_arrays(arrow.array(offsets), self._elements(column))
            return arrow.compute.binary_join(lists, self._separator.encode())
        if types.is_float32(kind) or types.is_float64(kind):
            return self._floats(column)
        if types.is_timestamp(kind) or types.is_time(kind):
            plain = column.cast(arrow.timestamp(kind.unit)) if types.is_timestamp(kind) else column
            texts = plain.cast(arrow.string())
            texts = arrow.compute.replace_substring_regex(texts, r"(\.[0-9]*?)0+$", r"\1")
            texts = arrow.compute.replace_substring_regex(texts, r"\.$", "")
            texts = arrow.compute.replace_substring(texts, " ", "T", max_replacements=1)
            return arrow.compute.binary_join_element_wise(texts, "Z", "") if getattr(kind, "tz", None) else texts
        if types.is_null(kind):
            return arrow.nulls(len(column), arrow.string())
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        if text or types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            return column.cast(arrow.binary())
        if types.is_integer(kind) or types.is_boolean(kind) or types.is_date32(kind):
            return column.cast(arrow.string())
        return self._one_by_one(column)

    def _one_by_one(self, column: Any) -> Any:
        """The cells of a column of a rarer type."""
        return self._arrow.array([cell_text(value) or None for value in column], self._arrow.binary())

    def _floats(self, column: Any) -> Any:
        """The cells of doubles or singles: a NaN is missing."""
        arrow, compute = self._arrow, self._arrow.compute
        column = compute.if_else(compute.is_nan(column), arrow.scalar(None, column.type), column)
        texts = column.cast(arrow.string())
        values = column.cast(arrow.float64()).fill_null(1.5).to_numpy(zero_copy_only=False)
        sizes = np.abs(values)
        usual = ((sizes >= 1e-4) & (sizes < 1e10)) | (sizes == 0)
        # Arrow leaves the point out of a whole number; of very small and large ones it writes the exponent otherwise.
        whole = arrow.array(usual & (values == np.floor(values)))
        texts = compute.if_else(whole, compute.binary_join_element_wise(texts, ".0", ""), texts)
        if not usual.all():
            odd = np.flatnonzero(~usual)
            written = [cell_text(float(text)) for text in texts.take(odd).to_pylist()]
            texts = compute.replace_with_mask(texts, arrow.array(~usual), arrow.array(written).cast(arrow.string()))
        return texts


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _type_at(schema: Any, path: tuple[str, ...]) -> Any:
    """The type of a column, or of a field inside a struct; None: it is not there."""
    if path[0] not in schema.names:
        return None
    kind = schema.field(schema.names.index(path[0])).type
    for name in path[1:]:
        if not _arrow().types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _is_list(types: Any, kind: Any) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
