"""The options of a training run: ``train.yaml``, checked before anything is read or computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from afm_ctr.errors import UserError
from afm_ctr.io.validation import Strict, validate
from afm_ctr.io.yaml import read_yaml
from afm_ctr.training.overrides import apply_overrides

CONFIG = "config.yaml"  # in a run's folder
# Metrics by which a run may be steered, and their directions.
METRICS: dict[str, Literal["max", "min"]] = {"auc": "max", "group_auc": "max", "log_loss": "min", "rmse": "min"}
BY_LOSS = {"log": "log_loss", "squared": "rmse"}  # the metric that is a function of the loss
# The options that a resumed run may change; any other would make it another run.
MAY_CHANGE = frozenset(
    {
        "epochs",
        "max_steps",
        "checkpoint",
        "early_stopping",
        "drift_check",
        "elastic",
        "exchange",
        "table",
        "watchdog",
        "tensorboard",
    }
)


class Named(BaseModel):
    """A named entry of a registry, whose class checks the other keys."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """The other keys."""
        return dict(self.__pydantic_extra__ or {})


class ModelConfig(Named):
    """A model from the registry; every key except ``name`` is an option of it.

    Attributes:
        name: of the model: built in, or from an installed package.
    """

    name: str = Field(default="afm", min_length=1)


class OptimizerConfig(Named):
    """An optimizer of :mod:`afm_ctr.optimizers`; further keys (``beta_1``, …) are arguments of it.

    Attributes:
        name: of the optimizer.
        learning_rate: for any number of ranks: it is never scaled.
        warmup_steps: over these steps the learning rate rises linearly to its value.
        decay: how it then falls to 0 at the end of the last epoch (or at ``max_steps``): linearly or along half a
            cosine; ``null``: it does not fall. A resumed run with another end follows the new end's rates.
        average: decay of an exponential moving average of the weights, such as 0.995 for one over about 200 steps;
            ``null``: none. Validation, evaluation and export then use the averages, which smooth out the noise of the
            last steps, so the learning rate need not fall. It costs one slot per weight.
    """

    name: Literal["adagrad", "adam", "ftrl", "rowwise_adagrad", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["linear", "cosine"] | None = None
    average: float | None = Field(default=None, gt=0, lt=1)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the class, except the learning rate."""
        return super().options | ({} if self.average is None else {"average": self.average})


STEERED = ("early_stopping", "reduce_on_plateau")  # by the validation metric


class ValidationConfig(Strict):
    """What is evaluated after each epoch, and which metric steers the run.

    Attributes:
        split: of the data set.
        metric: decides which epoch is the best, when to stop and when to lower the learning rate. If the split does
            not define it (AUC of one class, rows without weight), the run warns that it is not used.
    """

    split: str = Field(default="valid", min_length=1)
    metric: Literal["auc", "group_auc", "log_loss", "rmse"] = "auc"

    @property
    def direction(self) -> Literal["max", "min"]:
        return METRICS[self.metric]


