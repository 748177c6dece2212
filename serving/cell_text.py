"""The text of a cell: how Python, NumPy, pandas, Arrow and JSON values are written as text.

Log readers and the client share this definition, so that a row has the same cells by every path. Needs NumPy only.

=============================================  ==================================================================
None, NaN of any type, pandas' NA and NaT      the empty text: a missing cell
str                                            UTF-8
bytes                                          unchanged
True, False                                    ``true``, ``false``
integers                                       all digits, exact at any size
floats                                         the shortest text that reads back as the same number of that width, as
                                               Python writes it: ``2.0``, ``0.1`` (float32 too), ``1e-07``; ``inf``
Decimal                                        all its digits and decimal places, no exponent: ``1.10``
dates                                          ``2024-01-31``
datetimes                                      ``2024-01-31T23:59:08``, with the fraction of a second if there is one,
                                               without trailing zeros: ``….5``; with a zone, in UTC: ``…08.5Z``
times of day                                   ``23:59:08``, fractions as above
durations                                      seconds, fractions as above: ``90``, ``0.5``
UUID                                           its 36 characters
lists, tuples, arrays of these                 the texts of their elements, joined by the list separator
=============================================  ==================================================================
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_MISSING = frozenset({"NAType", "NaTType"})  # pandas' types, by name: pandas may not be installed
_MOST_PLACES = 10**6  # of a Decimal: Decimal("1e999999999") would be a gigabyte of zeros
_LISTS = (list, tuple, np.ndarray)
# Duration units of NumPy: units per second, and seconds per unit.
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}
_SECONDS = {"W": 604_800, "D": 86_400, "h": 3_600, "m": 60}


class ColumnForm(NamedTuple):
    """What an exported model records of a raw column: stored in the signature ``raw`` as the name of the input's
    dimension, because the server passes that on to clients.

    Attributes:
        takes_floats: whether a whole number may be given as a float: true of numbers, times, and words learned as
            floats (``100.0``). In other columns 100.0 is ambiguous: the id 100, or the word 100.0.
        separators: list separators, see :func:`cell_text`; empty: the column holds one value.
    """

    takes_floats: bool
    separators: tuple[bytes, ...] = ()

    def to_name(self) -> str:
        """The form as the name of a dimension."""
        return json.dumps({"floats": self.takes_floats, "lists": [text.decode() for text in self.separators]})

    @classmethod
    def from_name(cls, name: str) -> ColumnForm | None:
        """Parse what :meth:`to_name` wrote; None for any other name."""
        try:
            read = json.loads(name)
            return cls(bool(read["floats"]), tuple(text.encode() for text in read["lists"]))
        except (ValueError, LookupError, TypeError, AttributeError):
            return None


class NoCell(ValueError):
    """A value that cannot be a cell.

    Attributes:
        reason: why the row is rejected, as counted in the rejects.
    """

    reason = "bad_json"


class BadList(NoCell):
    """A list with an element that contains a separator."""

    reason = "bad_list"


def cell_text(value: Any, separators: Sequence[bytes] = ()) -> bytes:
    """The text of a value, by the table in this module's docstring.

    Args:
        separators: texts that may not occur in a list's elements; the first one joins them. Without separators a
            list is refused.

    Raises:
        NoCell: a value of another type, or a list of lists.
        BadList: a list with a separator inside an element.
    """
    kind = type(value)
    if kind is str:
        return _encoded(value)
    if kind is float:
        return repr(value).encode() if value == value else b""
    if kind is bool:
        return b"true" if value else b"false"
    if kind is int:
        return _whole(value)
    if value is None:
        return b""
    if hasattr(value, "as_py"):
        return _arrow(value, separators)
    return _scalar(value) if not isinstance(value, _LISTS) or _is_scalar(value) else _list(value, separators)


def bad_element(element: bytes) -> str:
    """The message for a list with this element."""
    text = element.decode("utf-8", "replace")
    return f"the list's element {text if len(text) <= 40 else text[:40] + '…'!r} holds the separator of lists"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, np.ndarray) and not value.ndim


def shown(value: Any, longest: int = 40) -> str:
    """A value as messages show it, cut to ``longest`` characters: its repr, or its type if repr fails."""
    try:
        text = repr(value)
    except Exception:  # user classes raise anything; values nested too deeply, RecursionError
        text = f"<{type(value).__name__}>"
    return text if len(text) <= longest else text[:longest] + "…"


def _whole(value: int) -> bytes:
    try:
        return b"%d" % value
    except ValueError:  # more digits than Python writes (4,300 by default); Decimal has no such limit
        return _decimal(decimal.Decimal(value))


def _encoded(text: str) -> bytes:
    try:
        return str.encode(text)
    except UnicodeEncodeError:
        raise NoCell("a text with half a surrogate pair has no UTF-8 form") from None


def _list(values: Any, separators: Sequence[bytes]) -> bytes:
    if not separators:
        raise NoCell(f"{shown(values)} is neither text, bytes, a number nor a time: the column holds one value")
    cells = []
    for value in values:
        if isinstance(value, (*_LISTS, dict)) and not _is_scalar(value):
            raise NoCell("a list that holds a list or an object")
        cells.append(cell_text(value))
        if any(separator in cells[-1] for separator in separators):
            raise BadList(bad_element(cells[-1]))
    return separators[0].join(cells)


def _scalar(value: Any) -> bytes:
    """The text of a value of a less common type."""
    if isinstance(value, np.ndarray):
        return b"" if value is np.ma.masked else cell_text(value[()])
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str):
        return _encoded(value)
    if isinstance(value, (bool, np.bool_)):
        return b"true" if value else b"false"
    if isinstance(value, (np.datetime64, np.timedelta64)):  # a timedelta64 is also an integer
        return _numpy_time(value)
    if isinstance(value, (int, np.integer)):
        return _whole(int(value))
    if isinstance(value, float):
        return b"" if math.isnan(value) else float.__repr__(value).encode()
    if isinstance(value, np.floating):
        return cell_text(float(str(value)))  # NumPy finds the digits, Python writes them
    if isinstance(value, decimal.Decimal):
        return _decimal(value)
    if type(value).__name__ in _MISSING:
        return b""
    if isinstance(value, dt.datetime):
        return _moment(value)
    if isinstance(value, dt.date):
        return value.isoformat().encode()
    if isinstance(value, dt.time):
        if value.tzinfo is not None:
            raise NoCell("a time of day with a zone")
        return _without_zeros(value.isoformat()).encode()
    if isinstance(value, dt.timedelta):
        nanoseconds = (value.days * 86_400 + value.seconds) * 10**9 + value.microseconds * 1_000
        return _seconds(nanoseconds + getattr(value, "nanoseconds", 0), 10**9)
    if isinstance(value, uuid.UUID):
        return str(value).encode()
    if isinstance(value, dict):
        raise NoCell("an object; name what is in it: `header: a.b`")
    raise NoCell(f"{shown(value)} is neither text, bytes, a number nor a time")


def _arrow(scalar: Any, separators: Sequence[bytes]) -> bytes:
    """The text of an Arrow scalar; times keep their nanoseconds, floats their width."""
    kind = str(scalar.type)
    if not scalar.is_valid:
        return b""
    if kind.startswith("timestamp"):
        return _numpy_time(np.datetime64(scalar.value, scalar.type.unit)) + (b"Z" if scalar.type.tz else b"")
    if kind.startswith("duration"):
        return _seconds(scalar.value, _PER_SECOND[scalar.type.unit])
    if kind.startswith("time"):
        whole, rest = divmod(scalar.value, _PER_SECOND[scalar.type.unit])
        digits = len(str(_PER_SECOND[scalar.type.unit])) - 1
        clock = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        return _without_zeros(f"{clock}.{rest:0{digits}d}" if digits else clock).encode()
    if kind in ("halffloat", "float"):
        return cell_text((np.float16 if kind == "halffloat" else np.float32)(scalar.as_py()))
    if "list<" in kind.partition("[")[0]:
        return cell_text(list(scalar.values), separators)
    return cell_text(scalar.as_py(), separators)


def _seconds(count: int, per_second: int) -> bytes:
    """The text of a duration of ``count`` units, ``per_second`` of them per second."""
    whole, rest = divmod(abs(count), per_second)
    digits = len(str(per_second)) - 1
    text = _without_zeros(f"{whole}.{rest:0{digits}d}") if digits else str(whole)
    return f"{'-' if count < 0 else ''}{text}".encode()


def _without_zeros(text: str) -> str:
    """A decimal text without trailing zeros in its fraction, nor the point if no fraction is left."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decimal(value: decimal.Decimal) -> bytes:
    if value.is_nan():
        return b""
    if value.is_infinite():
        return b"inf" if value > 0 else b"-inf"
    if abs(value.adjusted()) > _MOST_PLACES:
        raise NoCell(f"a Decimal with more than {_MOST_PLACES:,} places")
    return f"{value:f}".encode()


