"""Columns of dates and times: the format that fits all sampled cells, and whether digits are times or ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import pairwise

# From the most specific to the least; formats of digits only come last.
_FORMATS = (
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y/%m/%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y/%m/%d %H:%M",
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M", "%d-%m-%Y", "%Y%m%dT%H%M%S", "%Y%m%d %H:%M:%S", "%Y%m%d%H%M%S", "%Y%m%d%H%M", "%Y%m%d%H",
    "%Y%m%d", "%y%m%d%H",
)  # fmt: skip
_WIDTHS = {"Y": 4, "y": 2, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}
# As the transform reads it; Python's parser also accepts week dates.
_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d([.,]\d+)?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII)
_CLOCK = re.compile(rb"^\S{0,12}[ :T]?\d\d?:\d\d(:\d\d)?([.,]\d+)? *([AaPp]\.?[Mm]\.?)?|\d\d?[-/.]\d\d?[-/.]\d{2,4}")
_MONTH = re.compile(rb"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\b.*\d", re.IGNORECASE)
_TIME_OF_DAY = re.compile(r"(\d\d?):(\d\d)(?::(\d\d)(?:[.,]\d+)?)?(?: ?([AaPp])\.?[Mm]\.?)?", re.ASCII)
_LASTING = re.compile(rb"\d+:\d\d(:\d\d)?")
_LASTING_WORDS = {"dur", "duration", "elapsed", "lasted", "lasting", "latency", "len", "length", "runtime", "took"}
_START = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)
_LONGEST_LOG = timedelta(days=3653)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_TIME_WORDS = {
    "at", "created", "date", "datetime", "day", "dt", "epoch", "hour", "minute", "moment", "month", "on",
    "second", "since", "stamp", "time", "times", "timestamp", "ts", "tstamp", "unix", "unixtime", "until",
    "updated", "utc", "week", "when", "year",
}  # fmt: skip
_PARTS_OF_TIME = {"day", "dow", "hour", "minute", "month", "week", "weekday"}
_NUMBERED = {"nbr", "no", "nr", "num", "number"}  # store_nbr is a store
_COUNTED = {"avg", "count", "max", "mean", "min", "n", "no", "num", "number", "sum", "total"}  # num_item is none
_ID_WORDS = {
    "account", "ad", "adgroup", "adv", "advert", "advertiser", "app", "article", "asin", "author", "banner",
    "brand", "campaign", "category", "channel", "client", "code", "content", "cookie", "creative", "customer",
    "device", "doc", "document", "ean", "goods", "gtin", "hash", "host", "id", "idfa", "ids", "imei", "ip",
    "isbn", "item", "key", "keyword", "member", "merchant", "movie", "msisdn", "number", "offer", "order",
    "page", "person", "phone", "photo", "placement", "product", "publisher", "query", "seller", "session",
    "shop", "site", "sku", "song", "store", "tag", "tel", "term", "track", "uid", "upc", "user", "uuid",
    "video", "visitor", "zip", "zone",
}  # fmt: skip


@dataclass(frozen=True)
class Moments:
    """The format of a column's dates and times."""

    form: str  # ``format`` of a time field
    first: datetime  # earliest, in UTC (so is ``last``); cells without a zone count as UTC
    last: datetime
    zones: tuple[str, ...] = ()  # offsets as written in the cells; empty: none. An epoch is UTC by definition: ``Z``.
    digits: bool = False  # whether the cells are digits only, like ids

    @property
    def span(self) -> str:
        """The earliest and the latest in the log's zone, with the zone if it is known."""
        first, last = self.first, self.last
        if self.form == "clock":
            return f"from {first:%H:%M} to {last:%H:%M}"
        zone = ""
        if len(self.zones) == 1:
            zone = " UTC" if self.zones[0] == "Z" else f" {self.zones[0]}"
            first, last = (moment.astimezone(_zone(self.zones[0])) for moment in (first, last))
        elif self.zones:
            zone = " UTC"
        return f"from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}{zone}"

    @property
    def zone_note(self) -> str | None:
        """The zone of hours and weekdays; ``None``: the format has no hour, or no day."""
        if not has_hour(self.form):
            return None
        if self.form == "clock":
            return None
        if not self.zones:
            return "No zone is written: hours and weekdays are those of the cells."
        if self.zones == ("Z",):
            return "Hours and weekdays are of UTC."
        return f"Written with {_listed(self.zones)}; hours and weekdays are of UTC, not of local time."


