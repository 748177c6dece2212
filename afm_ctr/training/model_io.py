"""Builds a model from a config and a schema, and loads a trained one from a run's folder."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from afm_ctr.distributed import World
from afm_ctr.embedding import EmbeddingTable
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.optimizers.average import Average
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.checkpoint import Checkpoint
from afm_ctr.training.checkpoint_manager import CheckpointManager
from afm_ctr.training.config import CONFIG, TrainConfig
from afm_ctr.training.stored_table import LARGEST_TABLE_MB, StoredTable
from afm_ctr.visible import fitted, visible

RUN, HISTORY, CHECKPOINTS, TENSORBOARD, PROFILE = (
    "run.json",
    "history.jsonl",
    "checkpoints",
    "tensorboard",
    "profile.json",
)
Which = Literal["best", "latest"]
Scorer = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def build_model(
    schema: ResolvedSchema,
    config: TrainConfig,
    training: bool = False,
    shard_over: World | None = None,
    table_kind: Callable[..., EmbeddingTable] = EmbeddingTable,
) -> CTRModel:
    """A new model; its initial weights depend only on the schema, the config and the seed.

    With ``training`` it also has what only training needs: the marks of rows. It sets whether this process uses TF32
    on GPUs: only in training, and with ``precision: tf32``.

    ``negative_sampling: {correct: logit}`` becomes the model's ``bias_offset`` ln(rate): a model trained on logs
    that kept the share r of the negatives overstates the odds by 1/r.

    ``shard_over``: the ranks that share the table's rows; None: this process holds them all, unless ``table_kind``
    stores them elsewhere.

    Raises:
        UserError: an unknown model, an unknown option, or a loss that does not fit the label or the correction.
    """
    label = schema.spec.label
    if label is None:
        raise UserError(f"schema {schema.spec.name!r} declares no label: there is nothing to train or evaluate")
    sampling = schema.spec.negative_sampling
    if sampling is not None and sampling.correct == "logit" and config.loss != "log":
        raise UserError(
            f"schema {schema.spec.name!r} has negative_sampling.correct: logit, which shifts the logit of a "
            f"probability, and `loss: {config.loss}` has none: use loss: log, or prepare with correct: weights"
        )
    if sampling is not None and sampling.apply == "here" and config.train_split != "train":
        raise UserError(
            f"train_split: {config.train_split}: schema {schema.spec.name!r} has negative_sampling.apply: here, "
            "which thins only the split 'train'; train on that, or on a log thinned before (`apply: already`)"
        )
    tf.config.experimental.enable_tensor_float_32_execution(training and config.precision == "tf32")
    return CTRModel(
        config.model.name,
        config.model.options,
        feature_size=schema.feature_size,
        num_slots=schema.num_slots,
        pairs=schema.pairs,
        loss=config.loss,
        label_kind=label.kind,
        row_l2=config.row_l2,
        row_l2_per=config.row_l2_per if training else "touch",  # no marks without training
        seed=config.seed,
        precision="bfloat16" if config.precision == "bfloat16" else "float32",
        mark_rows=training and config.marks_rows,
        bias_offset=math.log(sampling.rate) if sampling is not None and sampling.correct == "logit" else 0.0,
        shard_over=shard_over,
        table_kind=table_kind,
    )


def load_model(model_dir: str | Path, which: Which = "best") -> tuple[CTRModel, ResolvedSchema, TrainConfig]:
    """The trained model of a run, with its whole table in memory, and its schema and config.

    Args:
        model_dir: a run's folder, written by ``train``.
        which: ``"best"`` by the validation metric (the latest if nothing was validated), or ``"latest"``.

    Raises:
        UserError: no run, no checkpoint, or a damaged checkpoint.
    """
    model, schema, config, _ = open_run(model_dir, which, largest_table_mb=math.inf)
    return model, schema, config


def open_run(
    model_dir: str | Path,
    which: Which = "best",
    warn: Callable[[str], None] | None = None,
    world: World | None = None,
    largest_table_mb: float = LARGEST_TABLE_MB,
) -> tuple[CTRModel, ResolvedSchema, TrainConfig, Checkpoint]:
    """The trained model of a run, as :func:`load_model` returns it, for scoring, and its checkpoint.

    If ``world`` has several ranks and the checkpoint's table is sharded, they share its rows again. Otherwise a table
    of more than ``largest_table_mb`` megabytes stays in the checkpoint's files: see
    :class:`~afm_ctr.training.stored_table.StoredTable`.
    """
    folder = Path(model_dir)
    if which not in ("best", "latest"):
        raise UserError(f"checkpoint {which!r}: use best or latest")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no training run (no {CONFIG}); afm-ctr train makes one")
    config = TrainConfig.load(folder / CONFIG)
    schema = ResolvedSchema.load(folder)
    checkpoints = CheckpointManager(folder / CHECKPOINTS, warn=warn or _to_stderr)
    checkpoint = (checkpoints.best() if which == "best" else None) or checkpoints.latest()
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint yet: the run ended before its first; train it again")
    if not schema.descends_from(checkpoint.schema_id):
        raise UserError(f"{folder}: foreign schema: {schema.id}, the checkpoint's is {checkpoint.schema_id}")
    share = world is not None and world.size > 1 and checkpoint.sharded
    average = None if config.optimizer.average is None else Average(config.optimizer.average)
    kind: Callable[..., EmbeddingTable] = EmbeddingTable
    if 4 * schema.feature_size * checkpoint.width > largest_table_mb * 1e6:
        kind = functools.partial(StoredTable, checkpoint=checkpoint, average=average)
    model = build_model(schema, config, shard_over=world if share else None, table_kind=kind)
    checkpoint.restore(model, optimizer=False)
    if average is not None:
        checkpoint.restore_averages(model, average)
    return model, schema, config, checkpoint


def make_scorer(model: CTRModel, rows: int) -> Scorer:
    """A compiled function from ``feature_ids`` int64 [B, F] and ``feature_vals`` float32 [B, F] to two float32 [B].

    Logit and prediction, with the correction for negative sampling, as exported and served.

    Args:
        rows: B. With a size that is known in advance a model may compute large batches in blocks: less memory.
    """
    ids = tf.TensorSpec([rows, model.num_slots], tf.int64)
    vals = tf.TensorSpec([rows, model.num_slots], tf.float32)

    def score(feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> tuple[Any, Any]:
        logits = model({"feature_ids": feature_ids, "feature_vals": feature_vals}, training=False, corrected=True)
        return logits, model.predictions(logits)

    return tf.function(score, input_signature=[ids, vals], autograph=False)


def _to_stderr(text: str) -> None:
    print(fitted(f"afm-ctr: {visible(text)}", sys.stderr), file=sys.stderr, flush=True)
