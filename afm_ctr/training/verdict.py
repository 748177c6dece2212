"""Warnings about a trained model, from the figures of a run, each one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afm_ctr.io.files import read_json_lines
from afm_ctr.training.callbacks import improves
from afm_ctr.training.config import BY_LOSS, TrainConfig
from afm_ctr.training.model_io import HISTORY


def no_better_than_constant(figures: Mapping[str, Any], split: str) -> str | None:
    """A warning if a single number for all rows reaches the model's loss; None: it does not, or it is undefined."""
    for name in BY_LOSS.values():
        value, constant = figures.get(name), figures.get(f"constant_{name}")
        if value is None or not constant or value < constant:
            continue
        return (
            f"the model is no better than a constant: {name} {value:.5f} on split {split!r}, and {constant:.5f} if "
            "every row is given the split's mean; train for more epochs, try another optimizer.learning_rate, or "
            "look at the fields"
        )
    return None


def still_improving(history: Sequence[Mapping[str, Any]], config: TrainConfig) -> str | None:
    """A warning if the last epoch of a run of two or more was its best; None otherwise."""
    if config.validation is None:
        return None
    metric, direction = config.validation.metric, config.validation.direction
    values = [one[f"val_{metric}"] for one in history if one.get(f"val_{metric}") is not None]
    if len(values) < 2:
        return None
    before = max(values[:-1]) if direction == "max" else min(values[:-1])
    if not improves(values[-1], before, direction):
        return None
    return (
        f"the model was still improving in its last epoch: val_{metric} {values[-1]:.6f} after {before:.6f}; more "
        "epochs are likely to help (the same command with a larger `epochs` continues the run)"
    )


def how_trained(history: Sequence[Mapping[str, Any]], config: TrainConfig) -> str:
    """Whether more epochs, or fewer, would have been better; empty if the history does not show it."""
    if config.validation is None:
        return ""
    metric, direction = f"val_{config.validation.metric}", config.validation.direction
    valued = [one for one in history if one.get(metric) is not None]
    if len(valued) < 2:
        return ""
    if still_improving(history, config) is not None:
        return f"Under-trained: {metric} was still improving in the last of {len(valued)} epochs."
    best = (max if direction == "max" else min)(valued, key=lambda one: float(one[metric]))
    place, last = valued.index(best) + 1, valued[-1]
    if place < len(valued) and last["loss"] < best["loss"]:
        return (
            f"Over-trained after epoch {place} of {len(valued)}: the training loss fell further, "
            f"{best['loss']:.4f} to {last['loss']:.4f}, and {metric} got worse, {best[metric]:.4f} to "
            f"{last[metric]:.4f}."
        )
    return f"Trained long enough: {metric} was best in epoch {place} of {len(valued)}."


def not_steered(config: TrainConfig, reasons: Mapping[str, str], figures: Mapping[str, Any]) -> str | None:
    """A warning if the validation metric is undefined, with one that would do; None: it is defined."""
    if config.validation is None or config.validation.metric not in reasons:
        return None
    split, metric = config.validation.split, config.validation.metric
    off = ["no best epoch (the latest checkpoint is evaluated and exported)"]
    off += ["no early stopping"] * (config.early_stopping is not None)
    off += ["no lower learning rate on a plateau"] * (config.reduce_on_plateau is not None)
    other = BY_LOSS[config.loss]
    remedy = (
        f"validation.metric: {other} would do"
        if figures.get(other) is not None
        else "take a split with labelled rows of a weight above 0"
    )
    return f"{metric} is not defined on split {split!r} ({reasons[metric]}): {', '.join(off)}; {remedy}"


def warnings_of(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> list[str]:
    """All warnings from the history of a run: at its best epoch, or the last one if none is best."""
    if config.validation is None or not history:
        return []
    key, best = f"val_{config.validation.metric}", max if config.validation.direction == "max" else min
    valued = [one for one in history if one.get(key) is not None]
    judged = best(valued, key=lambda one: float(one[key])) if valued else history[-1]
    figures = {name.removeprefix("val_"): value for name, value in judged.items() if name.startswith("val_")}
    found = [history[-1].get("not_steered"), no_better_than_constant(figures, config.validation.split)]
    return [text for text in (*found, still_improving(history, config)) if text is not None]


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The epochs in a run's folder, so far. Raises UserError: the file is damaged."""
    path = folder / HISTORY
    return read_json_lines(path) if path.is_file() else []
