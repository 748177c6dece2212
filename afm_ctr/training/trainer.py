"""The training loop of a run: its position, its part of a checkpoint, the work between steps; elastic too."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from afm_ctr.devices import ahead_on_gpu
from afm_ctr.distributed import (
    BroadcastVariables,
    DriftCheck,
    ElasticState,
    HostsChanged,
    LearningRateSchedule,
    World,
)
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.training.callbacks import Stateful, UnreadLogs
from afm_ctr.training.checkpoint import Checkpoint, Position
from afm_ctr.training.checkpoint_manager import Saver
from afm_ctr.training.config import TrainConfig
from afm_ctr.training.divergence import largest_input
from afm_ctr.training.epoch import EpochEnds, RunningSums, Speed
from afm_ctr.training.expiry import begun_now
from afm_ctr.training.model_io import HISTORY, TENSORBOARD
from afm_ctr.training.model_state import is_sharded
from afm_ctr.training.profiler import StepProfile
from afm_ctr.training.progress import Mode, Reporter, TensorBoardScalars
from afm_ctr.training.run_dir import RunDir
from afm_ctr.training.snapshot import NotFinite, Snapshot
from afm_ctr.training.supervisor import Supervisor

# The parts of a batch that a step uses; dropout is a function of the row's number.
_OF_A_STEP = ("feature_ids", "feature_vals", "label", "weight", "row")
RunState = tuple[Position, dict[str, Any], dict[str, np.ndarray]]
"""The position of a run, state of the callbacks (plain data), running sums of the metrics over all ranks."""


class Trainer(keras.callbacks.Callback):
    """The run as a callback of its own ``fit`` calls, one per epoch or part of one.

    After every step it counts, checks the loss and perhaps writes a checkpoint. At the end of an epoch it sums the
    loss over the ranks, validates, calls the callbacks that decide by the figures, and writes a checkpoint: all in
    one place, so that a run that stops in the middle of an epoch does none of it.

    Args:
        model: compiled, with a built optimizer.
        data: :func:`~afm_ctr.training.run_dir.data_id` of the train split.
    """

    def __init__(
        self,
        model: CTRModel,
        config: TrainConfig,
        reader: Reader,
        world: World,
        folder: RunDir,
        data: str,
        progress: Mode,
    ) -> None:
        super().__init__()
        self.network, self.config, self.reader, self.world, self.folder = model, config, reader, world, folder
        self.position = Position()
        self.runs = [begun_now(after=0)]  # this run, preceded by those that it continues
        self.speed = Speed()
        self._data = data
        self._sums = RunningSums(model, world)
        self.reporter = Reporter(
            reader.steps_per_epoch, config.epochs, lambda: self.position.step_in_epoch, self._rows_done, progress
        )
        self.checkpoints = folder.checkpoints(config.checkpoint.keep, self.reporter.say)
        optimizer = config.optimizer
        total = min(reader.steps_per_epoch * config.epochs, config.max_steps or sys.maxsize)
        self.schedule = LearningRateSchedule(
            world,
            optimizer.learning_rate,
            optimizer.warmup_steps,
            decay=optimizer.decay,
            total_steps=total,
            verbose=False,
        )
        self.supervisor = Supervisor(config, world, folder.path, reader)
        drift = config.drift_check
        self._drift = DriftCheck(world, drift.every_steps) if drift is not None and world.size > 1 else None
        self.epochs = EpochEnds(model, config, reader, world, folder.path / HISTORY, self.reporter.say)
        self.tensorboard: TensorBoardScalars | None = None
        if config.tensorboard and world.is_chief:
            self.tensorboard = TensorBoardScalars(
                folder.path / TENSORBOARD, lambda: self.position.step, self._rows_done
            )
        self.profile: StepProfile | None = None
        self._saver = Saver(self.checkpoints, self.supervisor.beat)
        self._unread: tuple[int, Any] | None = None
        self._first_fit = True
        self.stopping = False

    def validate_on(self, reader: Reader) -> None:
        """Validate on this split after each epoch."""
        self.epochs.validate_on(reader, self.supervisor.beat)

    # -- one fit ----------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> str | None:
        """Why the run is over: ``epochs``, ``early_stopping``, ``max_steps``; None if it is not."""
        if self.position.epoch >= self.config.epochs:
            return "epochs"
        if self.epochs.stopped:
            return "early_stopping"
        if self.config.max_steps is not None and self.position.step >= self.config.max_steps:
            return "max_steps"
        return None

    def fit(self) -> None:
        """One ``fit``: to the end of the epoch, or to ``max_steps`` in its middle."""
        start, epoch = self.position, self.position.epoch
        steps = self.reader.steps_per_epoch - start.step_in_epoch
        if self.config.max_steps is not None:
            steps = min(steps, self.config.max_steps - start.step)
        batches = ahead_on_gpu(self.reader.dataset(epoch, start.step_in_epoch, _OF_A_STEP).take(steps))
        if self._first_fit:
            self.supervisor.begin()
        self.network.fit(
            batches,
            epochs=epoch + 1,
            initial_epoch=epoch,
            steps_per_epoch=steps,
            shuffle=False,
            callbacks=UnreadLogs(self.callbacks(), add_history=True, model=self.network, steps=steps),
            verbose=0,
        )
        self._first_fit = False
        if self.stopping and self.ended is None:
            if self.position.step_in_epoch:
                self.save()
            self.flush()
            raise self.supervisor.signals.stopped(self.position.step, self.folder.path)
        if self.position.step != start.step + steps:
            raise RuntimeError(f"{steps} steps were due after step {start.step}, the run is at {self.position.step}")
        if self.position.step_in_epoch:
            self.save()

    def callbacks(self) -> list[keras.callbacks.Callback]:
        chosen = [
            self.supervisor.watchdog,
            BroadcastVariables(self.world) if self._first_fit else None,
            self.schedule,
            self._drift,
            self,
            self.tensorboard,
            self.reporter,
            self.profile,
        ]
        return [callback for callback in chosen if callback is not None]

    def close(self) -> None:
        """Close the terminal's bar and the files."""
        self.supervisor.close()
        self._saver.close()
        self.reporter.close()
        if self.tensorboard is not None:
            self.tensorboard.close()

    # -- callbacks --------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.speed.begin(counts=not self._first_fit)
        self._sums.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        at, before = self.position, self._rows_done()
        self.position = dataclasses.replace(at, step_in_epoch=at.step_in_epoch + 1, step=at.step + 1)
        whole = self.position.step_in_epoch == self.reader.steps_per_epoch
        self._read_loss()  # of the previous step, while the device computes this one
        self._unread = (self.position.step, (logs or {})["loss"])
        if whole:
            self._read_loss()
        self.speed.step(self._rows_done() - before)
        if not whole and self.position.step % self.config.checkpoint.every_steps == 0:
            self.save()
        if self.supervisor.signals.agreed(self.world, self.position.step):
            self.stopping = self.model.stop_training = True
        self.speed.resume()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.position.step_in_epoch < self.reader.steps_per_epoch:
            return  # max_steps: the epoch continues later
        self.position = Position(epoch + 1, 0, self.position.step)
        figures = self.epochs.end(epoch, self.position.step, self._sums, self.speed)
        # Later callbacks in the list show the whole figures, not this rank's running loss.
        if logs is not None:
            logs.update(figures)
        self.speed.end_epoch()
        self.save()

    def _rows_done(self) -> int:
        """Rows trained since the run began; the last batch of an epoch is short."""
        at = self.position
        return at.epoch * self.reader.rows + min(at.step_in_epoch * self.config.batch_size, self.reader.rows)

    def _read_loss(self) -> None:
        """Wait for the loss that was not read yet: the mean over the epoch so far, which stays NaN once it is."""
        unread, self._unread = self._unread, None
        if unread is not None and not math.isfinite(loss := float(unread[1])):
            raise UserError(self._diverged(f"step {unread[0]}: the loss is {loss}"))

    def _diverged(self, what: str) -> str:
        self._saver.close()
        cause = largest_input(self.reader, self.position.epoch, self.position.step_in_epoch)
        steps = self.checkpoints.steps()
        kept = f"the last checkpoint is {self.checkpoints.path(steps[-1])}" if steps else "there is no checkpoint yet"
        return f"{what}: the training diverged; {cause}" + (f"; {kept}" if self.world.is_chief else "")

    def _on_disk(self, work: Callable[[], None]) -> None:
        """Let rank 0 write a state to disk or wait for one; a state that diverged is explained."""

        def explained() -> None:
            try:
                work()
            except NotFinite as error:
                raise UserError(self._diverged(str(error))) from error

        self.supervisor.wait_for_chief(explained)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state(self) -> RunState:
        """The state of the run besides the values of its variables, as :meth:`restore` needs it.

        All ranks must call it. It returns a copy, which does not change with the next step.

        Raises:
            UserError: the loss is not finite.
        """
        self._read_loss()
        sums = self._sums.read() if self.position.step_in_epoch else {}
        state = {
            "data_id": self._data,
            "best": self.epochs.best,
            "runs": self.runs,
            "callbacks": {name: callback.get_state() for name, callback in self._stateful().items()},
        }
        return self.position, copy.deepcopy(state), sums

    def save(self) -> None:
        """Let rank 0 copy the state and write it as a checkpoint in the background; all ranks must call it.

        A sharded table's rows are written by their owners, and the training waits for them.

        Raises:
            UserError: loss or weights are not finite, or the previous checkpoint could not be written.
        """
        position, state, sums = self.state()
        if not all(np.isfinite(value).all() for value in sums.values()):
            raise UserError(self._diverged("the loss is not finite"))
        schema_id, best = self.reader.schema.id, self.epochs.best

        def take() -> Snapshot:
            return Snapshot.take(self.network, position, schema_id=schema_id, state=state, extra=sums)

        if is_sharded(self.network):
            try:
                self.checkpoints.save_sharded(self.world, self.network, take(), best, self.supervisor.beat)
            except NotFinite as error:
                raise UserError(self._diverged(str(error))) from error
        else:
            self._on_disk(lambda: self._saver.save(take, best))

    def flush(self) -> None:
        """Wait until the last checkpoint is on disk; all ranks must call it.

        Raises:
            UserError: it could not be written.
        """
        self._on_disk(self._saver.flush)

    def _stateful(self) -> dict[str, Stateful]:
        return {"schedule": self.schedule, "speed": self.speed, **self.epochs.stateful()}

    def restore(self, position: Position, state: dict[str, Any], sums: dict[str, np.ndarray]) -> None:
        """Continue from the result of :meth:`state`, on any number of ranks.

        All ranks call it with the same arguments. The variables are restored already, at least on rank 0. Files of
        later steps are removed.
        """
        state = copy.deepcopy(state)
        self.position, self.epochs.best = position, state["best"]
        self._sums.restore(sums)
        self.runs = state["runs"]
        for name, callback in self._stateful().items():
            if name in state["callbacks"]:
                callback.set_state(state["callbacks"][name])
        self._saver.close()
        if self.world.is_chief:
            self.checkpoints.rewind(position.step, self.epochs.best)
            self.epochs.history.write()


