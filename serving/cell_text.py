"""The text of a cell: the one definition of what a Python, NumPy, pandas, Arrow or JSON value becomes.

Readers of logs and the client use it alike, so that a row has the same cells by every path. It needs NumPy only.

=============================================  ==================================================================
None, NaN of any type, pandas' NA and NaT      the empty text: a missing cell
text                                           itself, in UTF-8
bytes                                          themselves
True, False                                    ``true``, ``false``
whole numbers                                  their digits, exact at any size
floats                                         the shortest text that is the same number of that width, as Python
                                               writes it: ``2.0``, ``0.1`` (also of a float32), ``1e-07``; ``inf``
Decimal                                        its digits with as many places as it has, no exponent: ``1.10``
dates                                          ``2024-01-31``
moments                                        ``2024-01-31T23:59:08``, with the fraction of a second that there is,
                                               without zeros at its end: ``….5``; with a zone in UTC: ``…08.5Z``
times of day                                   ``23:59:08``, fractions alike
durations                                      seconds, fractions alike: ``90``, ``0.5``
UUID                                           its 36 characters
lists, tuples, arrays of these                 their cells with the separator of lists between them
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

_MISSING = frozenset({"NAType", "NaTType"})  # of pandas, known by name: it need not be there
_MOST_PLACES = 10**6  # of a Decimal: Decimal("1e999999999") would be a gigabyte of zeros
_LISTS = (list, tuple, np.ndarray)
# Units of NumPy's durations in one second, or seconds in one of them.
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}
_SECONDS = {"W": 604_800, "D": 86_400, "h": 3_600, "m": 60}


class ColumnForm(NamedTuple):
    """What a model says of a raw column next to its name: it stands in the signature ``raw`` as the name of the
    input's dimension, since the server hands that on to clients.

    Attributes:
        takes_floats: whether a whole number may come as a float: the column holds numbers or times, or words that
            were learned as floats (``100.0``). Elsewhere 100.0 may stand for the id 100, or for 100.0.
        separators: of a list, see :func:`cell_text`; none: the column holds one value.
    """

    takes_floats: bool
    separators: tuple[bytes, ...] = ()

    def to_name(self) -> str:
        """The name of the dimension."""
        return json.dumps({"floats": self.takes_floats, "lists": [text.decode() for text in self.separators]})

    @classmethod
    def from_name(cls, name: str) -> ColumnForm | None:
        """What :meth:`to_name` wrote; None: this is something else."""
        try:
            read = json.loads(name)
            return cls(bool(read["floats"]), tuple(text.encode() for text in read["lists"]))
        except (ValueError, LookupError, TypeError, AttributeError):
            return None


class NoCell(ValueError):
    """A value that is no cell.

    Attributes:
        reason: of the row's reject.
    """

    reason = "bad_json"


class BadList(NoCell):
    """A list that would come apart at other places than between its elements."""

    reason = "bad_list"


def cell_text(value: Any, separators: Sequence[bytes] = ()) -> bytes:
    """The text of a value, as the module's table has it.

    Args:
        value: any value.
        separators: what may not stand inside an element of a list; the first joins them. Without any, a list is no
            cell.

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
    """What is wrong with a list that holds such an element."""
    text = element.decode("utf-8", "replace")
    return f"the list's element {text if len(text) <= 40 else text[:40] + '…'!r} holds the separator of lists"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, np.ndarray) and not value.ndim


def shown(value: Any, longest: int = 40) -> str:
    """A value as messages show it, cut to ``longest`` characters: its repr, or its type where it has none."""
    try:
        text = repr(value)
    except Exception:  # whatever somebody's class raises; a RecursionError of what is nested too deep
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
    """The text of a value of one of the rarer types."""
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
    """The text of an Arrow scalar; a time keeps its nanoseconds, and a float its width."""
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
    """A duration of ``count`` units, of which a second has ``per_second``."""
    whole, rest = divmod(abs(count), per_second)
    digits = len(str(per_second)) - 1
    text = _without_zeros(f"{whole}.{rest:0{digits}d}") if digits else str(whole)
    return f"{'-' if count < 0 else ''}{text}".encode()


def _without_zeros(text: str) -> str:
    """A decimal text without the zeros at the end of its fraction, and without the point where none is left."""
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
