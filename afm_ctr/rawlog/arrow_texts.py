"""Arrow arrays to the texts of cells, one column at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.rawlog.tokenizers import Reasons
from serving.cell_text import bad_element, cell_text

EXTENSIONS = ("arrow.uuid", "arrow.bool8")  # supported extension types; of others only those stored as text


def load_arrow() -> Any:
    """Import pyarrow with the modules used here; an optional dependency. Raises UserError if it is missing."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "a Parquet file needs the package pyarrow, which is not installed: pip install pyarrow"
        ) from error
    return pyarrow


def plain_type(kind: Any) -> Any:
    """An Arrow type without views and run-end encoding, which few Arrow functions support."""
    arrow = load_arrow()
    types = arrow.types
    if types.is_string_view(kind):
        return arrow.large_string()
    if types.is_binary_view(kind):
        return arrow.large_binary()
    if types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return arrow.large_list(plain_type(kind.value_type))
    if is_list(kind) and (inside := plain_type(kind.value_type)) != kind.value_type:
        return arrow.large_list(inside)
    if types.is_struct(kind):
        parts = [kind.field(i) for i in range(kind.num_fields)]
        return arrow.struct([part.with_type(plain_type(part.type)) for part in parts])
    return kind


def plain_schema(schema: Any) -> Any:
    """An Arrow schema with :func:`plain_type` of each column, without metadata."""
    fields = [field.with_type(plain_type(field.type)).remove_metadata() for field in schema]
    return load_arrow().schema(fields)


def plain_table(table: Any) -> Any:
    """A table with :func:`plain_type` of each column."""
    compute = load_arrow().compute
    for i, field in enumerate(table.schema):
        if (kind := plain_type(field.type)) != field.type:
            column, types = table.column(i), load_arrow().types
            if types.is_run_end_encoded(field.type):
                column = compute.run_end_decode(column)
            elif types.is_list_view(field.type) or types.is_large_list_view(field.type):
                column = load_arrow().chunked_array([_plain_lists(chunk, kind) for chunk in column.chunks], kind)
            else:
                column = column.cast(kind)
            table = table.set_column(i, field.name, column)
    return table


def _plain_lists(lists: Any, kind: Any) -> Any:
    """Convert list views to lists; Arrow 25's cast leaves the last offset unset."""
    arrow = load_arrow()
    lengths = arrow.compute.list_value_length(lists).cast(arrow.int64()).fill_null(0)
    offsets = arrow.array(np.r_[0, np.cumsum(lengths)], arrow.int64())
    values = arrow.compute.list_flatten(lists).cast(kind.value_type)
    return arrow.LargeListArray.from_arrays(offsets, values, mask=lists.is_null())


class ArrowTexts:
    """The texts of the cells of Arrow arrays.

    Args:
        list_separator: text between the elements of a list.
        separators: texts that no element of a list may contain, by column.
    """

    def __init__(self, list_separator: str, separators: Mapping[str, Sequence[bytes]]) -> None:
        self._arrow = load_arrow()
        self._separator = list_separator
        self._separators = separators

    def of(self, name: str, column: Any, bad: Reasons) -> Any:
        """The cells of a column, as by :func:`serving.cell_text.cell_text`: a binary array without nulls.

        Rows with a list element that contains a separator are added to ``bad``.
        """
        if is_list(column.type):
            self._check_elements(name, column, bad)
        return self._texts(column).cast(self._arrow.binary()).fill_null(b"")

    def _check_elements(self, name: str, column: Any, bad: Reasons) -> None:
        compute, elements = self._arrow.compute, self._elements(column)
        rows = np.repeat(np.arange(len(column)), self._lengths(column))
        for separator in self._separators[name]:
            found = compute.match_substring(elements, separator)
            for at in compute.indices_nonzero(found).to_pylist():
                bad.setdefault(int(rows[at]), ("bad_list", f"column {name!r}: {bad_element(elements[at].as_py())}"))

    def _lengths(self, lists: Any) -> np.ndarray:
        return self._arrow.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)

    def _elements(self, lists: Any) -> Any:
        """The texts of all elements of a column of lists, flattened: binary."""
        return self._texts(self._arrow.compute.list_flatten(lists)).cast(self._arrow.binary()).fill_null(b"")

    def _texts(self, column: Any) -> Any:
        """A column's cells, string or binary, null if missing.

        Common types are converted as whole arrays; a test compares them with ``cell_text``.
        """
        arrow, types, kind = self._arrow, self._arrow.types, column.type
        if isinstance(kind, arrow.BaseExtensionType):
            return self._one_by_one(column) if kind.extension_name in EXTENSIONS else self._texts(column.storage)
        if types.is_dictionary(kind):
            return self._texts(column.dictionary_decode())
        if is_list(kind):
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
        """The cells of a column of a less common type."""
        return self._arrow.array([cell_text(value) or None for value in column], self._arrow.binary())

    def _floats(self, column: Any) -> Any:
        """The cells of float64 or float32 columns; NaN is missing."""
        arrow, compute = self._arrow, self._arrow.compute
        column = compute.if_else(compute.is_nan(column), arrow.scalar(None, column.type), column)
        texts = column.cast(arrow.string())
        values = column.cast(arrow.float64()).fill_null(1.5).to_numpy(zero_copy_only=False)
        sizes = np.abs(values)
        usual = ((sizes >= 1e-4) & (sizes < 1e10)) | (sizes == 0)
        # Arrow writes whole numbers without a point, and exponents of very small and large ones differently.
        whole = arrow.array(usual & (values == np.floor(values)))
        texts = compute.if_else(whole, compute.binary_join_element_wise(texts, ".0", ""), texts)
        if not usual.all():
            odd = np.flatnonzero(~usual)
            written = [cell_text(float(text)) for text in texts.take(odd).to_pylist()]
            texts = compute.replace_with_mask(texts, arrow.array(~usual), arrow.array(written).cast(arrow.string()))
        return texts


def is_utf8_array(texts: Any) -> bool:
    """Whether all texts of a binary array are UTF-8."""
    arrow = load_arrow()
    try:
        texts.cast(arrow.string()).validate(full=True)
    except arrow.ArrowInvalid:
        return False
    return True


def objects(texts: Any) -> Any:
    """A binary array as an object array of bytes."""
    return texts.to_numpy(zero_copy_only=False)


def nested_kind(kind: Any) -> str | None:
    """The kind of an Arrow type whose values cannot be cells (map, struct, list of such); None for other types."""
    types = load_arrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_map(kind):
        return "a map"
    if types.is_struct(kind):
        return "a struct"
    return "a list of lists or structs" if is_list(kind) and types.is_nested(kind.value_type) else None


def is_list(kind: Any) -> bool:
    types = load_arrow().types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
