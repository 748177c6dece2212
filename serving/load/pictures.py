"""Plots of a load test."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from afm_ctr.plots import BLUE, ORANGE, RED, panels, styled
from serving.load.measurements import QUANTILES, Limit, Result, quantile


@styled
def histogram(result: Result, limits: Sequence[Limit], title: str) -> Figure:
    """Latencies on a logarithmic scale, with the quantiles and the limits as lines."""
    edges, counts = result.histogram()
    figure, (axes,) = panels(8, 4.2)
    axes.bar(edges[:-1], counts, width=edges[1:] - edges[:-1], align="edge", color=BLUE, alpha=0.85)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")  # the default writes formulas
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("requests")
    top = axes.get_ylim()[1]
    for place, percent in enumerate(QUANTILES):
        if result.answered:
            value = quantile(result.latencies_ms, percent)
            axes.axvline(value, color="black", linewidth=0.7, linestyle=":")
            axes.annotate(
                f"p{percent:g} {value:.3g}", (value, top * (0.97 - 0.06 * place)), fontsize=8, ha="left", va="top"
            )
    for limit in limits:
        axes.axvline(limit.limit_ms, color=RED, linewidth=1.2, label=str(limit))
    if limits:
        axes.legend(loc="center right")
    figure.suptitle(title)
    return figure


@styled
def latency_by_rate(tried: Sequence[tuple[Result, bool]], limits: Sequence[Limit], title: str) -> Figure:
    """Quantiles against the rate, both logarithmic; quantiles among failed requests are left out."""
    ordered = sorted(tried, key=lambda pair: pair[0].asked)
    figure, (axes,) = panels(8, 4.6)
    percents = sorted({50.0, *(limit.percent for limit in limits)})
    for percent in percents:
        points = _points([result for result, _ in ordered], percent)
        if points:
            axes.plot(*zip(*points, strict=True), linewidth=1, label=f"p{percent:g}")
    for kept, colour, label in ((True, BLUE, "holds"), (False, ORANGE, "missed")):
        points = _points([result for result, holds in ordered if holds == kept], percents[-1])
        if points:
            axes.scatter(*zip(*points, strict=True), color=colour, zorder=3, label=label)
    for limit in limits:
        axes.axhline(limit.limit_ms, color=RED, linewidth=1, linestyle="--", label=str(limit))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel("rate, requests/s")
    axes.set_ylabel("latency, ms")
    axes.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def _points(results: Sequence[Result], percent: float) -> list[tuple[float, float]]:
    values = [(result.asked, result.quantile_ms(percent)) for result in results]
    return [(rate, value) for rate, value in values if value is not None]
