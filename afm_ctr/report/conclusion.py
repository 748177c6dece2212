"""The sentence that a report begins with: is the model better than a constant, and was it trained long enough?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afm_ctr.metrics import Interval, mean_interval
from afm_ctr.report.scored import ScoredSplit
from afm_ctr.training import TrainConfig
from afm_ctr.training.verdict import how_trained


def conclusion(
    scored: ScoredSplit | None,
    metrics: Mapping[str, Interval],
    config: TrainConfig,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """One paragraph; empty where there is nothing to judge.

    Args:
        scored: the split; None: there is none.
        metrics: its figures, of :func:`afm_ctr.report.quality.intervals_of`.
        config: of the run.
        history: its epochs.
    """
    parts = [] if scored is None else [_figures(scored, metrics), _against_constant(scored)]
    return " ".join(part for part in (*parts, how_trained(history, config)) if part)


def gain_on_constant(scored: ScoredSplit) -> Interval | None:
    """How much lower the model's loss is than that of the split's mean for every row, over the same rows.

    The loss is log loss, or the squared error under squared loss. None where the mean's loss is not above 0.
    """
    if scored.labels is None or not scored.scores.size:
        return None
    targets, weights = scored.targets, scored.weights.astype(np.float64)
    mean = float(np.average(targets, weights=weights))
    if scored.loss == "squared":
        constant, model = np.square(targets - mean), np.square(targets - scored.predictions)
    elif 0 < mean < 1:
        logits = scored.scores.astype(np.float64)
        constant = np.where(targets == 1, -np.log(mean), -np.log1p(-mean))
        model = np.logaddexp(0.0, np.where(targets == 1, -logits, logits))
    else:
        return None
    return mean_interval(constant - model, weights) if np.average(constant, weights=weights) > 0 else None


def _figures(scored: ScoredSplit, metrics: Mapping[str, Interval]) -> str:
    names = {"auc": "AUC", "log_loss": "log loss"} if scored.loss == "log" else {"auc": "AUC", "rmse": "RMSE"}
    told = [f"{word} {metrics[name].around()}" for name, word in names.items() if name in metrics]
    return f"{' and '.join(told)} on {scored.scores.size:,} rows." if told else ""


def _against_constant(scored: ScoredSplit) -> str:
    gain = gain_on_constant(scored)
    if gain is None or gain.low is None or gain.high is None:
        return ""
    loss = "log loss" if scored.loss == "log" else "mean squared error"
    by = f"{loss} {Interval(abs(gain.value), gain.low, gain.high).around()}"
    if gain.low > 0:
        return f"Better than a constant for all rows, by {by}."
    if gain.high < 0:
        return f"Worse than a constant for all rows, by {by}."
    return f"No better than a constant for all rows, as far as these rows can tell: they differ by {by}."
