"""Cells out of JSON objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from afm_ctr.rawlog.cutting import Cells, Reasons, check_text
from afm_ctr.schema import FeatureSchema, JsonlFormat

# Numbers stay the digits that were written: 1.10 is another text than 1.1, and 2^53 + 1 is no float. Control
# characters inside strings are data, as in delimited text.
_DECODER = json.JSONDecoder(parse_int=str.encode, parse_float=str.encode, parse_constant=str.encode, strict=False)
_SPACE = " \t\r\n"
_CONSTANTS = {True: b"true", False: b"false", None: b""}


class NoCell(ValueError):
    """A value that is no cell."""


class JsonCutter:
    """Cuts lines that are JSON objects; a key that an object does not have is missing."""

    check = staticmethod(check_text)

    def __init__(self, spec: FeatureSchema, wanted: Sequence[str]) -> None:
        assert isinstance(spec.format, JsonlFormat)
        headers = {column.name: column.header or column.name for column in spec.format.columns}
        self._getters = {name: _getter(headers.get(name, name)) for name in wanted}
        self._separator = spec.format.list_separator.encode()

    def cut(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> Cells:
        """The wanted columns; lines that are bad get empty cells."""
        rows: list[dict[str, Any]] = []
        for i, line in enumerate(lines):
            row: Any = {}
            if i not in bad:
                try:
                    text = line.decode().strip(_SPACE)
                    row, end = _DECODER.raw_decode(text)
                    if end < len(text):
                        raise ValueError(f"something follows the value: {_shown(text[end:])}")
                    if not isinstance(row, dict):
                        raise ValueError(f"no object but {_shown(text)}")
                except (ValueError, RecursionError) as error:
                    said = "nested too deep" if isinstance(error, RecursionError) else str(error)
                    bad[i], row = ("bad_json", said), {}
            rows.append(row)
        return {name: self._column(name, [get(row) for row in rows], bad) for name, get in self._getters.items()}

    def _column(self, name: str, values: list[Any], bad: Reasons) -> Sequence[bytes]:
        kinds = set(map(type, values))
        try:
            if kinds == {bytes}:
                return values
            if kinds <= {bytes, type(None)}:
                return [value or b"" for value in values]
            if kinds <= {str, type(None)}:
                return [value.encode() if value else b"" for value in values]
        except UnicodeEncodeError:
            pass
        cells = []
        for i, value in enumerate(values):
            try:
                cells.append(self._cell(value))
            except NoCell as error:
                bad.setdefault(i, ("bad_json", f"column {name!r}: {error}"))
                cells.append(b"")
        return cells

    def _cell(self, value: Any) -> bytes:
        if isinstance(value, list):
            if any(isinstance(item, (list, dict)) for item in value):
                raise NoCell("a list that holds a list or an object")
            return self._separator.join([self._cell(item) for item in value])
        if isinstance(value, dict):
            raise NoCell("an object; name what is in it: `header: a.b`")
        if isinstance(value, str):
            try:
                return value.encode()
            except UnicodeEncodeError as error:
                raise NoCell("a text with half a surrogate pair") from error
        return value if isinstance(value, bytes) else _CONSTANTS[value]


def _getter(header: str) -> Callable[[dict[str, Any]], Any]:
    """What finds a column's value in an object: under its key, else along its dots."""
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
