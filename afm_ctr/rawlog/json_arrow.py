"""JSON Lines by Arrow's reader, where it finds the same cells as Python's: several times as fast.

Arrow has to be given the type of each column, and in a column of floats it does not say which were whole numbers:
``3`` and ``3.0`` are two cells. So types are learned from rows that Python has read, whole numbers among floats are
read again by Python, and a batch with anything that Arrow reads otherwise, or takes for an error, only by Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.rawlog.arrow_texts import ArrowTexts, load_arrow
from afm_ctr.rawlog.tokenizers import Reasons

LEARN_FROM = 64  # rows
_FEWEST = 256  # rows of a batch that are worth it
_MOST_MISSES = 3  # batches in a row that Arrow could not read: then no more is tried
_MOST_WHOLE = 0.25  # share of whole numbers in a column of floats
_DEEPEST = 500  # brackets of a line: Python takes no more than some 1,000 levels
_WHOLE = re.compile(rb"-?[0-9]+")
_ODD = re.compile(rb"[:,\[]\s*(-\s*NaN|-?Inf(?!inity))")  # constants that Arrow accepts and Python does not


class ArrowJson:
    """Reads batches of JSON objects.

    Args:
        headers: of each column, by its name, its key in the objects.
        list_separator: what lists are joined with.
        separators: of each column what no element of a list may hold.
    """

    def __init__(
        self, headers: Mapping[str, str], list_separator: str, separators: Mapping[str, Sequence[bytes]]
    ) -> None:
        self._headers = headers
        self._kinds: dict[str, set[str]] = {name: set() for name in headers}
        self._types: dict[str, Any] | None = None
        self._misses = 0
        try:
            self._arrow = load_arrow()
            self._texts = ArrowTexts(list_separator, separators)
        except UserError:  # it is not installed
            self._misses = _MOST_MISSES
        # A dot may lead into an object, or not.
        if any("." in header for header in headers.values()) or len(set(headers.values())) < len(headers):
            self._misses = _MOST_MISSES

    def wants(self, lines: Sequence[bytes]) -> bool:
        """Whether to try."""
        return self._misses < _MOST_MISSES and len(lines) >= _FEWEST

    @property
    def knows(self) -> bool:
        """Whether something has been learned."""
        return self._types is not None

    def learn(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """What Python has read: of each column the values; a number is its text."""
        for name, values in columns.items():
            self._kinds[name].update(_kinds(values))
        types = {name: self._type(kinds) for name, kinds in self._kinds.items()}
        self._types = {self._headers[name]: kind for name, kind in types.items()}
        if None in types.values():
            self._misses = _MOST_MISSES

    def _type(self, kinds: set[str]) -> Any:
        """Arrow's type for values of these kinds; None: there is none that keeps their texts apart."""
        arrow = self._arrow
        if any(kind.startswith("list") for kind in kinds):
            inside = {kind.removeprefix("list ") for kind in kinds} - {"list"}
            odd = not all(kind.startswith("list") for kind in kinds) or "list" not in kinds or "float" in inside
            kind = None if odd else self._type(inside)
            return None if kind is None else arrow.list_(kind)
        if kinds <= {"whole", "float"} and "float" in kinds:
            return arrow.float64()
        known = {"whole": arrow.int64(), "text": arrow.string(), "bool": arrow.bool_()}
        return arrow.null() if not kinds else known.get(next(iter(kinds))) if len(kinds) == 1 else None

    def read(
        self, lines: Sequence[bytes], joined: bytes, bad: Reasons, cell_of: Callable[[bytes, str], bytes]
    ) -> dict[str, Any] | None:
        """The cells of every column as a binary array without nulls; None: Python has to read this batch.

        Args:
            joined: the lines with line ends between them.
            bad: lines that are no rows; more are noted here.
            cell_of: a cell of a line, by the column's name.
        """
        if bad:
            lines = [b"{}" if i in bad else line for i, line in enumerate(lines)]
            joined = b"\n".join(lines)
        found: Reasons = {}
        texts = self._read(lines, joined, found, cell_of) if _safe(lines, joined) else None
        if texts is None:
            self._misses += 1
            return None
        self._misses = 0
        for i, reason in found.items():
            bad.setdefault(i, reason)
        return texts

    def _read(
        self, lines: Sequence[bytes], joined: bytes, bad: Reasons, cell_of: Callable[[bytes, str], bytes]
    ) -> dict[str, Any] | None:
        import pyarrow.json as reader

        arrow = self._arrow
        types = arrow.schema(list((self._types or {}).items()))
        how = reader.ReadOptions(use_threads=False, block_size=len(joined) + 64)
        what = reader.ParseOptions(explicit_schema=types, unexpected_field_behavior="ignore")
        try:
            table = reader.read_json(arrow.BufferReader(joined), how, what)
        except arrow.ArrowInvalid:
            return None
        if table.num_rows != len(lines):
            return None
        texts = {}
        for name, header in self._headers.items():
            column = table.column(header).combine_chunks()
            texts[name] = self._texts.of(name, column, bad)
            if arrow.types.is_float64(column.type):
                values = column.fill_null(0.5).to_numpy(zero_copy_only=False)
                whole = np.isfinite(values) & (values == np.floor(values))
                if whole.sum() > _MOST_WHOLE * len(values):
                    return None
                cells = [cell_of(lines[i], name) for i in np.flatnonzero(whole).tolist()]
                again = arrow.array(cells, arrow.binary())
                texts[name] = arrow.compute.replace_with_mask(texts[name], arrow.array(whole), again)
        return texts


def _kinds(values: Iterable[Any]) -> set[str]:
    found: set[str] = set()
    for value in values:
        if isinstance(value, bytes):
            found.add("whole" if _WHOLE.fullmatch(value) else "float")
        elif isinstance(value, list):
            found |= {"list", *(f"list {kind}" for kind in _kinds(value))}
        elif value is not None:
            found.add({str: "text", bool: "bool"}.get(type(value), "object"))
    return found


def _safe(lines: Sequence[bytes], joined: bytes) -> bool:
    """Whether Arrow would take each line for one object, and no line for an object that is none.

    Where every line begins and ends with a brace, a line end is between two objects: inside of one, ``}`` and ``{``
    have a comma between them, and no string holds a line end.
    """
    if joined[:1] != b"{" or joined[-1:] != b"}" or joined.count(b"}\n{") != len(lines) - 1:
        return False
    if joined.count(b"[") + joined.count(b"{") > len(lines) + _DEEPEST and any(
        line.count(b"[") + line.count(b"{") > _DEEPEST for line in lines
    ):
        return False
    return not ((b"Inf" in joined or b"NaN" in joined) and _ODD.search(joined))