def _listed(zones: Sequence[str]) -> str:
    return f"the offset {zones[0]}" if len(zones) == 1 else f"{len(zones)} offsets ({', '.join(zones[:4])})"


def time_format(cells: Iterable[bytes]) -> Moments | None:
    """The format that fits all cells as dates or times; ``None``: there is none.

    All dates must lie between 1990 and 2040. :func:`are_moments` decides whether digits are times at all.
    """
    texts = [cell.decode("ascii", "replace").strip() for cell in cells]
    if not texts:
        return None
    digits = all(text.isdigit() for text in texts)
    for form in _FORMATS:
        fitting = _all_fit(texts, form)
        if fitting:
            return Moments(form, *fitting, digits=digits)
    if digits:
        lengths = {len(text) for text in texts}
        for name, unit, widths in (("epoch", 1.0, {9, 10}), ("epoch_ms", 1e-3, {12, 13})):
            fitting = _ends(texts, partial(_since_1970, unit)) if lengths <= widths else None
            if fitting:
                return Moments(name, *fitting, zones=("Z",), digits=True)
    elif all(re.fullmatch(r"\d{9,10}\.\d+", text, re.ASCII) for text in texts):
        fitting = _ends(texts, lambda text: _START + timedelta(seconds=float(text)))
        if fitting:
            return Moments("epoch", *fitting, zones=("Z",), digits=True)
    return _all_clock(texts) or _all_iso(texts)


def are_moments(moments: Moments, header: str, cells: Sequence[bytes]) -> tuple[bool, str | None]:
    """Whether cells that could be dates or times are, and a warning for the user.

    Texts with marks between their parts are times. Digits may be ids: the column's name decides, or else whether the
    values behave like a log's clock.

    Args:
        header: the column's name in the log; names such as ``c3`` have no effect.
        cells: all cells that are not missing, in file order.
    """
    if moments.form == "clock":
        doubt = f"a duration? Its hours end at {moments.last.hour}, and it stands below as a time of day"
        short = moments.last.hour < 12 and all(_LASTING.fullmatch(cell.strip()) for cell in cells)
        return not are_durations(header, cells), doubt if short else None
    if not moments.digits:
        twin = _swapped(moments.form)
        texts = [cell.decode("ascii", "replace").strip() for cell in set(cells)]
        if twin is not None and _all_fit(texts, twin):
            return True, f"the day and the month could be the other way round: {twin} fits as well"
        return True, None
    words = [word.lower() for word in _WORDS.findall(header)]
    if any(word in _TIME_WORDS or word.endswith(("time", "stamp")) for word in words):
        return True, None
    read = f"digits that would read as moments ({moments.form}, {moments.span})"
    if any(word in _ID_WORDS or word.endswith("id") for word in words):
        return False, f"{read}; by its name they are ids"
    if moments.last - moments.first > _LONGEST_LOG or moments.last > datetime.now(UTC) + timedelta(days=366):
        return False, f"{read}; they span more than a log's time: taken for ids"
    # A log's clock moves forward, ticks in whole minutes, or rarely repeats a second.
    values = [int(float(cell)) for cell in cells]
    forward = sum(a <= b for a, b in pairwise(values)) >= 0.9 * (len(values) - 1)
    unit = {"epoch": 60, "epoch_ms": 60_000}.get(moments.form)
    if unit is None or forward or len(set(values)) > 0.5 * len(values) or not any(value % unit for value in values):
        return True, "digits taken for moments by their values: are they no ids?"
    return False, f"{read}; they repeat in no order: taken for ids"


def names_things(header: str) -> bool:
    """Whether, by its name, a column's numbers are categories: ids, or parts of time such as hours and weekdays."""
    words = [word.lower() for word in _WORDS.findall(header)]
    if len(words) > 1 and words[-1] in _NUMBERED:
        words.pop()
    if not words or (len(words) > 1 and words[0] in _COUNTED):
        return False
    last = words[-1]
    return last in _ID_WORDS | _PARTS_OF_TIME or (last.endswith("id") and last.removesuffix("id") in _ID_WORDS)


