"""A split with the model's scores by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from afm_ctr.metrics import (
    Evaluation,
    Interval,
    auc_interval,
    mean_interval,
    ratio_interval,
    row_losses,
    sigmoid,
    signed,
)
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.training.evaluation import add_batch, new_evaluation, scored_batches

Floats = npt.NDArray[np.float64]

SLICE_BYTES = 256 << 20  # maximum memory for the cells of the rows to slice


@dataclasses.dataclass(frozen=True)
class ScoredSplit:
    """Rows of a split, in file order, without those of weight 0.

    Memory: 12 bytes per row, up to :data:`SLICE_BYTES` for the cells of the rows to slice, and about 150 bytes per
    row while metrics are computed.
    """

    loss: str  # ``log`` or ``squared``
    label_kind: str  # ``binary`` or ``real``
    labels: npt.NDArray[np.float32] | None  # float32 ``[n]`` as stored; None: unlabelled data
    scores: npt.NDArray[np.float32]  # float32 ``[n]``: logits (log loss) or scores (squared loss)
    weights: npt.NDArray[np.float32]  # float32 ``[n]``, > 0
    # the metrics of ``evaluate``, see :meth:`afm_ctr.metrics.Evaluation.result`; None without labels
    figures: dict[str, Any] | None
    group_interval: Interval | None  # of the group AUC, if there is one
    sampled: npt.NDArray[np.int64]  # int64 ``[m]``, the rows whose cells are kept: every n-th
    slots: tuple[int, ...]  # the schema's slots whose cells are kept
    ids: npt.NDArray[np.integer[Any]]  # int32 or int64 ``[m, len(slots)]``
    values: npt.NDArray[np.float32]  # float32 ``[m, len(slots)]``

    @property
    def predictions(self) -> Floats:
        """Probabilities or scores, float64 ``[n]``."""
        return sigmoid(self.scores) if self.loss == "log" else self.scores.astype(np.float64)

    @property
    def targets(self) -> Floats:
        """The labels on the predictions' scale, float64 ``[n]``."""
        assert self.labels is not None
        if self.loss == "squared" and self.label_kind == "binary":
            return signed(self.labels)
        return self.labels.astype(np.float64)

    @property
    def losses(self) -> Floats:
        """Log loss or squared error of each row, float64 ``[n]``."""
        return row_losses(self.loss, self.targets, self.scores)

    def quality(self, rows: Any = slice(None)) -> tuple[Interval | None, str]:
        """AUC of some of the rows, or RMSE if labels are real; or None, and why."""
        if self.labels is None:
            return None, "no labels"
        weights = self.weights[rows]
        if self.label_kind == "real":
            return root(mean_interval(np.square(self.predictions[rows] - self.targets[rows]), weights)), "no rows"
        labels = self.labels[rows]
        found = auc_interval(labels, self.scores[rows], weights)
        if found is not None:
            return found, ""
        return None, "no rows" if not labels.size else "all positive" if labels[0] else "all negative"


def root(square: Interval | None) -> Interval | None:
    """The interval of a square root, from the interval of the square."""
    if square is None:
        return None
    ends = (None if end is None else float(np.sqrt(max(end, 0.0))) for end in (square.low, square.high))
    return Interval(float(np.sqrt(square.value)), *ends)


def score_split(
    model: CTRModel, reader: Reader, slots: Sequence[int], progress: Callable[[int], None] = lambda rows: None
) -> ScoredSplit:
    """Score the rows of a reader.

    Args:
        reader: of the split, with ``shuffle=False``, one rank.
        slots: the slots whose cells to keep, of every row or, to limit memory, of every n-th.

    Raises:
        UserError: a damaged record, or scores that are not finite.
    """
    evaluation = new_evaluation(model, reader)
    labelled, grouped = reader.manifest.labelled, reader.schema.spec.group is not None
    id_type = np.int32 if reader.schema.feature_size <= np.iinfo(np.int32).max else np.int64
    every = max(1, -(-reader.rows * len(slots) * (np.dtype(id_type).itemsize + 4) // SLICE_BYTES))
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("label", "logit", "weight", "sampled", "ids", "values")
    }
    done = kept_before = 0
    for batch in scored_batches(model, reader)():
        if labelled:
            add_batch(evaluation, batch, grouped)
        counts = batch["weight"] > 0
        for name in ("label", "logit", "weight"):
            columns[name].append(batch[name][counts])
        number = kept_before + np.arange(int(counts.sum()))
        chosen = number % every == 0
        columns["sampled"].append(number[chosen])
        columns["ids"].append(batch["feature_ids"][counts][chosen][:, slots].astype(id_type))
        columns["values"].append(batch["feature_vals"][counts][chosen][:, slots])
        kept_before += number.size
        done += counts.size
        progress(done)
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    columns.clear()
    return ScoredSplit(
        loss=model.loss_kind,
        label_kind=model.label_kind,
        labels=whole["label"] if labelled else None,
        scores=whole["logit"],
        weights=whole["weight"],
        figures=evaluation.result() if labelled else None,
        group_interval=_of_groups(evaluation) if labelled and model.label_kind == "binary" else None,
        sampled=whole["sampled"],
        slots=tuple(slots),
        ids=whole["ids"],
        values=whole["values"],
    )


def _of_groups(evaluation: Evaluation) -> Interval | None:
    """The interval of the group AUC: groups, not rows, are the independent samples."""
    auc, weight, used = evaluation.groups.by_group()
    found = ratio_interval(auc[used] * weight[used], weight[used])
    return None if found is None else found.within(0.0, 1.0)
