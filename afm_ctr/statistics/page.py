"""Statistics as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping

from afm_ctr.statistics.compare import Drift, FieldDrift
from afm_ctr.statistics.data_statistics import DataStatistics, FieldStatistics
from afm_ctr.statistics.pictures import field_figure
from afm_ctr.statistics.tables import (
    DRIFT_COLUMNS,
    FIELD_COLUMNS,
    TEXT_COLUMNS,
    drift_row,
    drift_title,
    field_rows,
    note_of,
    title_of,
)
from afm_ctr.webpage import Page

_MOST_PICTURES = 80  # only the first fields get a plot: a page of hundreds is unreadable


def page_of(
    data: str,
    now: DataStatistics,
    baseline: tuple[str, DataStatistics, Drift] | None = None,
    parts: Mapping[str, str] | None = None,
) -> Page:
    """Tables, and one plot per field.

    Args:
        baseline: the name of another data set, its statistics, and the drift, by which fields are ordered.
        parts: parts of time fields by field, if known.
    """
    page = Page(f"Statistics of {data}", title_of(now))
    order, drifts, before = now.fields, {}, None
    if baseline is not None:
        name, before, found = baseline
        drifts = {field.name: field for field in found.fields}
        order = [field for drift in found.fields if (field := now.field(drift.name)) is not None]
        page.section(
            "Drift", f"{drift_title(found, name)}. PSI below 0.1 is no change by custom, above 0.25 a large one."
        )
        page.table(
            DRIFT_COLUMNS,
            [drift_row(field) for field in found.fields],
            numeric=set(DRIFT_COLUMNS) - set(TEXT_COLUMNS),
            marked=range(len(found.flagged)),
        )
    page.section("Fields", note_of(now))
    page.table(FIELD_COLUMNS, field_rows(now), numeric=set(FIELD_COLUMNS) - set(TEXT_COLUMNS))
    note = "Bars: shares of rows by value, in their order where values have one and else by frequency; lines: which "
    note += "share of the rows lies up to a number."
    if now.positives is not None and now.rows:
        note += f" Dots, right axis: share of positive rows; of all rows {now.positives / now.rows:.2%}."
    if before is not None:
        note += " Grey: the baseline."
    page.section("Pictures", note)
    if len(order) > _MOST_PICTURES:
        page.paragraph(f"The first {_MOST_PICTURES} of {len(order)} fields.")
    for field in order[:_MOST_PICTURES]:
        page.figure(
            field_figure(field, now, before, (parts or {}).get(field.name)),
            _caption(field, drifts.get(field.name)),
            f"{field.name}: shares of rows by value",
        )
    return page


def _caption(field: FieldStatistics, change: FieldDrift | None) -> str:
    missing = f"{field.missing_share:.1%} missing" if field.missing else "none missing"
    text = f"{field.name}: {'' if field.exact else '~'}{field.distinct:,} distinct, {missing}"
    if change is not None and change.psi is not None:
        text += f"; PSI {change.psi:.3f}" + "".join(f", {flag}" for flag in change.flags)
    return text
