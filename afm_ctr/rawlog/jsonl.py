"""JSON Lines: JSON objects to cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import numpy as np

from afm_ctr import native
from afm_ctr.rawlog.spans import LARGEST_TEXT, CellSpans
from afm_ctr.rawlog.tokenizers import Cells, Reasons, check_text, list_separators
from afm_ctr.schema import FeatureSchema, JsonlFormat
from serving.cell_text import NoCell, cell_text

# Integers keep their digits at any size; a float gets the text of its value, as sent by a client that has parsed the
# line. Control characters inside strings are data, as in delimited text.
_CONSTANTS = {"NaN": None, "Infinity": b"inf", "-Infinity": b"-inf"}
_DECODER = json.JSONDecoder(
    parse_int=str.encode,
    parse_float=lambda digits: cell_text(float(digits)),
    parse_constant=_CONSTANTS.__getitem__,
    strict=False,
)
_SPACE = " \t\r\n"


class JsonCutter:
    """Splits lines that are JSON objects into cells; absent keys are missing cells.

    The C++ library scans lines if it is built; Python parses the lines that the library does not support.
    """

    check = staticmethod(check_text)

    def __init__(self, spec: FeatureSchema, wanted: Sequence[str]) -> None:
        assert isinstance(spec.format, JsonlFormat)
        headers = {column.name: column.header or column.name for column in spec.format.columns}
        self._headers = {name: headers.get(name, name) for name in wanted}
        self._nothing = dict.fromkeys(self._headers.values())
        self._separators = {name: list_separators(spec, name) for name in wanted}
        # A header with a dot may be a path into an object, which only Python resolves.
        self._scans = not any("." in header for header in self._headers.values())

    def cut(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> Cells:
        """The wanted columns, parsed in Python; bad lines get empty cells."""
        rows: list[dict[str, Any]] = []
        for i, line in enumerate(lines):
            row = self._nothing if i in bad else _one_object(line)
            if isinstance(row, str):
                bad[i], row = ("bad_json", row), self._nothing
            rows.append(row)
        return {name: self._column(name, column, bad) for name, column in self._values(rows).items()}

    def spans(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> CellSpans | None:
        """Positions of the wanted columns' cells (empty for bad lines); None if :meth:`cut` must be used."""
        if not (self._scans and native.prepares()) or joined.count(b"\n") != len(lines) - 1:
            return None
        if len(joined) > LARGEST_TEXT:
            return None
        keys: dict[str, Sequence[bytes]] = {}
        for name, key in self._headers.items():
            separators = self._separators[name]
            keys[key] = separators if keys.get(key, separators) == separators else ()
        text, starts, ends, plain = native.scan_json(joined, len(lines), keys)
        places = {key: at for at, key in enumerate(keys)}
        found = CellSpans(text, starts, ends, {name: places[key] for name, key in self._headers.items()})
        other = np.flatnonzero(~plain)
        if not len(other):
            return found
        some = [lines[i] for i in other.tolist()]
        reasons: Reasons = {at: bad[i] for at, i in enumerate(other.tolist()) if i in bad}
        cells = self.cut(some, b"", reasons)
        bad.update({int(other[at]): reason for at, reason in reasons.items()})
        return found.with_cells(other, cells)

    def _values(self, rows: list[dict[str, Any]]) -> dict[str, Sequence[Any]]:
        """The objects' values of each column; None for absent keys."""
        plain = {name: header for name, header in self._headers.items() if "." not in header}
        found: dict[str, Sequence[Any]] = {}
        if len(plain) > 1 and rows:
            with suppress(KeyError):  # an object lacks a key
                found = dict(zip(plain, zip(*map(itemgetter(*plain.values()), rows), strict=True), strict=True))
        for name, header in self._headers.items():
            if name not in found:
                get = getter(header)
                found[name] = [get(row) for row in rows]
        return found

    def _column(self, name: str, values: Sequence[Any], bad: Reasons) -> Sequence[bytes]:
        kinds = set(map(type, values))
        try:
            if kinds <= {bytes, type(None)}:
                return [b"0" if value == b"-0" else value or b"" for value in values]
            if kinds == {str}:
                return list(map(str.encode, values))
            if kinds <= {str, type(None)}:
                return [value.encode() if value else b"" for value in values]
        except UnicodeEncodeError:
            pass
        cells = []
        for i, value in enumerate(values):
            try:
                cells.append(_cell(value, self._separators[name]))
            except NoCell as error:
                bad.setdefault(i, (error.reason, f"column {name!r}: {error}"))
                cells.append(b"")
        return cells


def _cell(value: Any, separators: Sequence[bytes]) -> bytes:
    if isinstance(value, list):
        value = [b"0" if item == b"-0" else item for item in value]
    return b"0" if value == b"-0" else cell_text(value, separators)


def _one_object(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or a message."""
    text = line.decode().strip(_SPACE)
    try:
        found, end = _DECODER.raw_decode(text)
    except RecursionError:
        return "nested too deep"
    except ValueError as error:
        return str(error)
    if end < len(text):
        return f"something follows the value: {_shown(text[end:])}"
    return found if isinstance(found, dict) else f"no object but {_shown(text)}"


def getter(header: str) -> Callable[[dict[str, Any]], Any]:
    """A function from an object to a column's value: by the header as a key, or else as a path with dots."""
    path = header.split(".")
    if len(path) == 1:
        return lambda row: row.get(header)

    def reach(row: dict[str, Any]) -> Any:
        if header in row:
            return row[header]
        found: Any = row
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    return reach


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
