"""The training run: ``fit`` epoch by epoch, able to stop and resume between any two steps."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras

from afm_ctr import native, optimizers
from afm_ctr.distributed import ElasticState, HostsChanged, World, init, run_elastic, wrap_optimizer
from afm_ctr.errors import UserError, find_lost_rank
from afm_ctr.installed import versions_of
from afm_ctr.models import CTRModel
from afm_ctr.records import Manifest, Reader
from afm_ctr.sample_rows import load_samples, save_samples
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.base_rate import initial_bias, label_sums
from afm_ctr.training.checkpoint import Checkpoint, DamagedCheckpoint
from afm_ctr.training.config import STEERED, TrainConfig, flat
from afm_ctr.training.defaults import default_config
from afm_ctr.training.evaluation import SMALLEST_BATCH, open_split
from afm_ctr.training.exchange import choose_exchange
from afm_ctr.training.incremental import check_origin, continue_from, drop_expired
from afm_ctr.training.model_io import PROFILE, TENSORBOARD, build_model
from afm_ctr.training.model_state import is_sharded
from afm_ctr.training.plan import is_to_be_sharded, train_reader
from afm_ctr.training.profiler import WARM_UP, StepProfile
from afm_ctr.training.progress import Mode
from afm_ctr.training.run_dir import PACKAGES, RunDir, data_id
from afm_ctr.training.supervisor import check_same, on_chief, on_every, writing
from afm_ctr.training.trainer import ElasticTrainer, RunState, Trainer, run_state
from afm_ctr.training.verdict import warnings_of
from afm_ctr.visible import counted

_LOCK_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """Result of a run, the same on every rank (except for the seconds).

    Attributes:
        model_dir: the run's folder.
        ended: why it ended: ``epochs``, ``max_steps`` or ``early_stopping``.
        epochs: complete epochs.
        steps: steps since the run began.
        rows: rows of the train split.
        resumed_from: the step that this call resumed from; None if it began the run.
        seconds: of training in this call, without validation and checkpoints.
        rows_per_second: training speed of this call, over all ranks; None if only the first step ran.
        best: ``{"metric", "value", "epoch", "step"}``; None without validation.
        last: the history's last object; None before the end of the first epoch.
        warnings: lines on what is wrong with the model: the validation metric could not steer the run, the model is
            no better than a constant, or it was still improving when the run ended.
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
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        best = ""
        if self.best is not None:
            best = f", best {self.best['metric']} {self.best['value']:.4f} after epoch {self.best['epoch'] + 1}"
        done = f"{counted(self.epochs, 'epoch')}, {counted(self.steps, 'step')} (ended by {self.ended})"
        speed = "" if self.rows_per_second is None else f", {self.rows_per_second:,.0f} rows/s"
        return f"{self.model_dir}: {done}{speed}{best}"


