"""Time fields: texts to minutes since 1970, and minutes to hours, weekdays and days, in exact integer arithmetic."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from afm_ctr.features.cell_ops import FieldCells, Numbers
from afm_ctr.features.rows import EncodedSlots, TableRows
from afm_ctr.schema import ResolvedSchema, TimeField, column_of, time_layout

_ISO = (
    r"^([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[T ]([0-9]{2})(?::([0-9]{2})(?::([0-9]{2})(?:[.,][0-9]+)?)?)?(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?$"
)
_CLOCK = r"^([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,][0-9]+)?)?(?: ?([AaPp])\.?[Mm]\.?)?$"
_EPOCH = r"-?[0-9]{1,18}(?:\.[0-9]*)?"
_BELOW_ZERO = r"-[0-9]*\.0*[1-9][0-9]*"
_MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_DAY = 24 * 60


def parse_times(texts: tf.Tensor, form: str) -> Numbers:
    """Minutes since 1970-01-01 00:00 UTC, or for ``clock`` since midnight, rounded down.

    Args:
        texts: string [B]; ASCII white space around them is ignored, and texts of white space only are missing.
        form: a time field's ``format``.

    Returns:
        ``values`` int64, ``ok`` and ``bad`` bool, [B] each.
    """
    stripped = tf.strings.strip(texts)
    given = tf.strings.length(stripped) > 0
    if form in ("epoch", "epoch_ms"):
        ok = tf.strings.regex_full_match(stripped, _EPOCH)
        minutes = _epoch_minutes(tf.where(ok, stripped, "0"), 60 if form == "epoch" else 60_000)
    elif form == "clock":
        minutes, ok = _clock_minutes(stripped)
    else:
        minutes, ok = _iso_minutes(stripped) if form == "iso" else _layout_minutes(stripped, form)
    return Numbers(tf.where(ok, minutes, np.int64(0)), ok, given & ~ok)


def _epoch_minutes(texts: tf.Tensor, units: int) -> tf.Tensor:
    whole = tf.strings.to_number(tf.strings.regex_replace(texts, r"\..*", ""), tf.int64)
    # Rounded down, -0.5 is -1.
    whole -= tf.cast(tf.strings.regex_full_match(texts, _BELOW_ZERO), tf.int64)
    return whole // units


def _layout_minutes(texts: tf.Tensor, form: str) -> tuple[tf.Tensor, tf.Tensor]:
    layout = time_layout(form)
    ok = tf.strings.regex_full_match(texts, layout.pattern)
    texts = tf.where(ok, texts, layout.sample)
    found = {
        letter: tf.strings.to_number(tf.strings.substr(texts, at, size), tf.int64)
        for letter, (at, size) in layout.places.items()
    }
    if "y" in found:
        found["Y"] = found["y"] + tf.where(found["y"] < 69, np.int64(2000), np.int64(1900))
    # Of a partial date only the given parts are used; 2000 is a leap year.
    absent = {"Y": 2000, "m": 1, "d": 1, "H": 0, "M": 0, "S": 0}
    return _moment([found.get(letter, tf.fill(tf.shape(texts), np.int64(v))) for letter, v in absent.items()], ok)


def _iso_minutes(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    ok = tf.strings.regex_full_match(texts, _ISO)
    texts = tf.where(ok, texts, "1970-01-01")

    minutes, ok = _moment(_numbers(texts, _ISO, 6), ok)
    zone = tf.strings.regex_replace(texts, _ISO, r"\7")
    hours, rest = _numbers(zone, r"^(?:Z|[+-]([0-9]{2}):?([0-9]{2})?)?$", 2)
    ok &= (hours < 24) & (rest < 60)
    west = tf.strings.regex_full_match(zone, "-.*")
    offset = hours * 60 + rest
    return minutes + tf.where(west, offset, -offset), ok


def _clock_minutes(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    ok = tf.strings.regex_full_match(texts, _CLOCK)
    texts = tf.where(ok, texts, "0:00")
    hour, minute, second = _numbers(texts, _CLOCK, 3)
    half = tf.strings.lower(tf.strings.regex_replace(texts, _CLOCK, r"\4"))
    halved = half != ""
    ok &= tf.where(halved, (hour > 0) & (hour <= 12), hour < 24) & (minute < 60) & (second < 60)
    hour = tf.where(halved, hour % 12, hour) + tf.where(half == "p", np.int64(12), np.int64(0))
    return hour * 60 + minute, ok


def _numbers(texts: tf.Tensor, pattern: str, groups: int) -> list[tf.Tensor]:
    """The numbers in the first groups of a pattern, int64 [B] each; an empty group is 0."""
    listed = "".join(f",0\\{number}" for number in range(1, groups + 1))[1:]
    pieces = tf.strings.split(tf.strings.regex_replace(texts, pattern, listed), ",").flat_values
    return tf.unstack(tf.reshape(tf.strings.to_number(pieces, tf.int64), (-1, groups)), axis=1)


def _moment(parts: list[tf.Tensor], ok: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Minutes since 1970 of year, month, …, second; and ``ok`` restricted to dates that exist."""
    year, month, day, hour, minute, second = parts
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    in_month = tf.gather(_MONTH_DAYS, tf.clip_by_value(month - 1, 0, 11))
    in_month += tf.cast(leap & (month == 2), tf.int64)
    ok &= (year > 0) & (month > 0) & (month <= 12) & (day > 0) & (day <= in_month)
    ok &= (hour < 24) & (minute < 60) & (second < 60)
    return days_since_1970(year, month, day) * _DAY + hour * 60 + minute, ok


