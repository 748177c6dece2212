"""The sections of a training config: what is below the keys of ``train.yaml``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Metrics of an evaluation that a run may steer by, and whether more is better.
METRICS: dict[str, Literal["max", "min"]] = {
    "auc": "max",
    "group_auc": "max",
    "log_loss": "min",
    "rmse": "min",
}


class Strict(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Named(BaseModel):
    """A named thing from a registry, whose further keys its own class checks."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the named class."""
        return dict(self.__pydantic_extra__ or {})


class ModelConfig(Named):
    """An interaction from the registry; every key but ``name`` is an option of it.

    Attributes:
        name: of the model: one of ours, or one that an installed package brings.
    """

    name: str = Field(default="afm", min_length=1)


class OptimizerConfig(Named):
    """An optimizer of :mod:`afm_ctr.optimizers`; further keys (``beta_1``, …) are arguments of it.

    Attributes:
        name: of the optimizer.
        learning_rate: for any number of ranks: it is never scaled.
        warmup_steps: over which the learning rate rises to its value in a straight line.
        decay: how it falls from there, to 0 at the end of the last epoch (or at ``max_steps``): in a straight line or
            along half a cosine; ``null``: it does not. A resumed run that is told another end takes that end's rates.
    """

    name: str = Field(default="adam", min_length=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["linear", "cosine"] | None = None


class ValidationConfig(Strict):
    """What is looked at after each epoch, and by which metric a run is steered.

    Attributes:
        split: of the data set.
        metric: what says which epoch is the best, when to stop and when to lower the learning rate. Where the split
            does not define it (AUC of one class, rows without weight), the run says that nothing goes by it.
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
        min_delta: a smaller change is none.
    """

    patience: int = Field(default=2, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class ReduceOnPlateauConfig(Strict):
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement.

    Attributes:
        factor: what the learning rate is multiplied by.
        patience: epochs without improvement.
        min_delta: a smaller change is none.
        min_learning_rate: the learning rate does not fall below it.
    """

    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=1, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    min_learning_rate: float = Field(default=0.0, ge=0)


class CheckpointConfig(Strict):
    """How often the state is written within an epoch (its end always is), and how many are kept.

    Attributes:
        every_steps: steps from one checkpoint to the next.
        keep: the newest so many stay; that of the best epoch stays too.
    """

    every_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=3, ge=1)


class ElasticConfig(Strict):
    """How often a job whose ranks may come and go commits: about every so many seconds, or exactly every few steps.

    A commit is a copy in host memory; what came after the last one is done again when a rank is lost.

    Attributes:
        commit_seconds: about this long from one commit to the next.
        commit_steps: exactly so many steps instead.
    """

    commit_seconds: float = Field(default=5.0, ge=0)
    commit_steps: int | None = Field(default=None, ge=1)


class Expiry(Strict):
    """When a run that continues another forgets rows: those unseen for more than so many days, runs or steps.

    Attributes:
        unseen_days: since a run that began within so many days, no batch held the row.
        unseen_runs: no batch of the last so many runs did.
        unseen_steps: no batch of the last so many steps did.
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
    """Compare the ranks' variables every so many steps.

    Attributes:
        every_steps: steps from one comparison to the next.
    """

    every_steps: int = Field(default=1000, ge=1)


class WatchdogConfig(Strict):
    """End the process when no step has ended for so long: a lost rank would otherwise hang the job.

    Attributes:
        timeout_seconds: how long.
    """

    timeout_seconds: float = Field(default=600.0, gt=0)
