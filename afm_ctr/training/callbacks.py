"""Callbacks whose state outlives a ``fit``: a run is many ``fit`` calls, and may be killed between any two steps.

Keras' own ``EarlyStopping`` and ``ReduceLROnPlateau`` forget everything in ``on_train_begin``. These have
``get_state`` (plain JSON values) and ``set_state``, and a checkpoint stores their state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import keras

from afm_ctr.io.files import write_text
from afm_ctr.training.config import BY_LOSS, TrainConfig

Direction = Literal["max", "min"]


@runtime_checkable
class Stateful(Protocol):
    """A callback whose state a checkpoint stores."""

    def get_state(self) -> dict[str, Any]:
        """Everything that the callback's later decisions depend on, as JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_state` returned."""


class UnreadLogs(keras.callbacks.CallbackList):
    """Keras' list of callbacks, except that callbacks get the logs of a step as tensors.

    Keras converts them to floats first, and so waits for the step before it launches the next one.
    """

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs=logs)


def improves(value: float, best: float | None, direction: Direction, min_delta: float = 0.0) -> bool:
    """Whether ``value`` beats ``best`` by more than ``min_delta``; anything beats None."""
    if best is None:
        return True
    return value > best + min_delta if direction == "max" else value < best - min_delta


def _metric(logs: dict[str, Any] | None, metric: str) -> float | None:
    value = (logs or {}).get(metric)
    return None if value is None else float(value)


class BestSoFar(keras.callbacks.Callback):
    """The best value of a metric at the ends of epochs. ``improved``: the last epoch set it.

    Args:
        metric: a key of the epoch's logs; an epoch that lacks it, or holds None, does not count.
    """

    def __init__(self, metric: str, direction: Direction) -> None:
        super().__init__()
        self.metric, self.direction = metric, direction
        self.value: float | None = None
        self.epoch: int | None = None
        self.improved = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        value = _metric(logs, self.metric)
        self.improved = value is not None and improves(value, self.value, self.direction)
        if self.improved:
            self.value, self.epoch = value, epoch

    def get_state(self) -> dict[str, Any]:
        return {"metric": self.metric, "value": self.value, "epoch": self.epoch, "improved": self.improved}

    def set_state(self, state: dict[str, Any]) -> None:
        self.value, self.epoch, self.improved = state["value"], state["epoch"], state["improved"]


class _Patience(keras.callbacks.Callback):
    """Counts the epochs in a row in which a metric has not improved by more than ``min_delta``."""

    def __init__(self, metric: str, direction: Direction, patience: int, min_delta: float = 0.0) -> None:
        super().__init__()
        self.metric, self.direction, self.patience, self.min_delta = metric, direction, patience, min_delta
        self.best: float | None = None
        self.wait = 0

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.wait >= self.patience

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        value = _metric(logs, self.metric)
        if value is None:
            return
        gained = improves(value, self.best, self.direction, self.min_delta)
        if gained:
            self.best = value
        self.wait = 0 if self.also_gained(logs) or gained else self.wait + 1
        if self.exhausted:
            self.act()

    def also_gained(self, logs: dict[str, Any] | None) -> bool:
        """Whether another figure than the metric improved, so that the epoch counts as an improvement."""
        return False

    def act(self) -> None:
        """Called when patience has run out."""
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        return {"best": self.best, "wait": self.wait}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self.wait = state["best"], state["wait"]


class EarlyStopping(_Patience):
    """End the training when a metric has not improved for ``patience`` epochs in a row.

    ``exhausted`` stays True afterwards, so that a resumed run does not start again, unless it has a larger patience.
    """

    def act(self) -> None:
        self.model.stop_training = True


class ReduceOnPlateau(_Patience):
    """Multiply the learning rate by ``factor`` when a metric has not improved for ``patience`` epochs in a row.

    An epoch whose ``loss`` improves counts as one that improves. While a model has learnt single ids and not yet
    pairs, the AUC wavers for epochs as the loss still falls; a lower rate would end the run there.

    Args:
        loss: a key of the epoch's logs, lower is better; None: only the metric counts.
    """

    def __init__(
        self,
        metric: str,
        direction: Direction,
        factor: float,
        patience: int,
        min_delta: float = 0.0,
        min_learning_rate: float = 0.0,
        loss: str | None = None,
    ) -> None:
        super().__init__(metric, direction, patience, min_delta)
        self.factor, self.min_learning_rate, self.loss = factor, min_learning_rate, loss
        self.best_loss: float | None = None

    def also_gained(self, logs: dict[str, Any] | None) -> bool:
        value = None if self.loss is None else _metric(logs, self.loss)
        if value is None or not improves(value, self.best_loss, "min", self.min_delta):
            return False
        self.best_loss = value
        return True

    def act(self) -> None:
        self.wait = 0
        rate = float(self.model.optimizer.learning_rate)
        self.model.optimizer.learning_rate = max(rate * self.factor, min(self.min_learning_rate, rate))

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"best_loss": self.best_loss}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.best_loss = state.get("best_loss")  # earlier checkpoints have none


def deciders(config: TrainConfig) -> dict[str, Any]:
    """The callbacks that decide by an epoch's figures, by their names in a checkpoint."""
    validation = config.validation
    if validation is None:
        return {}
    metric, direction = f"val_{validation.metric}", validation.direction
    chosen: dict[str, Any] = {"best": BestSoFar(metric, direction)}
    if config.early_stopping is not None:
        chosen["early_stopping"] = EarlyStopping(metric, direction, **config.early_stopping.model_dump())
    if config.reduce_on_plateau is not None:
        options = config.reduce_on_plateau.model_dump()
        chosen["reduce_on_plateau"] = ReduceOnPlateau(
            metric, direction, **options, loss=f"val_{BY_LOSS[config.loss]}"
        )
    return chosen


class EpochHistory(keras.callbacks.Callback):
    """One object per epoch, also in ``history.jsonl`` when a path is given (on one rank only).

    The file is rewritten from the state each time: a run resumed from an earlier checkpoint leaves no duplicates.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.path = path
        self.epochs: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epochs.append({"epoch": epoch, **(logs or {})})
        self.write()

    def write(self) -> None:
        """Rewrite the file from the state."""
        if self.path is not None:
            write_text(self.path, "".join(f"{json.dumps(one)}\n" for one in self.epochs))

    def get_state(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def set_state(self, state: dict[str, Any]) -> None:
        self.epochs = [dict(one) for one in state["epochs"]]
