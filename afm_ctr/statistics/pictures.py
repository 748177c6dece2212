"""Statistics as one page: a panel a field, with the share of positive rows over its values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from afm_ctr.errors import UserError
from afm_ctr.statistics.compare import Drift, FieldDrift
from afm_ctr.statistics.data_statistics import DataStatistics, FieldStatistics
from afm_ctr.visible import visible

_NOW, _BEFORE, _RATE, _FLAG = "#1b6ca8", "#b9c4cc", "#d9822b", "#b3261e"
_ACROSS, _BARS, _LONGEST = 4, 10, 14
_MOST_PANELS = 80  # of more fields the first; a page of hundreds cannot be read


def draw(now: DataStatistics, path: Path, baseline: DataStatistics | None = None, found: Drift | None = None) -> Path:
    """Draw one page.

    A panel shows the shares of a field's most frequent values as bars, with the share of positive rows as dots; or
    of a field of many numbers, which share of the rows lies below each. The baseline's are grey.

    Args:
        now: the statistics; of flagged fields first, where ``found`` is given.
        path: PNG file to write.
        baseline: what they are compared with.
        found: the comparison.

    Raises:
        UserError: the file cannot be written.
    """
    drifts = {field.name: field for field in found.fields} if found else {}
    order = [field for name in drifts if (field := now.field(name)) is not None] if found else now.fields
    shown = order[:_MOST_PANELS]
    rows = max(-(-len(shown) // _ACROSS), 1)
    figure = Figure(figsize=(4.2 * _ACROSS, 2.6 * rows + 1.0), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, _ACROSS)).ravel()
    for axis, field in zip(panels, shown, strict=False):
        before = baseline.field(field.name) if baseline else None
        _panel(axis, field, now, before, baseline, drifts.get(field.name))
    for axis in panels[len(shown) :]:
        axis.axis("off")
    figure.suptitle(_title(now, baseline, len(order)), fontsize=12)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def _title(now: DataStatistics, baseline: DataStatistics | None, fields: int) -> str:
    text = f"{now.split}: {now.rows:,} rows, {fields} fields"
    if now.positives is not None and now.rows:
        text += f", {now.positives / now.rows:.2%} positive (dots: share of positive rows, right axis)"
    if fields > _MOST_PANELS:
        text += f"; the first {_MOST_PANELS}"
    return text + ("; grey: the baseline" if baseline else "")


def _panel(
    axis: Axes, field: FieldStatistics, now: DataStatistics, before: FieldStatistics | None,
    baseline: DataStatistics | None, change: FieldDrift | None,
) -> None:  # fmt: skip
    missing = f"{field.missing_share:.1%} missing" if field.missing else "none missing"
    title = f"{field.name}: {'' if field.exact else '~'}{field.distinct:,} distinct, {missing}"
    flagged = change is not None and change.flags
    if change is not None and change.psi is not None:
        title += f"\nPSI {change.psi:.3f}" + (f", {', '.join(change.flags)}" if flagged else "")
    axis.set_title(title, fontsize=8.5, color=_FLAG if flagged else "black")
    if field.quantiles and not field.complete:
        _numbers(axis, field, before)
    elif field.top:
        _values(axis, field, now, before, baseline)
    else:
        axis.text(0.5, 0.5, "no value in the sample", ha="center", va="center", transform=axis.transAxes, fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _values(
    axis: Axes, field: FieldStatistics, now: DataStatistics, before: FieldStatistics | None,
    baseline: DataStatistics | None,
) -> None:  # fmt: skip
    top = field.top[:_BARS]
    places = np.arange(len(top))
    width = 0.4 if before else 0.8
    axis.bar(places + (0.2 if before else 0), [t.rows / now.sampled for t in top], width, color=_NOW)
    if before and baseline:
        old = {t.value: t.rows / max(baseline.sampled, 1) for t in before.top}
        axis.bar(places - 0.2, [old.get(t.value, 0.0) for t in top], width, color=_BEFORE)
    axis.set_xticks(places, [_short(t.value) for t in top], rotation=40, ha="right", rotation_mode="anchor")
    axis.set_ylim(bottom=0)
    if now.positives is not None:
        rate = axis.twinx()
        shares = [t.positives / t.rows for t in top]
        rate.plot(places, shares, "o", color=_RATE, markersize=5, markeredgecolor="white")
        # Never closer than twice the mean: else chance would look like a difference.
        rate.set_ylim(0, min(1.1 * max(*shares, 2 * now.positives / now.rows, 1e-3), 1.05))
        rate.yaxis.set_major_locator(MaxNLocator(3))
        rate.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        rate.tick_params(labelsize=6, colors=_RATE)
        rate.spines[["top", "left"]].set_visible(False)


def _numbers(axis: Axes, field: FieldStatistics, before: FieldStatistics | None) -> None:
    """The distribution function, read from the quantiles: no width of bins to choose, and ties are steps."""
    share = np.linspace(0, 1, len(field.quantiles))
    if before and before.quantiles:
        axis.step(
            before.quantiles, np.linspace(0, 1, len(before.quantiles)), where="post", color=_BEFORE, linewidth=3
        )
    axis.step(field.quantiles, share, where="post", color=_NOW, linewidth=1.4)
    low, quarter, three_quarters, high = (field.quantiles[i] for i in (0, 25, 75, -1))
    if high - low > 10 * max(three_quarters - quarter, 1.0):
        axis.set_xscale("symlog", linthresh=1.0)
    axis.set_ylim(0, 1.02)
    axis.set_ylabel("rows up to x", fontsize=7)


def _short(text: str) -> str:
    plain = visible(text).replace("$", r"\$")
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"
