"""Columns that tell a moment: which way of writing it fits every cell of the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial

# From the most telling to the least; whole numbers alone are the last resort.
_FORMATS = (
    ("%Y-%m-%d %H:%M:%S", True), ("%Y-%m-%dT%H:%M:%S", True), ("%Y/%m/%d %H:%M:%S", True), ("%Y-%m-%d %H:%M", True),
    ("%Y-%m-%d", False), ("%Y/%m/%d", False), ("%Y%m%d%H%M%S", True), ("%Y%m%d%H%M", True), ("%Y%m%d%H", True),
    ("%Y%m%d", False), ("%y%m%d%H", True),
)  # fmt: skip
_WIDTHS = {"Y": 4, "y": 2, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}
_START = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)


def time_format(cells: Iterable[bytes]) -> tuple[str, datetime, datetime] | None:
    """How the cells tell a moment, with the first and the last one; ``None``: they do not, or not all.

    Numbers count as moments only if all lie between 1990 and 2040 (and so does any other date).
    """
    texts = [cell.decode("ascii", "replace").strip() for cell in cells]
    if not texts:
        return None
    if all(text.isdigit() for text in texts):
        lengths = {len(text) for text in texts}
        for name, unit, digits in (("epoch", 1.0, {9, 10}), ("epoch_ms", 1e-3, {12, 13})):
            if lengths <= digits:
                found = _ends(texts, partial(_since_1970, unit))
                if found:
                    return name, *found
    for form, _ in _FORMATS:
        fitting = _all_fit(texts, form)
        if fitting:
            return form, *fitting
    fitting = _all_iso(texts)
    return ("iso", *fitting) if fitting else None


def _since_1970(unit: float, text: str) -> datetime:
    return _START + timedelta(seconds=int(text) * unit)


def _all_fit(texts: list[str], form: str) -> tuple[datetime, datetime] | None:
    length = len(form) + sum(_WIDTHS[form[i + 1]] - 2 for i in range(len(form)) if form[i] == "%")
    if any(len(text) != length for text in texts):
        return None
    return _ends(texts, lambda text: datetime.strptime(text, form).replace(tzinfo=UTC))


def _all_iso(texts: list[str]) -> tuple[datetime, datetime] | None:
    if any(len(text) < 10 or text[4] != "-" for text in texts):
        return None

    def read(text: str) -> datetime:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    return _ends(texts, read)


def _ends(texts: list[str], read: Callable[[str], datetime]) -> tuple[datetime, datetime] | None:
    try:
        moments = [read(text) for text in texts]
    except (ValueError, OverflowError):
        return None
    first, last = min(moments), max(moments)
    return (first, last) if first >= _FIRST and last < _LAST else None


def has_hour(form: str) -> bool:
    """Whether a format tells the hour."""
    return form in ("iso", "epoch", "epoch_ms") or dict(_FORMATS)[form]
