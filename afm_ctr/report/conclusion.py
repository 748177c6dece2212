"""The first sentences of a report: is the model better than others, and was it trained long enough?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afm_ctr.metrics import Interval, gain_on_constant
from afm_ctr.report.baseline import Baseline
from afm_ctr.report.scored import ScoredSplit
from afm_ctr.training import TrainConfig
from afm_ctr.training.verdict import how_trained

_LOSS_NAMES = {"log": "log loss", "squared": "mean squared error"}


def conclusion(
    scored: ScoredSplit | None,
    metrics: Mapping[str, Interval],
    config: TrainConfig,
    history: Sequence[Mapping[str, Any]],
    baseline: Baseline | None = None,
) -> str:
    """One paragraph; empty without anything to judge.

    Args:
        scored: the scored split, if there is one.
        metrics: its metrics, from :func:`afm_ctr.report.quality.intervals_of`.
    """
    parts = []
    if scored is not None and scored.labels is not None:
        gain = gain_on_constant(scored.loss, scored.targets, scored.scores, scored.weights)
        parts = [_figures(scored, metrics), compared(gain, scored.loss, "a constant for all rows")]
        if baseline is not None:
            parts.append(compared(baseline.loss_gain, scored.loss, baseline.name))
    return " ".join(part for part in (*parts, how_trained(history, config)) if part)


def compared(gain: Interval | None, loss: str, other: str) -> str:
    """Whether the model is better than another by its loss; empty if the rows do not show it."""
    if gain is None or gain.low is None or gain.high is None:
        return f"The same {_LOSS_NAMES[loss]} as {other} on every row." if gain is not None and not gain.value else ""
    by = f"by {_LOSS_NAMES[loss]} {gain._replace(value=abs(gain.value)).around()}"
    if gain.low > 0:
        return f"Better than {other}, {by}."
    if gain.high < 0:
        return f"Worse than {other}, {by}."
    return f"No better than {other}, as far as these rows can tell: they differ {by}."


def _figures(scored: ScoredSplit, metrics: Mapping[str, Interval]) -> str:
    names = {"auc": "AUC", "log_loss": "log loss"} if scored.loss == "log" else {"auc": "AUC", "rmse": "RMSE"}
    known = [f"{word} {metrics[name].around()}" for name, word in names.items() if name in metrics]
    return f"{' and '.join(known)} on {scored.scores.size:,} rows." if known else ""