def _moment(value: dt.datetime) -> bytes:
    zone = ""
    if value.tzinfo is not None:
        try:
            value, zone = value.astimezone(dt.UTC), "Z"
        except OverflowError:
            raise NoCell("a moment outside the years 1 to 9999") from None
    fraction = value.microsecond * 1_000 + getattr(value, "nanosecond", 0)  # of a pandas Timestamp
    whole = value.replace(microsecond=0, tzinfo=None)
    text = f"{dt.datetime.isoformat(whole)[:19]}.{fraction:09d}"
    return (_without_zeros(text) + zone).encode()


def _numpy_time(value: Any) -> bytes:
    if np.isnat(value):
        return b""
    unit, count = np.datetime_data(value.dtype)
    if isinstance(value, np.datetime64):
        if unit in ("Y", "M", "W", "D"):
            return str(value.astype("M8[D]")).encode()
        return _without_zeros(np.datetime_as_string(value, unit="s" if unit in ("h", "m") else unit)).encode()  # type: ignore[call-overload]
    units = int(value.astype(np.int64)) * count
    if unit in _PER_SECOND:
        return _seconds(units, _PER_SECOND[unit])
    if unit in _SECONDS:
        return _seconds(units * _SECONDS[unit], 1)
    raise NoCell(f"a duration in units of {unit!r}, which have no fixed length")
