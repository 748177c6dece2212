"""The training run: ``fit`` epoch by epoch, able to stop and go on between any two steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from afm_ctr import optimizers
from afm_ctr.distributed import World, wrap_optimizer
from afm_ctr.errors import UserError, find_user_error
from afm_ctr.records import Reader
from afm_ctr.samples import load_samples, save_samples
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.build import build_model
from afm_ctr.training.checkpoint import Position
from afm_ctr.training.config import TrainConfig
from afm_ctr.training.evaluate import SMALLEST_BATCH, open_split
from afm_ctr.training.exchange import choose_exchange
from afm_ctr.training.files import unwritable
from afm_ctr.training.folder import RunFolder, data_id
from afm_ctr.training.progress import Mode
from afm_ctr.training.ranks import on_chief
from afm_ctr.training.session import Session, opened


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """What a run came to, the same on every rank (but for the seconds).

    Attributes:
        model_dir: the run's folder.
        ended: why it ended: ``epochs``, ``max_steps`` or ``early_stopping``.
        epochs: complete epochs.
        steps: steps since the run began.
        rows: rows of the train split.
        resumed_from: the step that this call went on from; None if it began the run.
        seconds: of training in this call, validation and checkpoints left out.
        rows_per_second: trained rows a second in this call, over all ranks; None where no step but the first was.
        best: ``{"metric", "value", "epoch", "step"}``; None without validation.
        last: the history's last object; None before the first epoch's end.
    """

    model_dir: str
    ended: str
    epochs: int
    steps: int
    rows: int
    resumed_from: int | None
    seconds: float
    rows_per_second: float | None
    best: dict[str, Any] | None
    last: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        best = ""
        if self.best is not None:
            best = f", best {self.best['metric']} {self.best['value']:.6f} after epoch {self.best['epoch'] + 1}"
        done = f"{self.epochs} epochs, {self.steps:,} steps (ended by {self.ended})"
        speed = "" if self.rows_per_second is None else f", {self.rows_per_second:,.0f} rows/s"
        return f"{self.model_dir}: {done}{speed}{best}"


def train(
    data_dir: str | Path,
    model_dir: str | Path,
    config: TrainConfig,
    world: World,
    *,
    resume: Literal["auto", "never"] = "auto",
    command: Sequence[str] = (),
    progress: Mode = "auto",
) -> TrainSummary:
    """Train, or go on with, the run in ``model_dir``. All ranks call it with the same arguments.

    Killed between any two steps and called again, it ends with the weights of an uninterrupted run, whatever the
    number of ranks of each call; in one process bit by bit.

    Args:
        data_dir: a prepared data set.
        model_dir: the run's folder; rank 0 writes it.
        config: what to do.
        world: from :func:`afm_ctr.distributed.init`.
        resume: ``auto`` goes on from the last good checkpoint if there is one; ``never`` wants an empty folder.
        command: the command line, for ``run.json``.
        progress: what stderr shows, on rank 0.

    Raises:
        UserError: see :meth:`afm_ctr.training.folder.RunFolder.check`; also data that does not fit the config, a
            damaged shard, a training that diverged, a folder that cannot be written.
    """
    if resume not in ("auto", "never"):
        raise UserError(f"resume {resume!r}: say auto or never")
    reader = Reader(
        data_dir,
        config.train_split,
        config.batch_size,
        seed=config.seed,
        rank=world.rank,
        size=world.size,
        shuffle=config.shuffle,
    )
    if not reader.manifest.labelled:
        raise UserError(f"{data_dir} was prepared without labels: there is nothing to train on")
    check_metric(config, reader.schema)
    keras.utils.set_random_seed(config.seed)  # layers of other packages may draw from the global generators
    model = build_model(reader.schema, config)
    optimizer = optimizers.build(
        config.optimizer.name, learning_rate=config.optimizer.learning_rate, **config.optimizer.options
    )
    model.compile(optimizer=wrap_optimizer(optimizer, world), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    validation = None
    if config.validation is not None:
        validation = open_split(data_dir, config.validation.split, max(config.batch_size, SMALLEST_BATCH), world)
    folder, data = RunFolder(Path(model_dir)), data_id(reader.manifest, config.train_split)
    session = Session(model, config, reader, world, folder, data, progress if world.is_chief else "none")
    if validation is not None:
        session.validate_on(validation)
    held = contextlib.ExitStack()  # the folder, from before its first byte is written to the end

    def begin() -> tuple[Position, dict[str, Any], dict[str, np.ndarray]] | None:
        try:
            checkpoint = folder.check(config, reader.schema, data, resume, session.reporter.say)
            held.enter_context(folder.alone())
            if checkpoint is not None:
                checkpoint.restore(model)
            start = None if checkpoint is None else checkpoint.position.step
            run = {"data": str(data_dir), "data_id": data, "world_size": world.size, "resumed_from": start}
            run["exchange"] = [choice.to_json() for choice in exchange]
            folder.record(config, reader.schema, run, command)
            save_samples(model_dir, load_samples(data_dir, reader.schema.raw_columns))
            return None if checkpoint is None else opened(checkpoint)
        except OSError as error:
            raise unwritable(model_dir, error) from error

    try:
        exchange = choose_exchange(model, reader, world, config.exchange, session.reporter.say)
        start = on_chief(world, begin)
        resumed_from = None if start is None else start[0].step
        if start is not None:
            session.take_up(*start)
        _announce(session, resumed_from)
        while session.ended is None:
            session.fit()
        session.settle()
    except OSError as error:  # what cannot be read is in `reader.error`
        raise unwritable(model_dir, error) from error
    except Exception as error:
        mistake = reader.error or find_user_error(error)
        if mistake is None:
            raise
        raise mistake from error
    finally:
        session.close()
        held.close()
    return TrainSummary(
        model_dir=str(model_dir),
        ended=session.ended,
        epochs=session.position.epoch,
        steps=session.position.step,
        rows=reader.rows,
        resumed_from=resumed_from,
        seconds=round(session.speed.seconds, 3),
        rows_per_second=session.speed.rows_per_second,
        best=session.best,
        last=session.history.epochs[-1] if session.history.epochs else None,
    )


def check_metric(config: TrainConfig, schema: ResolvedSchema) -> None:
    """Whether the data defines the metric that the run is steered by.

    Raises:
        UserError: naming the metric and one that would do.
    """
    if config.validation is None or schema.spec.label is None:
        return
    metric = config.validation.metric
    if schema.spec.label.kind == "real" and metric != "rmse":
        raise UserError(f"validation.metric {metric} needs binary labels and this schema's label is real: use rmse")
    if metric == "group_auc" and schema.spec.group is None:
        raise UserError("validation.metric group_auc needs a schema that declares a `group` column: use auc")


def _announce(session: Session, resumed_from: int | None) -> None:
    config, reader, say = session.config, session.reader, session.reporter.say
    if session.ended is not None:
        say(f"nothing left to do: the run has ended ({session.ended}) after step {session.position.step:,}")
        return
    ranks = f" on {session.world.size} ranks" if session.world.size > 1 else ""
    if resumed_from is None:
        steps = f"{reader.steps_per_epoch:,} steps of {config.batch_size:,}"
        say(f"training {config.model.name}{ranks}: {reader.rows:,} rows, {steps} an epoch, {config.epochs} epochs")
    else:
        say(f"going on{ranks} after step {resumed_from:,} (epoch {session.position.epoch + 1})")
    if config.optimizer.warmup_steps > session.warmup.step:
        rate, rising = config.optimizer.learning_rate, config.optimizer.warmup_steps
        say(f"warm-up: the learning rate rises to {rate:g} over {rising:,} steps")
