"""The sections of a report on the model's quality: metrics, calibration, scores, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from afm_ctr.metrics import CalibrationBin, Interval, effective_rows, mean_interval, ratio_interval, wilson
from afm_ctr.report import figures
from afm_ctr.report.about import number
from afm_ctr.report.baseline import Baseline
from afm_ctr.report.scored import ScoredSplit, root
from afm_ctr.report.slices import MOST, Slice
from afm_ctr.webpage import Page

LEAST = 30  # minimum rows of either class (or rows, if labels are real) of a slice in the plot
_IN_PICTURE = 10

_WORDS = {
    "auc": "AUC",
    "group_auc": "group AUC",
    "log_loss": "log loss",
    "constant_log_loss": "log loss of a constant: the split's share of positives",
    "normalised_entropy": "normalised entropy: log loss / that of the constant",
    "rmse": "RMSE",
    "constant_rmse": "RMSE of a constant: the split's mean",
    "accuracy": "accuracy",
    "calibration": "calibration: predicted / observed",
    "ece": "expected calibration error",
    "positive_rate": "share of positives",
}

_WITHOUT_INTERVAL = ("constant_log_loss", "normalised_entropy", "constant_rmse", "ece")


def intervals_of(scored: ScoredSplit) -> dict[str, Interval]:
    """Every defined metric of the split, with its interval if it has one.

    Values are those of ``evaluate``; accuracy, which it does not report, is the share of rows on the right side of
    probability 0.5, or of score 0.
    """
    figures_ = scored.figures or {}
    found: dict[str, Interval | None] = {}
    predictions, targets, weights = scored.predictions, scored.targets, scored.weights.astype(np.float64)
    found["rmse"] = root(mean_interval(np.square(predictions - targets), weights))
    if scored.label_kind == "binary":
        found["auc"] = scored.quality()[0]
        found["group_auc"] = scored.group_interval
        middle = 0.5 if scored.loss == "log" else 0.0
        found["accuracy"] = mean_interval((predictions >= middle) == (targets > middle), weights)
        share = figures_.get("positive_rate")
        found["positive_rate"] = None if share is None else wilson(share, effective_rows(weights))
    if scored.loss == "log":
        found["log_loss"] = mean_interval(scored.losses, weights)
        found["calibration"] = ratio_interval(weights * predictions, weights * targets)
    for name in _WITHOUT_INTERVAL:
        value = figures_.get(name)
        found[name] = None if value is None else Interval(value, None, None)
    # The exact values that evaluate prints.
    return {
        name: interval if figures_.get(name) is None else interval._replace(value=figures_[name])
        for name in _WORDS
        if (interval := found.get(name)) is not None
    }


def shown(interval: Interval | None, decimals: int | None = None) -> list[str | None]:
    """A value and its interval as two cells of a table, with as many decimals as the interval supports."""
    if interval is None:
        return [None, None]
    places = interval.decimals if decimals is None else decimals
    ends = "" if interval.low is None else f"{number(interval.low, places)} to {number(interval.high, places)}"
    return [number(interval.value, places), ends]


def shown_all(found: Mapping[str, Interval]) -> dict[str, list[str | None]]:
    """:func:`shown` of every metric; a constant's has the decimals of the metric that it is compared with."""
    decimals = {f"constant_{name}": found[name].decimals for name in ("log_loss", "rmse") if name in found}
    return {name: shown(interval, decimals.get(name)) for name, interval in found.items()}