def train(
    data_dir: str | Path,
    model_dir: str | Path,
    config: TrainConfig | Mapping[str, Any] | None = None,
    world: World | None = None,
    *,
    resume: Literal["auto", "never"] = "auto",
    from_checkpoint: str | Path | None = None,
    command: Sequence[str] = (),
    progress: Mode = "auto",
    profile: int = 0,
) -> TrainSummary:
    """Train, or resume, the run in ``model_dir``. All ranks call it with the same arguments.

    In an elastic job it continues from the last commit when ranks are lost, added or removed (``config.elastic``).
    Killed between any two steps and called again, it ends with the weights of an uninterrupted run, whatever the
    number of ranks of each call; in one process bit by bit.

    Args:
        data_dir: a prepared data set.
        model_dir: the run's folder; rank 0 writes it.
        config: a config, or the content of its YAML. None: that of the run which is resumed or continued, else
            settings sized to the data, as in ``afm-ctr train``.
        world: by default that of :func:`afm_ctr.distributed.init`.
        resume: ``auto`` resumes from the last good checkpoint if there is one; ``never`` needs an empty folder.
        from_checkpoint: start with the weights of another run (its folder, or that of one of its checkpoints); the
            data has its schema or one grown from it; see :func:`afm_ctr.training.incremental.continue_from`.
        command: the command line, for ``run.json``.
        progress: what rank 0 prints to stderr.
        profile: number of steps that rank 0 profiles, after some warm-up steps: see
            :class:`~afm_ctr.training.profiler.StepProfile`.

    Raises:
        UserError: see :meth:`afm_ctr.training.run_dir.RunDir.check`; also data that does not fit the config, a
            damaged shard, a training that diverged, or a folder that cannot be written.
    """
    if resume not in ("auto", "never"):
        raise UserError(f"resume {resume!r}: use auto or never")
    origin = None if from_checkpoint is None else Path(from_checkpoint)
    if config is not None:
        if not isinstance(config, TrainConfig | Mapping):
            how = "TrainConfig.load(path) reads a file"
            raise UserError(f"config must be a mapping or a TrainConfig, got {type(config).__name__}; {how}")
        settings = config if isinstance(config, TrainConfig) else TrainConfig.parse(dict(config), "config")
    world = init() if world is None else world
    if config is None:  # sizing reads rows with TensorFlow: only now that this rank has its GPU
        settings = default_config(data_dir, Path(model_dir), origin)
    reader = train_reader(data_dir, settings, world.rank, world.size)
    if not reader.manifest.labelled:
        raise UserError(f"{data_dir} was prepared without labels: there is nothing to train on")
    check_metric(settings, reader.schema)
    sharded = is_to_be_sharded(settings, reader, world)

    def build() -> CTRModel:
        keras.utils.set_random_seed(settings.seed)  # layers of other packages may use the global generators
        model = build_model(reader.schema, settings, training=True, shard_over=world if sharded else None)
        optimizer = optimizers.build(
            settings.optimizer.name, learning_rate=settings.optimizer.learning_rate, **settings.optimizer.options
        )
        model.compile(optimizer=wrap_optimizer(optimizer, world), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return model

    run = _Run(data_dir, Path(model_dir), settings, world, resume, origin, command, progress, profile)
    state = ElasticState(build(), world, rebuild=build if sharded else None, **settings.elastic.model_dump())
    return run_elastic(run.go, state)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The arguments of :func:`train`."""

    data_dir: str | Path
    model_dir: Path
    config: TrainConfig
    world: World
    resume: Literal["auto", "never"]
    origin: Path | None
    command: Sequence[str]
    progress: Mode
    profile: int

    def go(self, state: ElasticState) -> TrainSummary:
        """Train on the current ranks, to the end or until they change."""
        config, world = self.config, self.world
        reader = train_reader(self.data_dir, config, world.rank, world.size)
        folder, data = RunDir(self.model_dir), data_id(reader.manifest, config.train_split)
        trainer = ElasticTrainer(
            state,
            model=state.model,
            config=config,
            reader=reader,
            world=world,
            folder=folder,
            data=data,
            progress=self.progress if world.is_chief else "none",
        )
        if config.validation is not None:
            trainer.validate_on(_open_validation(self.data_dir, config, reader.manifest, world))
        if self.profile and world.is_chief:
            traces, table = folder.path / TENSORBOARD, folder.path / PROFILE
            trainer.profile = StepProfile(self.profile, traces, table, config.batch_size, trainer.reporter.say)
        stack = contextlib.ExitStack()
        # Handle signals to the end: a launcher ends the other ranks as soon as one fails, and they explain it first.
        stack.enter_context(trainer.supervisor.signals)
        try:
            if world.size > 1:
                check_same(world, self._given(trainer))
            exchange = choose_exchange(state.model, reader, world, config.exchange, trainer.reporter.say)
            entry = {"data": str(self.data_dir), "data_id": data, "world_size": world.size}
            entry["exchange"] = [choice.to_json() for choice in exchange]
            if state.committed:
                on_chief(world, lambda: self._take_over(trainer, stack, entry))
                trainer.resume()
                self._set_base_rate(trainer, fresh=False)
                _announce(trainer, trainer.position.step)
            else:
                start, source = on_chief(world, lambda: self._begin(trainer, stack, entry, state.lost))
                self._restore_others(trainer, start, source)
                resumed_from = state.values["resumed_from"] = (start[0].step or None) if start else None
                if start is not None:
                    trainer.restore(*start)
                self._set_base_rate(trainer, fresh=start is None)
                trainer.begin()
                _announce(trainer, resumed_from)
            while trainer.ended is None:
                trainer.fit()
            trainer.flush()
            warnings = warnings_of(config, trainer.epochs.history.epochs)
            for text in warnings:
                trainer.reporter.say(f"warning: {text}")
            if trainer.profile is not None and not trainer.profile.done:
                trainer.reporter.say(f"no profile: the run had no step left after {WARM_UP} warm-up steps")
        except HostsChanged:
            raise
        except Exception as error:
            if world.elastic and find_lost_rank(error) is not None:
                raise  # the job continues on other ranks
            cause = trainer.supervisor.explain(error)
            if cause is None:
                raise
            raise cause from error
        finally:
            trainer.close()
            stack.close()
        return TrainSummary(
            model_dir=str(self.model_dir),
            ended=trainer.ended,
            epochs=trainer.position.epoch,
            steps=trainer.position.step,
            rows=reader.rows,
            resumed_from=state.values["resumed_from"],
            seconds=round(trainer.speed.seconds, 3),
            rows_per_second=trainer.speed.rows_per_second,
            best=trainer.epochs.best,
            last=trainer.epochs.history.epochs[-1] if trainer.epochs.history.epochs else None,
            warnings=warnings,
        )

    def _given(self, trainer: Trainer) -> dict[str, Any]:
        """What this rank was given, to check that all ranks were given the same."""
        manifest = trainer.reader.manifest
        given = {f"{name} (package)": version for name, version in versions_of(*PACKAGES).items()}
        given |= {"schema of the data": trainer.reader.schema.id} | flat(self.config.model_dump(mode="json"))
        splits = [self.config.train_split, *([self.config.validation.split] if self.config.validation else [])]
        return given | {f"split {split!r} of the data": data_id(manifest, split) for split in splits}

    def _set_base_rate(self, trainer: Trainer, fresh: bool) -> None:
        """Give the trainer the base rate of its rows, and set the bias of a new model by it; on all ranks."""
        reader, split, say = trainer.reader, self.config.train_split, trainer.reporter.say
        sums = label_sums(self.data_dir, reader.manifest, split, reader.schema.num_slots, self.world, say)
        if sums is None:
            return
        if trainer.network.label_kind == "binary":
            trainer.epochs.base_rate = sums.mean
        if not fresh:
            return
        bias = initial_bias(trainer.network, sums)
        if bias is not None:
            trainer.network.bias.assign(bias)
        elif sums.weight:
            say(f"warning: every row of split {split!r} is of one class: there is nothing to learn")

    def _begin(
        self, trainer: Trainer, stack: contextlib.ExitStack, entry: dict[str, Any], again: bool
    ) -> tuple[RunState | None, str | None]:
        """On rank 0: set up the folder for this run, and restore its last checkpoint if it has one.

        Args:
            entry: of this call in ``run.json``; it is completed here.
            again: whether this job began the run and has lost everything except the checkpoints.

        Returns:
            The state that the run resumes from, and the folder of the checkpoint; None and None for a new run.
        """
        folder, schema, model = trainer.folder, trainer.reader.schema, trainer.network
        with writing(self.model_dir):
            resume = "auto" if again else self.resume
            checkpoint = folder.check(self.config, schema, entry["data_id"], resume, trainer.reporter.say)
            entry["from_checkpoint"] = check_origin(self.model_dir, self.origin, checkpoint is not None)
            _lock(folder, stack, _LOCK_SECONDS if again else 0.0)
            start, source = None, checkpoint
            if checkpoint is not None:
                checkpoint.restore(model)
                start = run_state(checkpoint)
            elif self.origin is not None:
                start, entry["from_checkpoint"], source = continue_from(
                    self.origin, model, self.config, schema, trainer.reporter.say
                )
                if self.config.expiry is not None and not is_sharded(model):
                    drop_expired(
                        source, model, self.config.expiry, start[1]["runs"], self.world, trainer.reporter.say
                    )
            entry["resumed_from"] = None if checkpoint is None else checkpoint.position.step
            folder.record(self.config, schema, entry, self.command)
            save_samples(self.model_dir, load_samples(self.data_dir, schema.raw_columns))
            if (tables := trainer.reader.manifest.tables(self.data_dir, schema.spec)) is not None:
                tables.save(self.model_dir)
            return start, None if source is None else str(source.folder)

    def _restore_others(self, trainer: Trainer, start: RunState | None, source: str | None) -> None:
        """On all ranks, with a sharded table: restore the other ranks once rank 0 has verified the files."""
        if source is None or start is None or not is_sharded(trainer.network):
            return
        expiry, folder = self.config.expiry, Path(source)

        def restore() -> Checkpoint:
            try:
                checkpoint = Checkpoint.open(folder, verify=False)
                if not self.world.is_chief:
                    checkpoint.restore_tables(trainer.network)
                return checkpoint
            except (OSError, DamagedCheckpoint) as error:
                raise UserError(f"{error}: all ranks read {folder}: it must be a folder that they share") from error

        checkpoint = on_every(self.world, restore)[0]
        if expiry is not None and start[0].step == 0:
            drop_expired(checkpoint, trainer.network, expiry, start[1]["runs"], self.world, trainer.reporter.say)

    def _take_over(self, trainer: Trainer, stack: contextlib.ExitStack, entry: dict[str, Any]) -> None:
        """On rank 0, which may be another process than before: take the folder for the same run on other ranks."""
        _lock(trainer.folder, stack, _LOCK_SECONDS)
        with writing(self.model_dir):
            trainer.folder.record(self.config, trainer.reader.schema, entry, self.command)


def _lock(folder: RunDir, stack: contextlib.ExitStack, patience: float) -> None:
    """Lock the folder; the rank that wrote there before may need some seconds to exit."""
    deadline = time.monotonic() + patience
    while True:
        try:
            stack.enter_context(folder.lock())
            return
        except UserError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)


def _open_validation(data_dir: str | Path, config: TrainConfig, manifest: Manifest, world: World) -> Reader:
    assert config.validation is not None
    split = config.validation.split
    try:
        return open_split(data_dir, split, max(config.batch_size, SMALLEST_BATCH), world)
    except UserError as error:
        if manifest.splits.get(split):
            raise
        without = ["validation", *(name for name in STEERED if getattr(config, name) is not None)]
        raise UserError(
            f"validation.{error}; take one of them (--set validation.split=NAME), or train without: "
            + " ".join(f"--set {name}=null" for name in without)
        ) from error


def check_metric(config: TrainConfig, schema: ResolvedSchema) -> None:
    """Check that the data defines the metric that steers the run.

    Raises:
        UserError: naming the metric and one to use instead.
    """
    if config.validation is None or schema.spec.label is None:
        return
    metric = config.validation.metric
    if schema.spec.label.kind == "real" and metric != "rmse":
        raise UserError(f"validation.metric {metric} needs binary labels and this schema's label is real: use rmse")
    if metric == "group_auc" and schema.spec.group is None:
        raise UserError("validation.metric group_auc needs a schema that declares a `group` column: use auc")


def _announce(trainer: Trainer, resumed_from: int | None) -> None:
    config, reader, say = trainer.config, trainer.reader, trainer.reporter.say
    if trainer.ended is not None:
        say(f"nothing left to do: the run has ended ({trainer.ended}) after step {trainer.position.step:,}")
        return
    ranks = f" on {trainer.world.size} ranks" if trainer.world.size > 1 else ""
    if resumed_from is None:
        steps = f"{counted(reader.steps_per_epoch, 'step')} of {config.batch_size:,}"
        epochs = counted(config.epochs, "epoch")
        say(f"training {config.model.name}{ranks}: {counted(reader.rows, 'row')}, {steps} an epoch, {epochs}")
    else:
        say(f"resuming{ranks} after step {resumed_from:,} (epoch {trainer.position.epoch + 1})")
    rate = trainer.schedule.describe()
    if rate is not None:
        say(f"the learning rate {rate}")
    if reason := native.load().reason:
        say(f"slower than it could be: the ops in C++ are not in use ({reason}); build them by `{native.BUILD}`")
