"""The end of an epoch: its figures, and what goes by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from afm_ctr.distributed import World
from afm_ctr.errors import UserError
from afm_ctr.metrics import constant_log_loss
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.training.callbacks import EpochHistory, Stateful, deciders
from afm_ctr.training.config import TrainConfig
from afm_ctr.training.evaluate import Evaluator
from afm_ctr.training.speed import Speed
from afm_ctr.training.sums import RunningSums
from afm_ctr.training.verdict import not_steered


class EpochEnds:
    """Sums the loss over the ranks, validates, and asks the callbacks that decide by the figures.

    Args:
        model: compiled.
        config: of the run.
        reader: of the train split.
        world: the ranks; all of them must make the calls.
        history: file of the epochs' figures, on rank 0.
        say: told of metrics that are not defined.

    Attributes:
        history: the figures of all epochs.
        base_rate: weighted share of positives in the train split; None: not known, or labels are not binary.
        best: ``{"metric", "value", "epoch", "step"}``; None without validation.
    """

    def __init__(
        self,
        model: CTRModel,
        config: TrainConfig,
        reader: Reader,
        world: World,
        history: Path,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._config, self._reader, self._world, self._say = model, config, reader, world, say
        self.history = EpochHistory(history if world.is_chief else None)
        self.base_rate: float | None = None
        self.best: dict[str, Any] | None = None
        self._warned: str | None = None
        self._deciders = deciders(config)
        self._validate: Evaluator | None = None

    def validate_on(self, reader: Reader, beat: Callable[[], None]) -> None:
        """Look at this split each time; if its labels make the metric undefined, say so before the first epoch."""
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
        return early is not None and early.stopped

    def stateful(self) -> dict[str, Stateful]:
        """What a checkpoint keeps, by name."""
        return {"history": self.history, **self._deciders}

    def end(self, epoch: int, step: int, sums: RunningSums, speed: Speed) -> dict[str, Any]:
        """An epoch has ended after a step of the run.

        Returns:
            Its object in the history: training loss over all ranks, speed, validation.

        Raises:
            UserError: no row of it had a weight.
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
        """Once a call: it is true of every epoch."""
        if text is not None and text != self._warned:
            self._warned = text
            self._say(f"warning: {text}")