def finer_unit(cells: Sequence[bytes]) -> str | None:
    """The unit of epoch times that are too fine for a time field; ``None`` for other cells."""
    for unit, digits in (("microseconds", 6), ("nanoseconds", 9)):
        if {len(cell.strip()) for cell in cells} == {10 + digits} and all(cell.strip().isdigit() for cell in cells):
            fitting = _ends([cell.decode() for cell in cells], partial(_since_1970, 10.0**-digits))
            if fitting and fitting[1] - fitting[0] <= _LONGEST_LOG:
                return unit
    return None


def _swapped(form: str) -> str | None:
    """A format that begins with month and day, or day and month, with the two swapped."""
    if form[:5] not in ("%m/%d", "%d/%m"):
        return None
    return f"{form[3:5]}/{form[:2]}{form[5:]}"


def are_durations(header: str, cells: Sequence[bytes]) -> bool:
    """Whether cells such as 3:45 are durations, by the column's name or because some are not times of day."""
    if not cells or not all(_LASTING.fullmatch(cell.strip()) for cell in cells):
        return False
    named = bool(_LASTING_WORDS & {word.lower() for word in _WORDS.findall(header)})
    return named or _all_clock([cell.decode().strip() for cell in cells]) is None


def looks_like_moments(cells: Sequence[bytes]) -> bool:
    """Whether texts that :func:`time_format` does not know look like dates or times: 3/Oct/2014 7:05."""
    seen = sum(_CLOCK.search(cell) is not None or _MONTH.search(cell) is not None for cell in cells)
    return seen >= 0.9 * len(cells) > 0


def _zone(written: str) -> timezone:
    digits = re.sub(r"\D", "", written)
    minutes = int(digits[:2] or 0) * 60 + int(digits[2:] or 0)
    return timezone(timedelta(minutes=-minutes if written.startswith("-") else minutes))


def _since_1970(unit: float, text: str) -> datetime:
    return _START + timedelta(seconds=int(text) * unit)


def _all_fit(texts: list[str], form: str) -> tuple[datetime, datetime] | None:
    length = len(form) + sum(_WIDTHS[form[i + 1]] - 2 for i in range(len(form)) if form[i] == "%")
    if any(len(text) != length for text in texts):
        return None
    return _ends(texts, lambda text: datetime.strptime(text, form).replace(tzinfo=UTC))


def _all_iso(texts: list[str]) -> Moments | None:
    matches = [_ISO.fullmatch(text) for text in texts]
    if not all(matches):
        return None
    found = [match[5] or "" for match in matches if match is not None]

    def read(text: str) -> datetime:
        moment = datetime.fromisoformat(re.sub(r"(T| )(\d\d)(?=Z|[+-]|$)", r"\1\2:00", text))
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)

    fitting = _ends(texts, read)
    return Moments("iso", *fitting, zones=tuple(sorted(set(found) - {""}))) if fitting else None


def _all_clock(texts: list[str]) -> Moments | None:
    matches = [match for match in map(_TIME_OF_DAY.fullmatch, texts) if match]
    if len(matches) < len(texts):
        return None
    try:
        moments = [_time_of_day(match) for match in matches]
    except ValueError:
        return None
    return Moments("clock", min(moments), max(moments))


def _time_of_day(match: re.Match[str]) -> datetime:
    hour, half = int(match[1]), (match[4] or "").lower()
    if half and not 1 <= hour <= 12:
        raise ValueError("no hour of half a day")
    hour = hour % 12 + 12 * (half == "p") if half else hour
    return datetime(2000, 1, 1, hour, int(match[2]), int(match[3] or 0), tzinfo=UTC)


def _ends(texts: list[str], read: Callable[[str], datetime]) -> tuple[datetime, datetime] | None:
    try:
        moments = [read(text) for text in texts]
    except (ValueError, OverflowError):
        return None
    first, last = min(moments), max(moments)
    return (first, last) if first >= _FIRST and last < _LAST else None


def has_hour(form: str) -> bool:
    """Whether a format has an hour."""
    return form in ("iso", "epoch", "epoch_ms", "clock") or "%H" in form