def add_metrics(page: Page, scored: ScoredSplit, found: dict[str, Interval]) -> None:
    """The table of metrics, from :func:`intervals_of`."""
    page.section("Metrics")
    rows = scored.scores.size
    if scored.labels is None:
        page.paragraph(f"The split has no labels: {rows:,} rows were scored, but cannot be evaluated.")
        return
    page.table(
        ["metric", "value", "95 % interval"],
        [[_WORDS[name], *cells] for name, cells in shown_all(found).items()],
        caption=f"{rows:,} rows" + ("" if (scored.weights == 1).all() else ", weighted"),
        numeric=["value", "95 % interval"],
    )
    figures_ = scored.figures or {}
    for name, reason in figures_.get("reasons", {}).items():
        page.paragraph(f"{_WORDS[name]} is not defined: {reason}.")
    if "group_auc" in found:
        page.paragraph(
            f"Group AUC: {figures_['groups_used']:,} groups with both classes; {figures_['groups_left_out']:,} with "
            f"one, and {figures_['rows_without_group']:,} rows without a group, are left out."
        )
    elif scored.label_kind == "binary" and "group_auc" not in figures_:
        page.paragraph("No group AUC: the schema names no group column.")
    if scored.loss == "squared":
        page.paragraph(
            "The model was trained on squared loss and gives scores, not probabilities: there is no log loss and no "
            "calibration." + (" RMSE is on the scale of -1 and 1." if scored.label_kind == "binary" else "")
        )
    page.paragraph(
        "Intervals say how far the figure may be off because this split is a sample, of rows that are independent; "
        "what another seed of the training would change is not in them."
    )


def add_baseline(page: Page, scored: ScoredSplit, baseline: Baseline) -> None:
    """Both runs' metrics side by side, and their differences over the same rows."""
    page.heading(f"Compared with {baseline.name}")
    rows = [("AUC", scored.quality()[0], baseline.scored.quality()[0], baseline.auc_gain, 1)]
    if scored.label_kind == "real":
        rows = []
    own, other = (mean_interval(one.losses, one.weights) for one in (scored, baseline.scored))
    rows.append(("log loss" if scored.loss == "log" else "mean squared error", own, other, baseline.loss_gain, -1))
    page.table(
        ["metric", "this run", "baseline", "difference", "95 % interval"],
        [
            [name, *(number(one.value, gain.decimals) for one in (mine, its)), *shown(_signed(gain, sign))]
            for name, mine, its, gain, sign in rows
            if mine is not None and its is not None and gain is not None
        ],
        numeric=["this run", "baseline", "difference", "95 % interval"],
    )
    page.paragraph(
        f"The baseline's {baseline.checkpoint} scored the same {scored.scores.size:,} rows. Intervals are of the "
        "differences row by row: what rows have in common for both runs is not in them."
    )


def _signed(gain: Interval, sign: int) -> Interval:
    """A gain as the difference of the values: a lower loss is a gain."""
    if sign > 0 or gain.low is None or gain.high is None:
        return gain._replace(value=sign * gain.value)
    return Interval(-gain.value, -gain.high, -gain.low)


def calibration_points(scored: ScoredSplit) -> list[tuple[CalibrationBin, Interval, int]]:
    """The bins of ``evaluate``'s calibration curve with Wilson's interval of the observed share, and their rows."""
    bins = [CalibrationBin(**point) for point in (scored.figures or {}).get("calibration_curve", [])]
    predictions, weights = scored.predictions, scored.weights.astype(np.float64)
    place = np.searchsorted([point.high for point in bins], predictions)
    mine = [place == number for number in range(len(bins))]
    return [
        (point, wilson(point.observed, effective_rows(weights[rows])), int(rows.sum()))
        for point, rows in zip(bins, mine, strict=True)
    ]


def add_calibration(page: Page, scored: ScoredSplit) -> None:
    """Predicted against observed shares, and the distribution of the scores."""
    page.section("Calibration")
    what = "probability" if scored.loss == "log" else "score"
    if scored.loss == "log" and scored.labels is not None and scored.scores.size:
        points = calibration_points(scored)
        page.figure(
            figures.calibration(points),
            "Bins of nearly equal weight, rows sorted by prediction.",
            "observed share of positives against mean prediction by bin; the figures are in the table below",
        )
        header = ["predictions", "rows", "their mean", "observed", "95 % interval"]
        page.table(
            header,
            [
                [
                    f"{number(point.low, 4)} to {number(point.high, 4)}",
                    number(rows),
                    number(point.predicted, 4),
                    *shown(interval),
                ]
                for point, interval, rows in points
            ],
            numeric=header,
        )
    elif scored.labels is None:
        page.paragraph("The split has no labels: predictions cannot be compared with what happened.")
    elif not scored.scores.size:
        page.paragraph("Every row of the split has weight 0: nothing can be judged.")
    else:
        page.paragraph("Scores of squared loss are not probabilities: there is nothing to calibrate.")
    page.heading("Spread of the predictions")
    labels = scored.labels if scored.label_kind == "binary" else None
    page.figure(
        figures.histogram(scored.predictions, labels, f"predicted {what}", scored.weights),
        "Each class as shares of its own rows." if labels is not None else "Shares of all rows.",
        f"histogram of the predicted {what}",
    )


