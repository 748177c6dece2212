"""A run that continues another one: yesterday's weights, today's rows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np

from afm_ctr.distributed import World
from afm_ctr.embedding import assign_rows
from afm_ctr.errors import UserError
from afm_ctr.io.files import read_json
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.checkpoint import MANIFEST, Checkpoint, DamagedCheckpoint, Position
from afm_ctr.training.checkpoint_manager import CheckpointManager
from afm_ctr.training.config import CONFIG, Expiry, TrainConfig
from afm_ctr.training.expiry import BLOCK_ROWS, Begun, begun_now, expire, last_kept, marks_of
from afm_ctr.training.model_io import CHECKPOINTS, RUN
from afm_ctr.training.model_state import is_sharded, tables_of
from afm_ctr.training.progress import Say
from afm_ctr.training.trainer import RunState

_MUST_AGREE = ("model", "loss", "optimizer.name", "optimizer.average")


def check_origin(model_dir: Path, origin: Path | None, begun: bool) -> dict[str, Any] | None:
    """Check that the run in a folder, if it is resumed, continues the same run as before.

    Args:
        origin: the run to continue; None for none.
        begun: whether the run has its own checkpoint, and resumes from that.

    Returns:
        Its entry in ``run.json``; None for none.

    Raises:
        UserError: the run was started from something else.
    """
    if not (model_dir / RUN).is_file():
        return None
    path = model_dir / RUN
    known: dict[str, Any] | None = read_json(path).get("from_checkpoint")
    try:
        before = known["path"] if known else None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: from_checkpoint: {error}") from error
    if origin is not None and begun and before is None:
        raise UserError(
            f"--from-checkpoint {origin}: the run in {model_dir} was started without one and has trained since; name "
            "a new --model-dir"
        )
    now = None if origin is None else str(origin.resolve())
    if before != now and (now is not None or not begun):
        raise UserError(
            f"the run in {model_dir} was started with --from-checkpoint {before}, not {origin}: give the same one"
        )
    return known


def continue_from(
    origin: Path, model: keras.Model, config: TrainConfig, schema: ResolvedSchema, say: Say
) -> tuple[RunState, dict[str, Any], Checkpoint]:
    """Load the state of another run into a new model and its optimizer; call :func:`drop_expired` next.

    The position, the history, early stopping and the like start again; so does the learning rate. Rows that the other
    run's table did not have keep their initial values.

    Args:
        origin: a run's folder, whose latest undamaged checkpoint is used, or one checkpoint's folder.
        schema: of the data: the other run's, or one that grew from it.

    Returns:
        The state for :meth:`Trainer.restore`, the entry for ``run.json``, and the checkpoint that was restored.

    Raises:
        UserError: no run or checkpoint there, another model, a foreign schema.
    """
    checkpoint, before = _open(origin, say)
    difference = config.changed_from(before, only=_MUST_AGREE)
    if difference is not None:
        raise UserError(f"--from-checkpoint {origin}: it was trained with another {difference}")
    if not schema.descends_from(checkpoint.schema_id):
        raise UserError(
            f"--from-checkpoint {origin}: foreign schema: the data has {schema.id}, the checkpoint was trained with "
            f"{checkpoint.schema_id}; prepare the data with --parent and the schema.yaml of that run"
        )
    checkpoint.restore(model)
    model.optimizer.learning_rate = config.optimizer.learning_rate
    steps = int(model.optimizer.iterations)
    grown = sum(table.feature_size - _rows(checkpoint, table.name) for table in tables_of(model))
    new = f", {grown:,} new rows" if grown else ""
    say(f"continuing {checkpoint.folder} (step {steps:,} of its optimizer){new}")
    state: dict[str, Any] = {"best": None, "callbacks": {}, "runs": [*checkpoint.state["runs"], begun_now(steps)]}
    kept = {"path": str(origin.resolve()), "checkpoint": checkpoint.folder.name, "schema_id": checkpoint.schema_id}
    return (Position(), state, {}), kept, checkpoint


def _open(origin: Path, say: Say) -> tuple[Checkpoint, TrainConfig]:
    if (origin / MANIFEST).is_file():
        try:
            return Checkpoint.open(origin), TrainConfig.load(origin.parent.parent / CONFIG)
        except DamagedCheckpoint as error:
            raise UserError(f"--from-checkpoint: the checkpoint is damaged ({error}); name another") from error
    if not (origin / CONFIG).is_file():
        raise UserError(f"--from-checkpoint {origin}: neither a run's folder (no {CONFIG}) nor a checkpoint's")
    checkpoint = CheckpointManager(origin / CHECKPOINTS, warn=say).latest()
    if checkpoint is None:
        raise UserError(f"--from-checkpoint {origin}: the run has no checkpoint yet")
    return checkpoint, TrainConfig.load(origin / CONFIG)


def _rows(checkpoint: Checkpoint, table: str) -> int:
    return max(int(column["rows"]) for column in checkpoint.manifest["tables"][table].values())


def drop_expired(
    checkpoint: Checkpoint, model: keras.Model, rule: Expiry, runs: list[Begun], world: World, say: Say
) -> None:
    """Reset the rows that have expired to their initial values: see :func:`expire`.

    If tables are sharded, all ranks must call it; otherwise only rank 0 does, and its state is broadcast.
    """
    *before, now = runs
    unmarked = [table for table in tables_of(model) if not checkpoint.marks_rows(table.name)]
    for table in unmarked:
        rows = _rows(checkpoint, table.name)
        for start in range(0, table.local_rows, BLOCK_ROWS):
            ids = table.stored_ids(start, min(start + BLOCK_ROWS, table.local_rows))
            marks = np.where((ids > 0) & (ids < rows), now["after"], 0)
            assign_rows(marks_of(table).value, start, marks)
    if unmarked:
        say("expiry: the previous run kept no marks, so all of its rows count as just seen")
    found = expire(model, last_kept(rule, before, now["after"], datetime.date.fromisoformat(now["date"])))
    gone, known = (world.agree(count, "sum") for count in found) if is_sharded(model) else found
    say(f"expiry: {gone:,} of {known:,} known rows, unseen for {rule}, went back to their initial values")
