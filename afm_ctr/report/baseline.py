"""A baseline: another run's scores of the same rows, and the reported run's gain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afm_ctr.errors import UserError
from afm_ctr.metrics import Interval, auc_gain, mean_interval
from afm_ctr.records import Reader
from afm_ctr.report.scored import ScoredSplit, score_split
from afm_ctr.training.evaluation import check_readable
from afm_ctr.training.model_io import Which, open_run


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A run to compare with, such as one of the ``lr`` model."""

    folder: str
    model: str
    checkpoint: str
    scored: ScoredSplit
    # the baseline's loss minus the reported run's, a mean of differences by row; None without rows
    loss_gain: Interval | None
    auc_gain: Interval | None  # the reported run's AUC minus the baseline's; None if a class is missing

    @property
    def name(self) -> str:
        return f"{self.folder} (model {self.model})"

    @classmethod
    def score(
        cls,
        folder: Path,
        which: Which,
        data_dir: str,
        reader: Reader,
        own: ScoredSplit,
        progress: Callable[[int], None],
    ) -> Baseline:
        """Score the rows of a reader of ``data_dir`` with another run; ``own`` are the reported run's scores.

        Raises:
            UserError: no run, another schema or loss, or rows without labels.
        """
        if own.labels is None:
            raise UserError(f"--baseline {folder}: the split has no labels to compare by; name another --split")
        model, schema, _, checkpoint = open_run(folder, which)
        try:
            check_readable(schema, reader.schema, data_dir)
        except UserError as error:
            raise UserError(f"--baseline {folder}: {error}") from error
        if model.loss_kind != own.loss:
            raise UserError(
                f"--baseline {folder}: it was trained on {model.loss_kind} loss, this run on {own.loss} loss, and "
                "their scores cannot be compared; name a run with the same loss"
            )
        scored = score_split(model, reader, (), progress)
        return cls(
            folder=str(folder),
            model=model.interaction_name,
            checkpoint=checkpoint.folder.name,
            scored=scored,
            loss_gain=mean_interval(scored.losses - own.losses, own.weights),
            auc_gain=auc_gain(own.labels, own.scores, scored.scores, own.weights)
            if own.label_kind == "binary"
            else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The run and the differences as plain data."""
        gains = {"auc": self.auc_gain, "log_loss" if self.scored.loss == "log" else "squared_error": self.loss_gain}
        return {
            "run": self.folder,
            "model": self.model,
            "checkpoint": self.checkpoint,
            "better_by": {name: gain._asdict() for name, gain in gains.items() if gain is not None},
        }