def run_state(checkpoint: Checkpoint) -> RunState:
    """The arguments of :meth:`Trainer.restore` from a checkpoint."""
    return checkpoint.position, checkpoint.state, checkpoint.extra()


class ElasticTrainer(Trainer):
    """A trainer that commits its state to host memory, and continues from a commit on other ranks.

    The position of a commit is the global step, and readers divide a step's rows by rank and size: so the records of
    an epoch are those of an undisturbed run. In a world that is not elastic it behaves as :class:`Trainer`.
    """

    def __init__(self, elastic: ElasticState, **of_trainer: Any) -> None:
        super().__init__(**of_trainer)
        self._elastic = elastic
        self._hosts_changed = False

    def begin(self) -> None:
        """Begin the run, or resume from a checkpoint that rank 0 has restored: all ranks get its variables."""
        if self.world.elastic:
            self._share_state()
            self._elastic.begin()

    def resume(self) -> None:
        """Resume from the last commit, whose variables all ranks hold."""
        values = self._elastic.values
        self.speed = values["speed"]
        self.restore(*values["run"])
        # Later checkpoints are removed, and the one of an epoch's end may be lost with its writer.
        super().save()

    def save(self) -> None:
        """Commit before an epoch's checkpoint: what is on disk is never ahead of the commit.

        If hosts have changed, the epoch ends in order first, and :meth:`fit` leaves afterwards.
        """
        if self.world.elastic and self.position.step_in_epoch == 0:
            self._share_state()
            self._hosts_changed = self._elastic.keep()
        super().save()

    def fit(self) -> None:
        super().fit()
        if self._hosts_changed and self.ended is None:
            raise HostsChanged

    def step_done(self) -> None:
        """Commit if it is time; called after all other callbacks. The end of an epoch commits by itself."""
        self._elastic.count_step()
        if self._elastic.due and self.position.step_in_epoch < self.reader.steps_per_epoch:
            self._share_state()
            self._elastic.commit()

    def _share_state(self) -> None:
        self._elastic.values.update(run=self.state(), speed=self.speed)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        callbacks = super().callbacks()
        if not self.world.elastic:
            return callbacks
        # All ranks hold the same variables already.
        others = [callback for callback in callbacks if not isinstance(callback, BroadcastVariables)]
        return [*others, _LastOfStep(self)]


class _LastOfStep(keras.callbacks.Callback):
    def __init__(self, trainer: ElasticTrainer) -> None:
        super().__init__()
        self._trainer = trainer

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._trainer.step_done()
