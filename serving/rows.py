"""Rows in any form to checked requests, and answers back to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from serving import tensors
from serving.cell_text import ColumnForm, cell_text
from serving.errors import InvalidArgument
from serving.responses import ColumnSpec, Outputs, TensorSpec

Specs = Mapping[str, TensorSpec]

_KINDS = {"string": "OSU", "float": "fiu", "double": "fiu", "half": "fiu", "bool": "b"}  # others are integers: "iu"
# Column types, by their names in pandas and polars, whose values would become Python floats one by one.
_NARROW = {
    "float16": np.float16,
    "halffloat[pyarrow]": np.float16,
    "float32": np.float32,
    "float[pyarrow]": np.float32,
}


class Chunk(NamedTuple):
    """Rows as given: dicts, or arrays by column. ``start`` is the number of the first row, from 0."""

    start: int
    content: Sequence[Any] | Mapping[str, Any]


def split(data: Any, batch_size: int) -> Iterator[Chunk]:
    """Split rows into chunks; an iterable is read lazily.

    Args:
        data: An iterable of mappings (one per row); a mapping of column name to array or list, first dimension the
            rows; a DataFrame (anything with ``columns`` whose columns have ``to_numpy``); or an Arrow table.

    Raises:
        InvalidArgument: columns of different lengths, or ``data`` of another type.
    """
    if hasattr(data, "column_names"):
        data = {name: data.column(at) for at, name in enumerate(data.column_names)}
    elif hasattr(data, "columns") and hasattr(data, "__getitem__"):
        data = {str(name): data[name] for name in data.columns}
    if isinstance(data, Mapping):
        yield from _split_columns({name: _sliceable(name, column) for name, column in data.items()}, batch_size)
        return
    if isinstance(data, (str, bytes)) or not hasattr(data, "__iter__"):
        raise InvalidArgument(
            f"{type(data).__name__} holds no rows: give an iterable of mappings of columns to values, a mapping of "
            "columns to arrays, a DataFrame or an Arrow table"
        )
    rows, start = iter(data), 0
    while chunk := list(islice(rows, batch_size)):
        yield Chunk(start, chunk)
        start += len(chunk)


def encode(chunk: Chunk, specs: Specs) -> dict[str, np.ndarray[Any, Any]]:
    """Encode a chunk as the arrays of a request and check them against the model's inputs.

    A cell of a string column [B] may be any value of the table in :mod:`serving.cell_text`; an absent column is
    missing (an empty string). Inputs of another type or shape must be present in every row.

    Raises:
        InvalidArgument: names the row and the column.
    """
    if isinstance(chunk.content, Mapping):
        return _encode_columns(chunk, specs)
    known, names = specs.keys(), ", ".join(specs)
    for number, row in enumerate(chunk.content, chunk.start):
        if not isinstance(row, Mapping):
            raise InvalidArgument(
                f"row {number}: {type(row).__name__} is not a row: give a mapping of columns to values"
            )
        unknown = row.keys() - known
        if unknown:
            raise InvalidArgument(f"row {number}: unknown column {min(unknown, key=str)}; the model has {names}")
    return {
        name: _column(name, [row.get(name) for row in chunk.content], spec, chunk.start)
        for name, spec in specs.items()
    }


def by_row(outputs: Outputs) -> Iterator[dict[str, Any]]:
    """The outputs of a batch row by row, as Python numbers (lists for outputs of more dimensions)."""
    for values in zip(*(array.tolist() for array in outputs.values()), strict=True):
        yield dict(zip(outputs, values, strict=True))


def _split_columns(columns: Mapping[str, Any], batch_size: int) -> Iterator[Chunk]:
    if not columns:
        return
    first, *_ = columns
    rows = len(columns[first])
    for name, column in columns.items():
        if len(column) != rows:
            raise InvalidArgument(f"column {name} has {len(column)} rows, column {first} has {rows}")
    for start in range(0, rows, batch_size):
        yield Chunk(start, {name: column[start : start + batch_size] for name, column in columns.items()})


def _sliceable(name: str, column: Any) -> Any:
    column = _plain(column)
    single = isinstance(column, (str, bytes, Mapping)) or (isinstance(column, np.ndarray) and not column.ndim)
    if single or not hasattr(column, "__len__"):
        raise InvalidArgument(f"column {name}: {type(column).__name__} is not a column: give an array or a list")
    return column


def _plain(column: Any) -> Any:
    """The exact values of a column of a DataFrame or an Arrow table.

    In one NumPy array, integers next to a null would become floats.
    """
    if hasattr(column, "type") and hasattr(column, "combine_chunks"):  # Arrow
        return list(column)
    kind = str(getattr(column, "dtype", "")).lower()
    if kind in _NARROW and hasattr(column, "to_numpy"):
        values = (np.nan if type(value).__name__ in ("NoneType", "NAType") else value for value in column.to_list())
        return np.array(list(values), _NARROW[kind])
    if hasattr(column, "to_list") and not isinstance(column, np.ndarray):
        return column.to_list()
    return column.to_numpy() if hasattr(column, "to_numpy") else column


def _encode_columns(chunk: Chunk, specs: Specs) -> dict[str, np.ndarray[Any, Any]]:
    columns: Mapping[str, Any] = chunk.content  # type: ignore[assignment]
    unknown = columns.keys() - specs.keys()
    if unknown:
        raise InvalidArgument(f"unknown column {min(unknown, key=str)}; the model has {', '.join(specs)}")
    missing = specs.keys() - columns.keys()
    if missing:
        raise InvalidArgument(f"missing column {min(missing)}; the model has {', '.join(specs)}")
    return {name: _column(name, columns[name], spec, chunk.start) for name, spec in specs.items()}


def _column(name: str, values: Any, spec: TensorSpec, start: int) -> np.ndarray[Any, Any]:
    if spec.dtype == "string" and (spec.shape is None or len(spec.shape) == 1):
        return _strings(name, values, start, spec.form if isinstance(spec, ColumnSpec) else None)
    whole = _whole(values, spec)
    if whole is not None:
        return whole
    row_spec = TensorSpec(spec.dtype, None if spec.shape is None else spec.shape[1:])
    cells = [_cell_array(name, value, row_spec, row) for row, value in enumerate(values, start)]
    shapes = [cell.shape for cell in cells]
    different = next((row for row, shape in enumerate(shapes) if shape != shapes[0]), None)
    if different is not None:
        found, first = (tensors.format_shape(shapes[row]) for row in (different, 0))
        raise InvalidArgument(f"row {start + different}, column {name}: shape {found}, row {start} has {first}")
    return np.stack(cells)


def _whole(values: Any, spec: TensorSpec) -> np.ndarray[Any, Any] | None:
    """The column converted as a whole; None if its rows must be checked one by one."""
    if spec.dtype == "string":
        return None
    try:
        array = np.asarray(values)
        return _cast(array, spec) if array.dtype.kind != "O" else None
    except (ValueError, OverflowError):
        return None


def _cell_array(name: str, value: Any, spec: TensorSpec, row: int) -> np.ndarray[Any, Any]:
    try:
        if value is None:
            raise ValueError("is missing")
        if spec.dtype == "string":
            array = tensors.as_array(value)
            return _fitting(array if array.dtype == object else np.array(cell_text(value), dtype=object), spec)
        return _cast(np.asarray(value), spec)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"row {row}, column {name}: {error}") from None


def _cast(array: np.ndarray[Any, Any], spec: TensorSpec) -> np.ndarray[Any, Any]:
    """Cast to the model's type; only decimal places may be lost.

    Raises:
        ValueError: another kind of value, a number out of range, or another shape.
    """
    target = tensors.numpy_type_of(spec.dtype)
    if target is None:
        raise ValueError(f"the model takes {spec.dtype}, which cannot be sent")
    if array.dtype.kind not in _KINDS.get(spec.dtype, "iu") and array.size:
        raise ValueError(f"{_show(array)} is not {spec.dtype}")
    if target.kind in "iu" and array.size:
        limits, low, high = np.iinfo(target), int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"{low if low < limits.min else high} does not fit {spec.dtype}")
    try:
        with np.errstate(over="raise"):
            return _fitting(array, spec).astype(target, copy=False)
    except FloatingPointError:
        raise ValueError(f"{_show(array)} does not fit {spec.dtype}") from None


def _fitting(array: np.ndarray[Any, Any], spec: TensorSpec) -> np.ndarray[Any, Any]:
    if spec.shape is None:
        return array
    sizes = zip(spec.shape, array.shape, strict=False)
    if len(spec.shape) != array.ndim or any(wanted not in (-1, size) for wanted, size in sizes):
        wanted, found = tensors.format_shape(spec.shape), tensors.format_shape(array.shape)
        raise ValueError(f"shape {found}, the model takes {wanted}")
    return array


def _show(array: np.ndarray[Any, Any]) -> str:
    text = repr(array.reshape(-1)[0].item() if array.ndim == 0 else array.tolist())
    return text if len(text) <= 60 else text[:60] + "..."


def _strings(name: str, values: Iterable[Any], start: int, form: ColumnForm | None) -> np.ndarray[Any, Any]:
    separators = form.separators if form is not None else ()
    takes_floats = form is None or form.takes_floats
    cells: list[bytes] = []
    for row, value in enumerate(values, start):
        try:
            if not takes_floats:
                _refuse_whole_floats(value)
            cells.append(cell_text(value, separators))
        except ValueError as error:
            raise InvalidArgument(f"row {row}, column {name}: {error}") from None
    return tensors.objects(cells)


def _refuse_whole_floats(value: Any) -> None:
    """Refuse ambiguous floats: in a DataFrame with a null, the id 100 becomes 100.0; which text was learned?"""
    if isinstance(value, str):
        return
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        for item in value:
            _refuse_whole_floats(item)
    elif hasattr(value, "as_py"):
        _refuse_whole_floats(value.as_py())
    elif isinstance(value, (float, np.floating)) and float(value).is_integer():
        raise ValueError(
            f"{float(value)!r} is a float where the model has ids or words: the log may say {int(value)} or "
            f"{float(value)!r}; give a whole number or the log's text (in a DataFrame: astype('Int64'))"
        )