def add_slices(page: Page, scored: ScoredSplit, slices: dict[str, list[Slice]], named: bool) -> None:
    """A plot of the worst and best slices, and one table per field."""
    real = scored.label_kind == "real"
    measure = "RMSE" if real else "AUC"
    page.section(f"{measure} by field", _slices_note(scored))
    if scored.labels is not None:
        _add_dots(page, scored, [one for of_field in slices.values() for one in of_field], measure)
    else:
        page.paragraph("The split has no labels: the slices show the mean prediction only.")
    header = ["value", "rows", "positive", measure, "95 % interval", "mean prediction", "observed"]
    if real or scored.labels is None:
        header.remove("positive")
    for field, of_field in slices.items():
        page.table(
            header,
            [_row(one, "positive" in header) for one in of_field],
            caption=_caption(field, of_field, measure),
            numeric=header[1:],
            folded=not named,
        )


def _slices_note(scored: ScoredSplit) -> str:
    sampled, rows = scored.sampled.size, scored.scores.size
    some = (
        "" if sampled == rows else f" Of {rows:,} rows every {-(-rows // max(sampled, 1))}th was taken: {sampled:,}."
    )
    return (
        f"By the {MOST} most frequent values of a field, or about {MOST} groups of equally many rows of a number. A "
        "row with several values is in several slices. Of a hash only its number is known, not the text. Mean "
        f"prediction and what was observed are weighted. Intervals of few rows are rough.{some}"
    )


def _row(one: Slice, positives: bool) -> list[str | None]:
    value, ends = shown(one.quality)
    return [
        one.name,
        number(one.rows),
        *([number(one.positives)] if positives else []),
        value or one.why_not,
        ends,
        number(one.predicted, 4),
        number(one.observed, 4),
    ]


def _caption(field: str, slices: Sequence[Slice], measure: str) -> str:
    known = [one.quality.value for one in slices if one.quality and _is_large(one)]
    spread = f", {measure} {min(known):.4f} to {max(known):.4f}" if len(known) > 1 else ""
    return f"{field}: {len(slices)} slice{'s' if len(slices) != 1 else ''}{spread}"


def _add_dots(page: Page, scored: ScoredSplit, slices: Sequence[Slice], measure: str) -> None:
    overall, why_not = scored.quality()
    if overall is None:
        page.paragraph(f"{measure} is not defined on this split: {why_not}.")
        return
    known = [one for one in slices if _is_large(one)]
    if len(known) < 2:
        page.paragraph(f"Too few slices have {LEAST} rows of each class for a picture.")
        return
    low_is_bad = measure == "AUC"
    known.sort(key=lambda one: one.quality.value if one.quality else 0.0, reverse=not low_is_bad)
    most = min(_IN_PICTURE, len(known) // 2)
    apart = sum(_is_apart(one, overall) for one in known)
    page.figure(
        figures.dots([("worst slices", known[:most]), ("best slices", known[::-1][:most])], overall.value, measure),
        f"The {most} worst and best of {len(known):,} slices that have {LEAST} rows "
        f"{'or more' if measure == 'RMSE' else 'of either class'} (rows in brackets). Of that many slices the ends "
        f"look far apart by mere chance: the interval of {apart:,} leaves out the {measure} of all rows, and chance "
        f"would give about {0.05 * len(known):.0f}.",
        f"dots: {measure} of the worst and best slices with intervals; the figures are in the tables below",
    )


def _is_large(one: Slice) -> bool:
    if one.quality is None or one.quality.low is None:
        return False
    return (one.rows if one.positives is None else min(one.positives, one.rows - one.positives)) >= LEAST


def _is_apart(one: Slice, overall: Interval) -> bool:
    assert one.quality is not None and one.quality.low is not None and one.quality.high is not None
    return not one.quality.low <= overall.value <= one.quality.high
