"""Plots of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from afm_ctr.metrics import CalibrationBin, Interval
from afm_ctr.plots import BLUE, GREY, ORANGE, panels, styled
from afm_ctr.report.slices import Slice
from afm_ctr.visible import short

_LONGEST = 46  # characters of a slice's name


class Curve(NamedTuple):
    """A key of the history, with its label and colour."""

    key: str
    label: str
    colour: str = BLUE


PANELS: tuple[tuple[str, tuple[Curve, ...]], ...] = (
    ("loss", (Curve("loss", "training"), Curve("val_log_loss", "validation (log loss)", ORANGE))),
    ("AUC, validation", (Curve("val_auc", "AUC"), Curve("val_group_auc", "group AUC", ORANGE))),
    ("RMSE, validation", (Curve("val_rmse", "RMSE"),)),
    ("calibration, validation", (Curve("val_calibration", "predicted / observed"),)),
    ("learning rate", (Curve("learning_rate", "learning rate"),)),
    ("training speed", (Curve("rows_per_second", "rows a second"),)),
)


@styled
def curves(history: Sequence[dict[str, Any]], best_epoch: int | None) -> Figure:
    """One panel per metric of the history, by epoch; the best epoch is marked."""
    shown = [
        (title, drawn)
        for title, all_curves in PANELS
        if (drawn := [curve for curve in all_curves if any(one.get(curve.key) is not None for one in history)])
    ]
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure, axes = panels(3.8 * across, 2.7 * down, down, across)
    for axis, (title, drawn) in zip(axes, shown, strict=False):
        for curve in drawn:
            points = [(one["epoch"] + 1, one[curve.key]) for one in history if one.get(curve.key) is not None]
            axis.plot(*zip(*points, strict=True), "o-", color=curve.colour, markersize=3.5, label=curve.label)
        if best_epoch is not None:
            axis.axvline(best_epoch + 1, color=GREY, linestyle="--", linewidth=1, label="best epoch")
        if len(drawn) > 1 or (best_epoch is not None and axis is axes[0]):
            axis.legend()
        axis.set_title(title)
        axis.set_xlim(0.5, history[-1]["epoch"] + 1.5)
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.ticklabel_format(axis="y", useOffset=False)
        if title in ("learning rate", "training speed"):
            axis.set_ylim(bottom=0)
        if title == "training speed":
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axis in axes[len(shown) :]:
        axis.axis("off")
    figure.supxlabel("epoch", fontsize=10)
    return figure


@styled
def calibration(points: Sequence[tuple[CalibrationBin, Interval, int]]) -> Figure:
    """Observed against predicted shares, one dot per bin with its interval."""
    predicted = np.array([point.predicted for point, _, _ in points])
    observed = np.array([point.observed for point, _, _ in points])
    low = np.array([interval.value if interval.low is None else interval.low for _, interval, _ in points])
    high = np.array([interval.value if interval.high is None else interval.high for _, interval, _ in points])
    figure, (axis,) = panels(5.6, 4.6)
    top = min(1.0, 1.05 * max(float(high.max()), float(predicted.max())))
    axis.plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1, label="predicted = observed")
    axis.errorbar(
        predicted, observed, [np.maximum(observed - low, 0), np.maximum(high - observed, 0)], fmt="o", color=BLUE,
        markersize=5, capsize=3, label="bin, with 95 % interval",
    )  # fmt: skip
    axis.set_xlim(0, top)
    axis.set_ylim(0, top)
    axis.set_xlabel("mean prediction of the bin")
    axis.set_ylabel("observed share of positives")
    axis.legend(loc="upper left")
    return figure


@styled
def histogram(predictions: np.ndarray, labels: np.ndarray | None, name: str, weights: np.ndarray) -> Figure:
    """Distribution of the predictions; by class if labels are 0 and 1, as shares of the class's rows."""
    figure, (axis,) = panels(5.6, 3.4)
    # Rounded: NumPy cannot make bins for numbers that differ in their last bit only.
    bins = np.histogram_bin_edges(np.round(predictions, 12), 40) if predictions.size else np.array([0.0, 1.0])
    parts = [("all rows", np.ones(predictions.size, bool), BLUE)]
    if labels is not None:
        parts = [("label 0", labels == 0, BLUE), ("label 1", labels == 1, ORANGE)]
    for label, rows, colour in parts:
        if rows.any():
            shares = weights[rows] / weights[rows].sum()
            axis.hist(predictions[rows], bins.tolist(), weights=shares, color=colour, alpha=0.55, label=label)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel(name)
    axis.set_ylabel("share of the rows")
    axis.legend()
    return figure


@styled
def dots(groups: Sequence[tuple[str, Sequence[Slice]]], overall: float, measure: str) -> Figure:
    """Slices with an interval as dots, one panel per group, with a line at the value of all rows."""
    count = max(len(slices) for _, slices in groups)
    figure, axes = panels(11, 0.27 * count * len(groups) + 1.6, len(groups), sharex=True)
    for axis, (title, slices) in zip(axes, groups, strict=True):
        values, low, high = np.array([one.quality[:3] for one in slices if one.quality is not None], float).T
        places = np.arange(len(values))
        axis.axvline(overall, color=GREY, linestyle="--", linewidth=1)
        axis.errorbar(
            values, places, xerr=[values - low, high - values], fmt="o", color=BLUE, markersize=4, capsize=2
        )
        axis.set_yticks(places, [short(f"{one.field}: {one.name}", _LONGEST) + f" ({one.rows:,})" for one in slices])
        axis.set_ylim(len(values) - 0.5, -0.5)
        axis.set_title(title, loc="left")
        axis.grid(axis="x", linewidth=0.3)
    axes[-1].set_xlabel(f"{measure} with 95 % interval; dashed: all rows")
    return figure