def days_since_1970(year: tf.Tensor, month: tf.Tensor, day: tf.Tensor) -> tf.Tensor:
    """Days from 1970-01-01 to a date of the Gregorian calendar, int64 of any shape.

    Source: Howard Hinnant, chrono-compatible low-level date algorithms (years begin in March, 400 of them an era).
    """
    year -= tf.cast(month <= 2, tf.int64)
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def month_and_day(days: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The reverse of :func:`days_since_1970`, without the year: month 1-12 and day 1-31. Same source."""
    days += 719468
    of_era = days % 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    from_march = (5 * of_year + 2) // 153
    day = of_year - (153 * from_march + 2) // 5 + 1
    return (from_march + 2) % 12 + 1, day


class TimeEncoder(tf.Module):
    """All time fields; a column that several fields read in the same format is parsed once."""

    def __init__(self, schema: ResolvedSchema, fields: list[TimeField]) -> None:
        super().__init__()
        read = [(column_of(field), schema.spec.missing_of(field), field.format) for field in fields]
        self._sources = tuple(dict.fromkeys(read))
        self._source_of = np.array([self._sources.index(source) for source in read], np.int32)
        self._parts = tuple(field.part for field in fields)
        self._table_rows = TableRows(schema, [field.name for field in fields])

    def __call__(self, cells: FieldCells) -> EncodedSlots:
        parsed = [parse_times(cells.without(name, missing), form) for name, missing, form in self._sources]
        minutes, ok, bad = (tf.gather(tf.stack(part), self._source_of) for part in zip(*parsed, strict=True))
        local = tf.stack([_part(part, minutes[slot]) for slot, part in enumerate(self._parts)])
        return EncodedSlots(self._table_rows(local), tf.ones_like(local, tf.float32), ok, bad)


def _part(part: str, minutes: tf.Tensor) -> tf.Tensor:
    """The local ids of times."""
    if part == "hour":
        return minutes % _DAY // 60
    days = minutes // _DAY
    if part in ("weekday", "weekend"):
        weekday = (days + 3) % 7  # 1970 began on a Thursday
        return weekday if part == "weekday" else tf.cast(weekday >= 5, tf.int64)
    month, day = month_and_day(days)
    return (month if part == "month" else day) - 1
