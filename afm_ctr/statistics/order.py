"""The natural order of a field's values: numbers, parts of times, ranges, and words such as days."""

from __future__ import annotations

import calendar
import re

from afm_ctr.schema.times import moment_name
from afm_ctr.statistics.data_statistics import FieldStatistics, TopValue

_NUMBER = r"-?\d+(?:\.\d+)?"
# 7, 25-34, 1 to 3, < 18, 65+, 10 %, 3 days
_RANGE = re.compile(
    rf"(?P<below><=?|≤|under |up to )?\s*(?P<first>{_NUMBER})(?:\s*(?:-|–|to|\.\.)\s*{_NUMBER}|\s?%|\s?[a-z]+)?"
    r"(?P<above>\s?\+)?|(?P<beyond>>=?|≥|over )\s*(?P<last>" + _NUMBER + ")",
    re.IGNORECASE,
)
_SCALES: tuple[tuple[str, ...], ...] = (
    tuple(name.lower() for name in calendar.day_name),
    tuple(name.lower() for name in calendar.day_abbr),
    tuple(name.lower() for name in calendar.month_name[1:]),
    tuple(name.lower() for name in calendar.month_abbr[1:]),
    ("low", "medium", "high"),
    ("small", "medium", "large"),
    ("xs", "s", "m", "l", "xl", "xxl"),
    ("morning", "afternoon", "evening", "night"),
)


def in_order(
    field: FieldStatistics, before: FieldStatistics | None = None, part: str | None = None
) -> list[tuple[TopValue, str]] | None:
    """The values of a field in natural order, with their names; None if they have none or are not all known.

    Args:
        before: a baseline's field, whose values are included if they are all known.
        part: the part of a time field.
    """
    if not field.complete or not field.top:
        return None
    values = {top.value: top for top in field.top}
    for top in before.top if before is not None and before.complete else ():
        values.setdefault(top.value, TopValue(top.value, 0, 0))
    places = _places(list(values))
    if places is None:
        return None
    named = field.kind == "time" and part is not None
    return [
        (values[value], moment_name(part or "", int(value)) if named else value)
        for value in sorted(values, key=places.__getitem__)
    ]


def _places(values: list[str]) -> dict[str, tuple[float, int]] | None:
    """The sort key of each value; None if the values have no natural order."""
    words = [value.strip().lower() for value in values]
    for scale in _SCALES:
        if set(words) <= set(scale):
            return {value: (scale.index(word), 0) for value, word in zip(values, words, strict=True)}
    matches = [_RANGE.fullmatch(word) for word in words]
    found: dict[str, tuple[float, int]] = {}
    for value, match in zip(values, matches, strict=True):
        if match is None:
            return None
        side = -1 if match["below"] else 1 if match["above"] or match["beyond"] else 0
        found[value] = (float(match["first"] or match["last"]), side)
    return found
