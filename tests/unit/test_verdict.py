"""Warnings by the figures of a run."""

from __future__ import annotations

from typing import Any

import pytest

from afm_ctr.training import TrainConfig
from afm_ctr.training.verdict import no_better_than_constant, not_steered, still_improving, warnings_of


def config(metric: str = "auc", **more: Any) -> TrainConfig:
    return TrainConfig.model_validate({"validation": {"split": "valid", "metric": metric}, **more})


@pytest.mark.parametrize(("loss", "says"), [(0.4, False), (0.5, True), (0.6, True)])
def test_a_constant_does_as_well(loss: float, says: bool) -> None:
    found = no_better_than_constant({"log_loss": loss, "constant_log_loss": 0.5}, "test")
    assert (found is not None) is says
    if found is not None:
        assert f"log_loss {loss:.5f} on split 'test', and 0.50000" in found


def test_a_constant_does_as_well_under_squared_loss() -> None:
    assert no_better_than_constant({"rmse": 2.0, "constant_rmse": 1.5}, "test") is not None
    assert no_better_than_constant({"rmse": 1.0, "constant_rmse": 1.5}, "test") is None


@pytest.mark.parametrize("figures", [{}, {"log_loss": 0.3, "constant_log_loss": 0.0}, {"log_loss": None}])
def test_nothing_is_said_of_a_constant_that_is_not_defined(figures: dict[str, Any]) -> None:
    assert no_better_than_constant(figures, "test") is None


@pytest.mark.parametrize(
    ("metric", "values", "says"),
    [
        ("auc", [0.6, 0.7], True),
        ("auc", [0.7, 0.6], False),
        ("auc", [0.6, 0.8, 0.7], False),
        ("auc", [0.6, 0.6], False),
        ("auc", [0.6], False),
        ("auc", [None, None], False),
        ("log_loss", [0.7, 0.6], True),
        ("log_loss", [0.6, 0.7], False),
        ("rmse", [0.5, 0.4, 0.45], False),
    ],
)
def test_the_last_epoch_was_the_best(metric: str, values: list[float | None], says: bool) -> None:
    history = [{f"val_{metric}": value} for value in values]
    assert (still_improving(history, config(metric)) is not None) is says


def test_a_run_without_validation_is_not_judged() -> None:
    settings = TrainConfig.model_validate({"validation": None})
    assert warnings_of(settings, [{"loss": 0.5}]) == []


def test_an_undefined_metric_names_what_is_off_and_what_would_do() -> None:
    settings = config(early_stopping={"patience": 1}, reduce_on_plateau={"patience": 1})
    found = not_steered(settings, {"auc": "all rows are negative"}, {"log_loss": 0.4})
    assert found is not None
    for part in (
        "auc",
        "'valid'",
        "all rows are negative",
        "no best epoch",
        "no early stopping",
        "plateau",
        "log_loss",
    ):
        assert part in found
    assert "early stopping" not in (not_steered(config(), {"auc": "no rows"}, {"log_loss": 0.4}) or "early stopping")


def test_a_split_without_weight_has_no_metric_that_would_do() -> None:
    found = not_steered(config(), {"auc": "no rows", "log_loss": "no rows"}, {"log_loss": None})
    assert found is not None and "would do" not in found and "weight above 0" in found


def test_a_defined_metric_steers() -> None:
    assert not_steered(config("log_loss"), {"auc": "all rows are negative"}, {"log_loss": 0.4}) is None


def test_the_best_epoch_is_judged() -> None:
    bad, good = ({"val_auc": 0.6, "val_log_loss": 0.7}, {"val_auc": 0.7, "val_log_loss": 0.4})
    common = {"val_constant_log_loss": 0.5}
    assert warnings_of(config(), [{**good, **common}, {**bad, **common}]) == []
    (found,) = warnings_of(config(), [{**bad, "val_auc": 0.8, **common}, {**good, **common}])
    assert "no better than a constant" in found
    found = warnings_of(config(), [{"val_auc": None, "val_log_loss": 0.7, **common, "not_steered": "auc is off"}])
    assert found[0] == "auc is off" and "no better" in found[1]
