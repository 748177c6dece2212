"""Statistics and drift as rows of text, for the terminal and for a page."""

from __future__ import annotations

from afm_ctr.statistics.compare import Drift, FieldDrift
from afm_ctr.statistics.data_statistics import DataStatistics, FieldStatistics
from afm_ctr.visible import short

FIELD_COLUMNS = ("field", "encoding", "missing", "distinct", "values")
DRIFT_COLUMNS = ("field", "PSI", "by chance", "missing", "now", "new values", "flags")
TEXT_COLUMNS = ("field", "encoding", "values", "flags")  # the others are numeric


def title_of(statistics: DataStatistics) -> str:
    """The split, its rows, and the number of sampled rows."""
    sampled = "" if statistics.sampled == statistics.rows else f", values of {statistics.sampled:,} sampled rows"
    positive = f", {statistics.positives:,} positive" if statistics.positives is not None else ""
    return f"{statistics.split}: {statistics.rows:,} rows{positive}{sampled}"


def note_of(statistics: DataStatistics) -> str:
    """Explanation of the column ``values``."""
    text = "values: least, 5 %, median, 95 %, most of many numbers; else the most frequent with their share of rows"
    return text + (" and the share of positive ones among them" if statistics.positives is not None else "")


def field_rows(statistics: DataStatistics) -> list[list[str]]:
    """One row of :data:`FIELD_COLUMNS` per field."""
    return [
        [
            field.name,
            field.encoding,
            f"{field.missing_share:.2%}" if field.missing else "",
            f"{'' if field.exact else '~'}{field.distinct:,}",
            _values(field, statistics),
        ]
        for field in statistics.fields
    ]


def _values(field: FieldStatistics, statistics: DataStatistics) -> str:
    if field.quantiles and not field.complete:
        return " … ".join(f"{field.quantiles[i]:g}" for i in (0, 5, 50, 95, 100))
    words = []
    for top in field.top[:3]:
        positive = f"/{top.positives / top.rows:.0%}" if statistics.positives is not None else ""
        words.append(f"{short(top.value, 16)} {top.rows / statistics.sampled:.1%}{positive}")
    return ", ".join(words)


def drift_title(found: Drift, baseline: str) -> str:
    """The number of flagged fields, and the shares of positive rows."""
    title = f"against {baseline}: {len(found.flagged)} of {len(found.fields)} fields flagged"
    if found.positive_before is not None and found.positive_now is not None:
        title += f"; positive {_share(found.positive_before)}, now {_share(found.positive_now)}"
    return title


def drift_row(field: FieldDrift) -> list[str]:
    """A row of :data:`DRIFT_COLUMNS`."""
    return [
        field.name,
        "-" if field.psi is None else f"{field.psi:.4f}",
        "-" if field.psi is None else f"{field.noise:.4f}",
        _share(field.missing_before),
        _share(field.missing_now),
        _share(field.new_share) if field.new_share else "",
        ", ".join(field.flags),
    ]


def _share(number: float | None) -> str:
    return "-" if number is None else f"{number:.2%}"
