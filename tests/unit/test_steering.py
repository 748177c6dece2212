"""What goes by the figures of an epoch: best, early stopping, plateau; both directions, to the last step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afm_ctr.training import TrainConfig
from afm_ctr.training.callbacks import BestSoFar, EarlyStopping, EpochHistory, ReduceOnPlateau, deciders, improves

MAX = [0.50, 0.60, 0.6001, 0.59]
MIN = [-value for value in MAX]


def run(callback: Any, values: list[float | None], rate: float = 1.0) -> list[float]:
    """The learning rates after each epoch of a run that ends when it is told to."""
    callback.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=rate), stop_training=False))
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"m": value})
        rates.append(callback.model.optimizer.learning_rate)
        if callback.model.stop_training:
            break
    return rates


@pytest.mark.parametrize(("direction", "sign"), [("max", 1), ("min", -1)])
@pytest.mark.parametrize("min_delta", [0.0, 0.05])
def test_an_improvement_is_larger_than_min_delta(direction: Any, sign: int, min_delta: float) -> None:
    assert improves(0.6, None, direction, min_delta)
    for gain in (-0.06, -0.02, 0.0, 0.02, 0.06):
        assert improves(0.6 + sign * gain, 0.6, direction, min_delta) is (gain > min_delta)


@pytest.mark.parametrize(("direction", "values"), [("max", MAX), ("min", MIN)])
@pytest.mark.parametrize(("min_delta", "epochs"), [(0.0, 4), (0.01, 3), (0.2, 2)])
def test_early_stopping_counts_a_small_gain_as_none(
    direction: Any, values: list[float | None], min_delta: float, epochs: int
) -> None:
    callback = EarlyStopping("m", direction, patience=1, min_delta=min_delta)
    assert len(run(callback, values)) == epochs
    assert callback.exhausted


@pytest.mark.parametrize(("direction", "values"), [("max", MAX), ("min", MIN)])
@pytest.mark.parametrize(
    ("min_delta", "rates"),
    [(0.0, [1, 1, 1, 0.5]), (0.01, [1, 1, 0.5, 0.25]), (0.2, [1, 0.5, 0.25, 0.125])],
)
def test_a_plateau_counts_a_small_gain_as_none(
    direction: Any, values: list[float | None], min_delta: float, rates: list[float]
) -> None:
    callback = ReduceOnPlateau("m", direction, factor=0.5, patience=1, min_delta=min_delta)
    assert run(callback, values) == rates


@pytest.mark.parametrize(
    ("losses", "rates"),
    [
        ([0.5, 0.4, 0.3, 0.2], [1, 1, 1, 1]),  # the metric wavers, the loss falls
        ([0.5, 0.5, 0.4, 0.4, 0.4], [1, 1, 1, 1, 0.5]),
        ([0.5, 0.45, 0.6, 0.6], [1, 1, 1, 0.5]),
        ([0.5, None, 0.6, 0.6], [1, 1, 0.5, 0.5]),
        ([0.5, 0.499, 0.498, 0.497], [1, 1, 0.5, 0.5]),  # less than min_delta
    ],
)
def test_no_plateau_while_the_loss_improves(losses: list[float | None], rates: list[float]) -> None:
    callback = ReduceOnPlateau("auc", "max", factor=0.5, patience=2, min_delta=0.01, loss="loss")
    callback.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=1.0)))
    found = []
    for epoch, loss in enumerate(losses):
        state = json.loads(json.dumps(callback.get_state()))  # a run that resumes after each epoch
        callback.best = callback.best_loss = None
        callback.set_state(state)
        callback.on_epoch_end(epoch, {"auc": 0.9 - 0.1 * epoch, "loss": loss})
        found.append(callback.model.optimizer.learning_rate)
    assert found == rates


@pytest.mark.parametrize(("kind", "metric"), [("log", "val_log_loss"), ("squared", "val_rmse")])
def test_the_loss_that_holds_a_plateau_off(kind: str, metric: str) -> None:
    config = TrainConfig.model_validate({"loss": kind, "reduce_on_plateau": {}, "early_stopping": {}})
    chosen = deciders(config)
    assert chosen["reduce_on_plateau"].loss == metric
    for epoch, loss in enumerate([0.5, 0.4, 0.3]):
        for callback in chosen.values():
            callback.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=1.0), stop_training=False))
            callback.on_epoch_end(epoch, {"val_auc": 0.6, metric: loss})
    assert chosen["reduce_on_plateau"].wait == 0 and chosen["early_stopping"].wait == 2


def test_a_plateau_takes_the_state_of_an_earlier_checkpoint() -> None:
    callback = ReduceOnPlateau("auc", "max", factor=0.5, patience=2, loss="loss")
    callback.set_state({"best": 0.7, "wait": 1})
    assert (callback.best, callback.wait, callback.best_loss) == (0.7, 1, None)


def test_a_fresh_plateau_has_not_waited() -> None:
    """A first value that is no gain over nothing, such as NaN, counts as one epoch of waiting."""
    assert ReduceOnPlateau("m", "max", factor=0.5, patience=2).wait == 0


def test_a_plateau_waits_anew_after_it_has_lowered_the_rate() -> None:
    callback = ReduceOnPlateau("m", "max", factor=0.5, patience=2)
    assert run(callback, [0.5, 0.4, 0.4, 0.4, 0.4, 0.6, 0.5, 0.5]) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_a_gain_ends_the_wait_of_a_plateau() -> None:
    callback = ReduceOnPlateau("m", "min", factor=0.5, patience=2)
    assert run(callback, [0.5, 0.6, 0.4, 0.5, 0.45]) == [1, 1, 1, 1, 0.5]


def test_the_rate_stays_above_its_floor_and_never_rises() -> None:
    values: list[float | None] = [0.5, 0.5, 0.5, 0.5]
    assert run(ReduceOnPlateau("m", "max", 0.5, 1, min_learning_rate=0.3), values) == [1, 0.5, 0.3, 0.3]
    assert run(ReduceOnPlateau("m", "max", 0.5, 1, min_learning_rate=0.3), values, rate=0.2) == [0.2, 0.2, 0.2, 0.2]


def test_an_epoch_without_the_metric_does_not_count() -> None:
    early = EarlyStopping("m", "max", patience=2)
    assert len(run(early, [0.5, None, 0.4, None, None, 0.4, 0.4])) == 6


@pytest.mark.parametrize(("direction", "values", "best"), [("max", MAX, 0.6001), ("min", MIN, -0.6001)])
def test_the_best_epoch_needs_no_margin(direction: Any, values: list[float | None], best: float) -> None:
    callback = BestSoFar("m", direction)
    run(callback, values)
    assert (callback.value, callback.epoch, callback.improved) == (best, 2, False)


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceOnPlateau])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_state_taken_up_decides_alike(kind: Any, cut: int) -> None:
    options: dict[str, Any] = {"patience": 2, "min_delta": 0.05}
    options |= {"factor": 0.5} if kind is ReduceOnPlateau else {}
    values: list[float | None] = [0.5, 0.52, 0.56, 0.57, 0.58]
    whole, first, second = (kind("m", "max", **options) for _ in range(3))
    rates = run(whole, values)
    before = run(first, values[:cut])
    second.set_state(first.get_state())
    assert before + run(second, values[cut:], rate=before[-1]) == rates
    assert second.get_state() == whole.get_state()


def test_the_history_is_written_anew_from_its_state(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    first, second, silent = EpochHistory(file), EpochHistory(file), EpochHistory()
    first.on_epoch_end(0, {"loss": 0.5})
    state = first.get_state()
    first.on_epoch_end(1, {"loss": 0.4})
    assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [0, 1]
    second.set_state(json.loads(json.dumps({"epochs": state["epochs"][:1]})))
    second.on_epoch_end(1, {"loss": 0.3})
    silent.on_epoch_end(0)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": 0.3}]
    assert silent.epochs == [{"epoch": 0}]
