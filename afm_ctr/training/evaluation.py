"""Exact metrics of a model on a split, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from afm_ctr.distributed import World, init
from afm_ctr.errors import UserError
from afm_ctr.metrics import Evaluation
from afm_ctr.models import CTRModel
from afm_ctr.records import Manifest, Reader
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.divergence import check_scores
from afm_ctr.training.model_io import Which, make_scorer, open_run
from afm_ctr.training.verdict import history_of, no_better_than_constant, still_improving

SMALLEST_BATCH = 4096  # evaluation keeps no gradients: small training batches would only be slower
_ALIGNED = 64  # a rank's batch is a multiple: trailing rows of an array may be rounded differently

_OF_A_ROW = ("feature_ids", "feature_vals", "label", "weight", "group", "has_group")


class Evaluator:
    """Scores a split in file order, each rank its part, and merges the ranks' counts.

    Args:
        model: its corrected logits are evaluated, as they are exported.
        reader: of the split, made with ``shuffle=False`` and this rank.
    """

    def __init__(
        self, model: CTRModel, reader: Reader, world: World, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._model, self._reader, self._world = model, reader, world
        self._grouped = reader.schema.spec.group is not None
        self._batches = scored_batches(model, reader, beat)

    def __call__(self) -> dict[str, Any]:
        """The figures of :meth:`afm_ctr.metrics.Evaluation.result`, the same on every rank.

        Raises:
            UserError: a damaged record, or a score that is not finite.
        """
        evaluation = new_evaluation(self._model, self._reader)
        for batch in self._batches():
            add_batch(evaluation, batch, self._grouped)
        return evaluation.over(self._world).result()


def scored_batches(
    model: CTRModel, reader: Reader, beat: Callable[[], None] = lambda: None
) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """A function that iterates once over this rank's rows of a split, in file order, without padding.

    It yields for each batch ``feature_ids``, ``feature_vals``, ``label``, ``weight``, ``group`` and ``has_group`` as
    :meth:`afm_ctr.records.Reader.batch` gives them, and ``logit`` float32 [B], with the correction for negative
    sampling. It uses the model's current weights.

    Raises:
        UserError: (while iterating) a damaged record, or a score that is not finite.
    """
    score = make_scorer(model, reader.local_batch)

    def walk() -> Iterator[dict[str, np.ndarray]]:
        with reader.explained():
            for step, batch in enumerate(reader.dataset(0, columns=_OF_A_ROW)):
                logits, _ = score(batch["feature_ids"], batch["feature_vals"])
                rows = slice(0, reader.local_rows(step))  # the rest is padding
                found = {name: batch[name].numpy()[rows] for name in _OF_A_ROW}
                scores = logits.numpy()[rows]
                check_scores(reader, step, found["weight"], scores)
                yield {**found, "logit": scores}
                beat()

    return walk


def new_evaluation(model: CTRModel, reader: Reader) -> Evaluation:
    """Metrics for a model and the split that a reader reads."""
    sampling = reader.schema.spec.negative_sampling
    # `apply: here` thins only the split "train"; with `already` every split is thinned.
    thinned = sampling is not None and (sampling.apply == "already" or reader.split == "train")
    offset = model.bias_offset if thinned else 0.0
    return Evaluation(model.loss_kind, model.label_kind, offset=offset)  # type: ignore[arg-type]


def add_batch(evaluation: Evaluation, batch: dict[str, np.ndarray], grouped: bool) -> None:
    """Add a batch of :func:`scored_batches` to the metrics; ``grouped``: the schema names a group."""
    groups = {"groups": batch["group"], "has_group": batch["has_group"]} if grouped else {}
    evaluation.update(batch["label"], batch["logit"], weights=batch["weight"], **groups)


def evaluate(
    data_dir: str | Path, split: str, model_dir: str | Path, world: World | None = None, *, which: Which = "best"
) -> dict[str, Any]:
    """Evaluate a trained model on a split: the same figures on every rank.

    Args:
        data_dir: a prepared data set, of the run's schema or of one that it grew from.
        split: ``test``, …
        model_dir: a run's folder, written by ``train``.
        world: by default that of :func:`afm_ctr.distributed.init`.
        which: the ``best`` checkpoint or the ``latest``.

    Returns:
        ``auc``, ``group_auc``, ``log_loss``, ``rmse``, ``calibration`` and the rest of
        :meth:`afm_ctr.metrics.Evaluation.result` as far as loss and label define them, and ``split``, ``rows``,
        ``positives``, ``checkpoint``, and ``warnings``, a list of lines: a model no better than a constant, or still
        improving in its last epoch.

    Raises:
        UserError: no such run or split, unlabelled data, a foreign schema, a damaged file.
    """
    world = init() if world is None else world
    model, schema, config, checkpoint = open_run(model_dir, which, world=world)
    reader = open_split(data_dir, split, max(config.batch_size, SMALLEST_BATCH), world)
    check_readable(schema, reader.schema, data_dir)
    figures = Evaluator(model, reader, world)()
    positives = sum(shard.positives for shard in reader.manifest.shards_of(split))
    head: dict[str, Any] = {"split": split, "checkpoint": checkpoint.folder.name, "rows": reader.rows}
    if model.label_kind == "binary":
        head["positives"] = positives
    if figures["rows"] != reader.rows:
        head["rows_of_weight_0"] = reader.rows - figures["rows"]
    found = [no_better_than_constant(figures, split), still_improving(history_of(Path(model_dir)), config)]
    warnings = [text for text in found if text is not None]
    return {**head, **{name: value for name, value in figures.items() if name != "rows"}, "warnings": warnings}


def open_split(data_dir: str | Path, split: str, batch_size: int, world: World) -> Reader:
    """A reader of a labelled split in file order."""
    manifest = Manifest.load(data_dir)
    if not manifest.labelled:
        raise UserError(f"{data_dir} was prepared without labels: it can be predicted, not evaluated")
    batch = scoring_batch(manifest.split_rows(split), batch_size, world.size)
    return Reader(data_dir, split, batch, rank=world.rank, size=world.size, shuffle=False)


def scoring_batch(rows: int, batch_size: int, ranks: int = 1) -> int:
    """The batch size for scoring a split: about ``batch_size``, but not mostly padding if there are few rows."""
    unit = ranks * _ALIGNED
    return -(-min(rows, batch_size) // unit) * unit


def check_readable(run: ResolvedSchema, data: ResolvedSchema, data_dir: str | Path) -> None:
    """Check that the data has the model's schema or one that it grew from: their ids mean the same.

    Raises:
        UserError: naming both ids.
    """
    if not run.descends_from(data.id):
        raise UserError(
            f"foreign schema: {data_dir} has {data.id}, the model was trained with {run.id}; prepare the data with "
            "the schema.yaml of the run"
        )
