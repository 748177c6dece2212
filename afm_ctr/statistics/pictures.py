"""Plots of a field's statistics: shares of its values, or the distribution of its numbers."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from afm_ctr.plots import BLUE, ORANGE, PALE_GREY, panels, styled
from afm_ctr.statistics.data_statistics import DataStatistics, FieldStatistics, TopValue
from afm_ctr.statistics.order import in_order
from afm_ctr.visible import short

_BARS, _LONGEST = 10, 14


@styled
def field_figure(
    field: FieldStatistics, now: DataStatistics, baseline: DataStatistics | None, part: str | None = None
) -> Figure:
    """The shares of a field's values as bars, with the shares of positive rows as dots; or, for a field of many
    numbers, the distribution function. The baseline's are grey.

    Values with a natural order are all shown in it; of others the most frequent, by frequency.

    Args:
        part: the part of a time field.
    """
    figure, (axis,) = panels(3.6, 2.4)
    before = baseline.field(field.name) if baseline else None
    if field.quantiles and not field.complete:
        _numbers(axis, field, before)
    elif field.top:
        _values(axis, field, now, before, baseline, part)
    else:
        axis.text(0.5, 0.5, "no value in the sample", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return figure
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _values(
    axis: Axes, field: FieldStatistics, now: DataStatistics, before: FieldStatistics | None,
    baseline: DataStatistics | None, part: str | None,
) -> None:  # fmt: skip
    old = {} if before is None else {top.value: top.rows / max(baseline.sampled, 1) for top in before.top}  # type: ignore[union-attr]
    ordered = in_order(field, before, part)
    shown = [(top, str(top.value)) for top in field.top[:_BARS]] if ordered is None else ordered
    places = np.arange(len(shown))
    right, width = (0.2, 0.4) if before else (0.0, 0.8)
    axis.bar(places + right, [top.rows / now.sampled for top, _ in shown], width, color=BLUE)
    if before:
        axis.bar(places - 0.2, [old.get(top.value, 0.0) for top, _ in shown], 0.4, color=PALE_GREY)
    crowded = len(shown) > _BARS + 2
    axis.set_xticks(
        places, [short(text, _LONGEST) for _, text in shown], rotation=90 if crowded else 40, ha="right",
        va="center" if crowded else "top", rotation_mode="anchor", fontsize=6 if crowded else 7,
    )  # fmt: skip
    axis.set_ylim(bottom=0)
    if now.positives is not None:
        _rates(axis.twinx(), [top for top, _ in shown], now.positives / max(now.rows, 1))


def _rates(axis: Axes, values: list[TopValue], mean: float) -> None:
    """The share of positive rows of each value, on a separate axis at the right."""
    shares = [top.positives / top.rows if top.rows else np.nan for top in values]
    axis.plot(range(len(values)), shares, "o", color=ORANGE, markersize=5, markeredgecolor="white")
    # At least up to twice the mean: otherwise noise would look like a difference.
    axis.set_ylim(0, min(1.1 * float(np.nanmax([*shares, 2 * mean, 1e-3])), 1.05))
    axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.tick_params(colors=ORANGE)
    axis.spines["right"].set_visible(True)


def _numbers(axis: Axes, field: FieldStatistics, before: FieldStatistics | None) -> None:
    """The distribution function, from the quantiles: needs no bin width, and ties are steps."""
    for one, colour, width in ((before, PALE_GREY, 3.0), (field, BLUE, 1.4)):
        if one is not None and one.quantiles:
            share = np.linspace(0, 1, len(one.quantiles))
            axis.step(one.quantiles, share, where="post", color=colour, linewidth=width)
    low, quarter, three_quarters, high = (field.quantiles[i] for i in (0, 25, 75, -1))
    if high - low > 10 * max(three_quarters - quarter, 1.0):
        axis.set_xscale("symlog", linthresh=1.0)
        axis.xaxis.set_major_formatter("{x:g}")  # the default writes formulas
    axis.set_ylim(0, 1.02)
    axis.set_ylabel("rows up to x", fontsize=8)
