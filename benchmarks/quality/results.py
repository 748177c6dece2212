"""What a run came to, kept as one JSON file; means, spreads, differences; tables and what they say of the checks."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Check, Dataset
from report import NOTHING, Report

from afm_ctr.metrics import Evaluation

TITLES = {"auc": "AUC", "log_loss": "log loss", "accuracy": "accuracy", "recall": "recall"}
Results = Mapping[str, Sequence[dict[str, Any]]]  # of each model, one for each seed


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def figures(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Exact metrics of a split: ours, whoever made the scores. Accuracy and recall are at a probability of 0.5."""
    evaluation = Evaluation("log", "binary")
    evaluation.update(labels, logits)
    found = evaluation.result()
    chosen, positive = np.asarray(logits) >= 0, labels == 1
    counted = {"accuracy": float((chosen == positive).mean()), "recall": float(chosen[positive].mean())}
    return {name: found[name] for name in ("auc", "log_loss", "calibration")} | counted


def read_logits(file: Path) -> np.ndarray:
    with np.load(file) as stored:
        return stored["logits"]


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".tmp-{file.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(file)


class Spread(NamedTuple):
    """Mean, standard deviation (NaN of one value) and number of values."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.4f}")


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Of the means, and its standard error after Welch: a seed pairs nothing between two programs or two models."""
    first, second = Spread.of(one), Spread.of(other)
    variance = first.deviation**2 / first.count + second.deviation**2 / second.count
    return first.mean - second.mean, math.sqrt(variance)


def values(results: Results, model: str, metric: str, split: str) -> list[float]:
    return [one["metrics"][split][metric] for one in results.get(model, ()) if split in one["metrics"]]


def verdict(check: Check, results: Results, split: str) -> tuple[str, str, bool | None]:
    """What was asked, what was found, and whether it is met; None where a model has no results."""
    title = f"{check.model}, {TITLES[check.metric]}"
    better = 1.0 if check.sign == ">=" else -1.0
    mine = values(results, check.model, check.metric, split)
    sign = {">=": "≥", "<=": "≤"}[check.sign]
    if check.value is not None:
        asked = f"{title} {sign} {check.value:.4f}"
        if not mine:
            return asked, NOTHING, None
        return asked, str(Spread.of(mine)), better * (Spread.of(mine).mean - check.value) >= 0
    assert check.other is not None
    theirs = values(results, check.other, check.metric, split)
    allowed = "2 standard errors" if check.margin is None else f"{check.margin:g}"
    asked = f"{title} not worse than that of {check.other} by more than {allowed}"
    if not mine or not theirs:
        return asked, NOTHING, None
    apart, error = difference(mine, theirs)
    found = f"{apart:+.4f}" + ("" if math.isnan(error) else f" (standard error {error:.4f})")
    margin = 2 * error if check.margin is None else check.margin
    return asked, found, None if math.isnan(margin) else better * apart >= -margin


def table_of_models(name: str, dataset: Dataset, results: Results, titles: Mapping[str, str], split: str) -> Report:
    """Mean and standard deviation over the seeds, a line a model, of one split."""
    columns = ["", "seeds", *(TITLES[metric] for metric in dataset.metrics), "epochs", "best", "seconds a run"]
    report = Report(f"{name}, split {split}, mean ± standard deviation over the seeds", columns)
    for model, title in titles.items():
        if not values(results, model, "auc", split):
            continue
        runs = results[model]
        cells = [str(Spread.of(values(results, model, metric, split))) for metric in dataset.metrics]
        counts = [_mean(run.get(key) for run in runs) for key in ("epochs", "best_epoch", "seconds")]
        report.rows.append([title, str(len(runs)), *cells, *counts])
    return report


def _mean(numbers: Any) -> str:
    known = [number for number in numbers if number is not None]
    return f"{statistics.fmean(known):.0f}" if known else NOTHING


def table_of_differences(pairs: Sequence[tuple[str, str]], results: Results, split: str) -> Report:
    """How far apart the mean AUCs of two models are."""
    columns = ["", "difference of AUC", "standard error", "difference / error"]
    report = Report(f"Differences, split {split}", columns)
    for one, other in pairs:
        mine, theirs = (values(results, model, "auc", split) for model in (one, other))
        if mine and theirs:
            apart, error = difference(mine, theirs)
            measured = (
                [NOTHING, NOTHING] if math.isnan(error) else [f"{error:.5f}", f"{apart / max(error, 1e-12):+.1f}"]
            )
            report.rows.append([f"{one} − {other}", f"{apart:+.5f}", *measured])
    report.notes.append("Standard errors are Welch's: a seed pairs nothing between two programs or two models.")
    return report


def table_of_checks(dataset: Dataset, results: Results, split: str) -> tuple[Report, bool]:
    """Pass or fail of everything that is asked, and whether all of it is met."""
    report = Report(f"Aims, split {split}", ["", "found", ""])
    met = True
    for check in dataset.checks:
        asked, found, passed = verdict(check, results, split)
        report.rows.append([asked, found, {True: "met", False: "not met", None: "not known"}[passed]])
        met &= passed is True
    return report, met
