"""The end of an epoch: figures, speed and sums, and the callbacks that decide by them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.distributed import World
from afm_ctr.errors import UserError
from afm_ctr.metrics import constant_log_loss
from afm_ctr.models import CTRModel
from afm_ctr.optimizers import averaged_weights
from afm_ctr.records import Reader
from afm_ctr.training.callbacks import EpochHistory, Stateful, deciders
from afm_ctr.training.config import TrainConfig
from afm_ctr.training.evaluation import Evaluator
from afm_ctr.training.progress import Say
from afm_ctr.training.verdict import not_steered


class EpochEnds:
    """Sums the loss over the ranks, validates, and calls the callbacks that decide by the figures.

    Args:
        history: file of the epochs' figures, on rank 0.

    Attributes:
        history: the figures of all epochs.
        base_rate: weighted share of positives in the train split; None: unknown, or labels are not binary.
        best: ``{"metric", "value", "epoch", "step"}``; None without validation.
    """

    def __init__(
        self, model: CTRModel, config: TrainConfig, reader: Reader, world: World, history: Path, say: Say
    ) -> None:
        self._model, self._config, self._reader, self._world, self._say = model, config, reader, world, say
        self.history = EpochHistory(history if world.is_chief else None)
        self.base_rate: float | None = None
        self.best: dict[str, Any] | None = None
        self._warned: str | None = None
        self._deciders = deciders(config)
        self._validate: Evaluator | None = None

    def validate_on(self, reader: Reader, beat: Callable[[], None]) -> None:
        """Validate on this split each epoch; if its labels leave the metric undefined, say so before the first."""
        shards = reader.manifest.shards_of(reader.split)
        positives = sum(shard.positives for shard in shards)
        if self._model.label_kind == "binary" and positives in (0, reader.rows):
            reason = "all rows are positive" if positives else "all rows are negative"
            self._warn(
                not_steered(self._config, {"auc": reason, "group_auc": reason}, {"log_loss": 0.0, "rmse": 0.0})
            )
        self._validate = Evaluator(self._model, reader, self._world, beat)

    @property
    def stopped(self) -> bool:
        """Whether early stopping has ended the run."""
        early = self._deciders.get("early_stopping")
        return early is not None and early.exhausted

    def stateful(self) -> dict[str, Stateful]:
        """The callbacks that a checkpoint stores, by name."""
        return {"history": self.history, **self._deciders}

    def end(self, epoch: int, step: int, sums: RunningSums, speed: Speed) -> dict[str, Any]:
        """End an epoch after the given step of the run.

        Returns:
            Its object in the history: training loss over all ranks, speed, validation.

        Raises:
            UserError: none of its rows had a weight.
        """
        figures: dict[str, Any] = {"step": step, "loss": self._loss(sums)}
        if self.base_rate is not None and self._config.loss == "log":
            constant = constant_log_loss(self.base_rate)
            figures |= {
                "constant_loss": constant,
                "normalised_entropy": figures["loss"] / constant if constant else None,
            }
        figures["learning_rate"] = float(self._model.optimizer.learning_rate)
        figures |= {"seconds": round(speed.epoch_seconds, 3), "rows_per_second": speed.epoch_rows_per_second}
        figures |= self._validation()
        for decider in self._deciders.values():
            decider.set_model(self._model)
            decider.on_epoch_end(epoch, figures)
        best = self._deciders.get("best")
        if best is not None and best.improved:
            self.best = {"metric": best.metric, "value": best.value, "epoch": epoch, "step": step}
        self.history.on_epoch_end(epoch, figures)
        return figures

    def _loss(self, running: RunningSums) -> float:
        sums = running.read()
        weight = float(sums["loss/weight"])
        if not weight:
            raise UserError(
                f"every row of split {self._config.train_split!r} has weight 0: nothing was learnt; look at column "
                f"{self._reader.schema.spec.weight!r}, which the schema names as `weight`"
            )
        return float(sums["loss/numerator"]) / weight

    def _validation(self) -> dict[str, Any]:
        if self._validate is None:
            return {}
        with averaged_weights(self._model):
            found = self._validate()
        figures: dict[str, Any] = {
            f"val_{name}": value for name, value in found.items() if isinstance(value, (int, float, type(None)))
        }
        for name, reason in found["reasons"].items():
            self._say(f"validation: {name} is not defined: {reason}")
        unsteered = not_steered(self._config, found["reasons"], found)
        if unsteered is not None:
            figures["not_steered"] = unsteered
            self._warn(unsteered)
        return figures

    def _warn(self, text: str | None) -> None:
        """Print a warning once per call, as it is true of every epoch."""
        if text is not None and text != self._warned:
            self._warned = text
            self._say(f"warning: {text}")


class Speed:
    """Seconds and rows of the steps only, without validation, checkpoints and a call's first step.

    Attributes:
        seconds: of training in this call.
        epoch_seconds: of the current epoch, over all calls.
    """

    def __init__(self) -> None:
        self.seconds, self.epoch_seconds = 0.0, 0.0
        self._rows = self._epoch_rows = 0
        self._since: float | None = None

    def begin(self, counts: bool) -> None:
        """Start a fit; ``counts`` is False if its first step traces."""
        self._since = time.monotonic() if counts else None

    def step(self, rows: int) -> None:
        """Count a step over this many rows that has just ended."""
        if self._since is None:
            return
        seconds = time.monotonic() - self._since
        self.epoch_seconds += seconds
        self.seconds += seconds
        self._epoch_rows += rows
        self._rows += rows

    def resume(self) -> None:
        """Resume after work between two steps."""
        self._since = time.monotonic()

    def end_epoch(self) -> None:
        """Start the next epoch from zero."""
        self.epoch_seconds, self._epoch_rows = 0.0, 0

    @property
    def rows_per_second(self) -> float | None:
        """Of this call, over all ranks; None if no step was timed."""
        return _rate(self._rows, self.seconds)

    @property
    def epoch_rows_per_second(self) -> float | None:
        """Of the current epoch."""
        return _rate(self._epoch_rows, self.epoch_seconds)

    def get_state(self) -> dict[str, Any]:
        """The epoch's part, for a checkpoint."""
        return {"seconds": self.epoch_seconds, "rows": self._epoch_rows}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`get_state` left off."""
        self.epoch_seconds, self._epoch_rows = state["seconds"], state["rows"]


def _rate(rows: int, seconds: float) -> float | None:
    return round(rows / seconds, 1) if seconds else None


class RunningSums:
    """The variables of a model's metrics, summed over the ranks.

    Args:
        model: whose metrics hold only sums.
    """

    def __init__(self, model: CTRModel, world: World) -> None:
        self._model, self._world = model, world
        self._waiting: dict[str, np.ndarray] = {}

    def read(self) -> dict[str, np.ndarray]:
        """The sums by name, the same on every rank."""
        if self._waiting:
            return dict(self._waiting)
        variables = self._variables()
        totals = self._world.grouped_sum([variable.value.read_value() for variable in variables.values()])
        return {name: total.numpy() for name, total in zip(variables, totals, strict=True)}

    def restore(self, sums: dict[str, np.ndarray]) -> None:
        """Continue from these sums when the epoch begins."""
        self._waiting = dict(sums)

    def begin_epoch(self) -> None:
        """Restore the sums into the metrics, which Keras has just reset."""
        if self._waiting:
            for name, variable in self._variables().items():
                variable.assign(self._waiting[name] if self._world.is_chief else tf.zeros_like(variable.value))
            self._waiting = {}

    def _variables(self) -> dict[str, keras.Variable]:
        return {f"{metric.name}/{v.name}": v for metric in self._model.metrics for v in metric.variables}