class EarlyStoppingConfig(Strict):
    """Stop when the metric has not improved by ``min_delta`` for ``patience`` epochs.

    Attributes:
        patience: epochs without improvement.
        min_delta: a smaller change does not count.
    """

    patience: int = Field(default=2, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class ReduceOnPlateauConfig(Strict):
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement.

    An epoch improves by the metric of ``validation`` or by the validation loss: a wavering AUC while the loss still
    falls is not a plateau.

    Attributes:
        factor: the learning rate is multiplied by it.
        patience: epochs without improvement.
        min_delta: a smaller change does not count.
        min_learning_rate: the learning rate does not fall below it.
    """

    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=1, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    min_learning_rate: float = Field(default=0.0, ge=0)


class CheckpointConfig(Strict):
    """How often the state is written within an epoch (it always is at its end), and how many are kept.

    Attributes:
        every_steps: steps between checkpoints.
        keep: number of the newest ones that are kept; the best epoch's is kept too.
    """

    every_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=3, ge=1)


class ElasticConfig(Strict):
    """How often an elastic job, whose ranks may come and go, commits: every few seconds, or every few steps.

    A commit is a copy in host memory; steps after the last one are repeated when a rank is lost.

    Attributes:
        commit_seconds: about this long between commits.
        commit_steps: exactly this many steps instead.
    """

    commit_seconds: float = Field(default=5.0, ge=0)
    commit_steps: int | None = Field(default=None, ge=1)


class TableConfig(Strict):
    """Where the rows of the embedding table are stored.

    Attributes:
        placement: ``replicated``: every rank holds the whole table; ``sharded``: each row is on one rank, with its
            optimizer slots; ``auto``: ``sharded`` if the whole table does not fit or sends twice as much.
        memory_gb: a rank's memory for ``auto``; ``null``: the machine's, divided by its ranks. With GPUs it must be
            given.
    """

    placement: Literal["replicated", "sharded", "auto"] = "replicated"
    memory_gb: float | None = Field(default=None, gt=0)


class Expiry(Strict):
    """When a run that continues another forgets rows: those unseen for more than N days, runs or steps.

    Attributes:
        unseen_days: no run that began within N days saw the row.
        unseen_runs: none of the last N runs did.
        unseen_steps: none of the last N steps did.
    """

    unseen_days: int | None = Field(default=None, ge=1)
    unseen_runs: int | None = Field(default=None, ge=1)
    unseen_steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_rule(self) -> Expiry:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("expiry: give one of unseen_days, unseen_runs and unseen_steps")
        return self

    def __str__(self) -> str:
        ((unit, count),) = self.model_dump(exclude_none=True).items()
        return f"{count:,} {unit.removeprefix('unseen_')}"


class DriftCheckConfig(Strict):
    """Compare the ranks' variables from time to time.

    Attributes:
        every_steps: steps between comparisons.
    """

    every_steps: int = Field(default=1000, ge=1)


class WatchdogConfig(Strict):
    """End the process when no step has finished for this long: a lost rank would otherwise hang the job.

    Attributes:
        timeout_seconds: the limit.
    """

    timeout_seconds: float = Field(default=600.0, gt=0)


class TrainConfig(Strict):
    """The config of a run. Immutable; an unknown key or an invalid value is an error that names it.

    Attributes:
        model: which model, and its options.
        loss: ``log``: probabilities of a binary label; ``squared``: the paper's, with a binary label as −1 and 1.
        row_l2: λ of λ‖row‖² for each row that a batch touches; one number, or by column (``linear``, ``vectors``).
        row_l2_per: ``touch``, or ``step``: λ‖row‖² for every row in each step, as a penalty on the whole table. A row
            catches up on the steps since its last touch at the next one: rare and frequent ids are shrunk alike.
        precision: of training. ``float32`` is IEEE float32, with TF32 off on GPUs; ``tf32`` lets GPUs use TF32 for
            matrix products; ``bfloat16`` casts the factors of the interaction's and the network's matrix products to
            bfloat16 (``afm``, ``deep_afm``; the others have none), with weights, table and sums in float32.
        optimizer: which optimizer, and its arguments.
        batch_size: rows per step, over all ranks together.
        epochs: passes over the train split.
        max_steps: ends the run after this many steps in total.
        seed: of initial values, order and dropout.
        shuffle: whether rows come in another order in each epoch.
        train_split: the split to train on.
        validation: the evaluation after each epoch; ``null``: none.
        early_stopping: when to stop before the last epoch; ``null``: never.
        reduce_on_plateau: when to lower the learning rate; ``null``: never.
        checkpoint: how often the state is written.
        expiry: which rows a continued run forgets; ``null``: none.
        table: where the rows of the embedding table are stored.
        exchange: how ranks exchange the gradient of a replicated table: ``gather`` sends the touched rows, ``reduce``
            the whole table, ``auto`` chooses by the number of touched rows.
        elastic: how often an elastic job commits.
        drift_check: how often the ranks are compared; ``null``: never.
        watchdog: after how long without progress the process ends; ``null``: it waits forever.
        tensorboard: whether curves are written to ``tensorboard/`` of the run's folder.
    """

    model: ModelConfig = ModelConfig()
    loss: Literal["log", "squared"] = "log"
    row_l2: Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)]] = 0.0
    row_l2_per: Literal["touch", "step"] = "touch"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(default=4096, ge=1)
    epochs: int = Field(default=3, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    shuffle: bool = True
    train_split: str = Field(default="train", min_length=1)
    validation: ValidationConfig | None = ValidationConfig()
    early_stopping: EarlyStoppingConfig | None = None
    reduce_on_plateau: ReduceOnPlateauConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    expiry: Expiry | None = None
    table: TableConfig = TableConfig()
    exchange: Literal["auto", "gather", "reduce"] = "auto"
    elastic: ElasticConfig = ElasticConfig()
    drift_check: DriftCheckConfig | None = DriftCheckConfig()
    watchdog: WatchdogConfig | None = WatchdogConfig()
    tensorboard: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        for key in STEERED:
            if getattr(self, key) is not None and self.validation is None:
                raise ValueError(f"{key} needs `validation: {{split, metric}}`, which is null")
        if self.validation is not None and self.validation.split == self.train_split:
            raise ValueError(f"validation.split and train_split are both {self.train_split!r}")
        if self.loss == "squared" and self.validation is not None and self.validation.metric == "log_loss":
            raise ValueError("validation.metric log_loss needs `loss: log`; with `loss: squared` use rmse or auc")
        plateau = self.reduce_on_plateau
        if plateau is not None and self.optimizer.decay is not None:
            raise ValueError("reduce_on_plateau and optimizer.decay both lower the learning rate: keep one")
        if plateau is not None and plateau.min_learning_rate > self.optimizer.learning_rate:
            raise ValueError("reduce_on_plateau.min_learning_rate is above optimizer.learning_rate")
        return self

    @property
    def marks_rows(self) -> bool:
        """Whether training stores for each row of the table the step that last touched it."""
        return self.expiry is not None or self.row_l2_per == "step"

    @classmethod
    def load(cls, path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> TrainConfig:
        """Read a YAML file (None: the defaults) and apply ``key.path=value`` overrides.

        Raises:
            UserError: naming the file or the override, the key and the value.
        """
        content: Any = {}
        where = "--set" if path is None else str(path)
        if path is not None:
            content = read_yaml(Path(path))
            content = {} if content is None else content
        if not isinstance(content, dict):
            raise UserError(f"{where}: a training config is a mapping of keys, not {type(content).__name__}")
        try:
            return cls.parse(apply_overrides(cls, content, overrides), where)
        except UserError:
            if path is None or not overrides:
                raise
            cls.parse(content, where)  # raises if the file itself is wrong
        # The override that makes the rest invalid, or all of them.
        guilty = [one for one in overrides if cls._takes(content, [o for o in overrides if o is not one])]
        return cls.parse(apply_overrides(cls, content, overrides), f"--set {' --set '.join(guilty or overrides)}")

    @classmethod
    def _takes(cls, content: dict[str, Any], overrides: Sequence[str]) -> bool:
        try:
            cls.from_content(content, overrides)
        except UserError:
            return False
        return True

    @classmethod
    def from_content(cls, content: dict[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
        """Check a mapping with ``key.path=value`` overrides. Raises as :meth:`load` does."""
        return cls.parse(apply_overrides(cls, content, overrides), "--set")

    @classmethod
    def parse(cls, content: dict[str, Any], where: str) -> TrainConfig:
        """Check a mapping; ``where`` names its source in the one line of a :class:`UserError`."""
        return validate(cls, content, where)

    def to_yaml(self) -> str:
        """The resolved config, every key written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def changed_from(self, other: TrainConfig, only: Sequence[str] = ()) -> str | None:
        """The first difference that makes a resumed run another run, as ``key: old -> new``, or None.

        Args:
            only: compare only these keys and the keys below them.
        """
        mine, theirs = (flat(c.model_dump(mode="json", exclude=set(MAY_CHANGE))) for c in (self, other))
        for key in sorted(mine.keys() | theirs.keys()):
            if only and not any(f"{key}.".startswith(f"{one}.") for one in only):
                continue
            if mine.get(key) != theirs.get(key):
                return f"{key}: {theirs.get(key)!r} -> {mine.get(key)!r}"
        return None


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
