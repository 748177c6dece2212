"""Time fields: the format of a time, and the part of it that becomes the id."""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from afm_ctr.io.validation import Problem, Problems, Strict
from afm_ctr.schema.base import CellTexts, Name

# Number of ids of each part: hour of the day; weekday, Monday is 0; weekend, 1; day of the month and month, from 0.
PART_SIZES = {"hour": 24, "weekday": 7, "weekend": 2, "day": 31, "month": 12}
_WHOLE_DATE = (("year", ("Y", "y")), ("month", ("m",)), ("day", ("d",)))
_NEEDS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "hour": (("hour", ("H",)),),
    "weekday": _WHOLE_DATE,
    "weekend": _WHOLE_DATE,
    "day": (("day", ("d",)),),
    "month": (("month", ("m",)),),
}
NAMED_FORMATS = ("iso", "epoch", "epoch_ms", "clock")
_WIDTHS = {"Y": 4, "y": 2, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}


@dataclass(frozen=True)
class TimeLayout:
    """A format with directives, as positions in a text of fixed length."""

    pattern: str  # regular expression of texts of this form (whose numbers may still be an invalid date)
    places: dict[str, tuple[int, int]]  # offset and length of each directive, by its letter
    sample: str  # a text of this form


@lru_cache(maxsize=64)
def time_layout(text: str) -> TimeLayout:
    """The layout of a format such as ``%Y-%m-%d %H:%M``.

    Raises:
        ValueError: it has no directive, an unknown or repeated one, or characters that are not printable ASCII.
    """
    if not re.fullmatch(r"[ -~]+", text) or text != text.strip() or "%" not in text:
        named = ", ".join(NAMED_FORMATS)
        raise ValueError(f"must be {named}, or directives of %{' %'.join(_WIDTHS)} with ASCII text between them")
    pattern = sample = ""
    places: dict[str, tuple[int, int]] = {}
    for piece in re.findall(r"%.?|[^%]", text):
        if len(piece) == 1 and piece != "%":
            pattern, sample = pattern + re.escape(piece), sample + piece
            continue
        letter = piece[1:]
        if letter not in _WIDTHS:
            raise ValueError(f"'{piece}' is not one of the directives %{' %'.join(_WIDTHS)}")
        if letter in places or (letter in "Yy" and set("Yy") & set(places)):
            raise ValueError(f"'{piece}': each part of a time may occur only once")
        width = _WIDTHS[letter]
        places[letter] = (len(sample), width)
        pattern, sample = f"{pattern}[0-9]{{{width}}}", sample + "0" * width
    return TimeLayout(pattern, places, sample)


def form_of(text: str) -> tuple[str, bytes]:
    """The form of a format: its name; or ``layout`` and a byte for each of a text's, from 1 on the directives
    ``%Y %y %m %d %H %M %S``, else the character that stands there."""
    if text in NAMED_FORMATS:
        return text, b""
    layout = time_layout(text)
    codes = bytearray(layout.sample.encode())
    for letter, (at, size) in layout.places.items():
        codes[at : at + size] = bytes([list(_WIDTHS).index(letter) + 1]) * size
    return "layout", bytes(codes)


class TimeField(Strict):
    """A date or time; a part of it, in UTC, is the id. The value is 1.

    ASCII white space around the cell is ignored. Cells that do not match the format or name no date or time
    (30 February, 24 h) are bad: ``prepare`` rejects the row (``bad_time``); ``predict`` and a served model treat the
    cell as missing and count it in ``bad_cells``.

    Attributes:
        name: the field's name.
        column: the column to read; ``None``: the column of the same name.
        format: ``iso``: ``2014-10-21``, ``2014-10-21T07:05``, … with fractions of a second and ``Z`` or an offset
            (``+02:00``), converted to UTC; a date is midnight. ``epoch`` and ``epoch_ms``: seconds or milliseconds
            since 1970. ``clock``: a time of day, ``7:05``, ``07:05:30`` or ``7:05 pm``. Otherwise directives, each
            with a fixed number of digits: ``%Y`` four, ``%y`` two (69-99 are 1969-1999, 00-68 are 2000-2068),
            ``%m %d %H %M %S`` two; all other text is literal.
        part: ``hour`` 0-23, ``weekday`` Monday first, ``weekend`` (Saturday and Sunday), ``day`` of the month,
            ``month``.
        missing: empty and bad cells: ``absent`` leaves the slot empty, ``own`` gives it an id of its own.
        missing_values: texts that count as an empty cell; compared exactly. ``None``: the schema's
            ``missing_values``.
    """

    kind: Literal["time"]
    name: Name
    column: Name | None = None
    format: str
    part: Literal["hour", "weekday", "weekend", "day", "month"]
    missing: Literal["absent", "own"] = "absent"
    missing_values: CellTexts | None = None

    max_values: ClassVar[int] = 1

    @field_validator("format")
    @classmethod
    def _known(cls, text: str) -> str:
        if text not in NAMED_FORMATS:
            time_layout(text)
        return text

    @model_validator(mode="after")
    def _part_is_there(self) -> TimeField:
        if self.format in NAMED_FORMATS and self.format != "clock":
            return self
        there = set("HMS") if self.format == "clock" else set(time_layout(self.format).places)
        absent = [part for part, letters in _NEEDS[self.part] if not set(letters) & there]
        if absent:
            raise Problems([Problem(("part",), f"'{self.part}': the format {self.format!r} has no {absent[0]}")])
        return self


def moment_name(part: str, local: int) -> str:
    """The name of a part's id: ``07 h``, ``Monday``, ``weekend``, ``day 3``, ``March``."""
    if part == "hour":
        return f"{local:02d} h"
    if part == "weekday":
        return calendar.day_name[local]
    if part == "weekend":
        return "weekend" if local else "Monday to Friday"
    return f"day {local + 1}" if part == "day" else calendar.month_name[local + 1]
