"""Vectors in half precision: half the memory of a served model, for scores that differ in the fourth digit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict

from afm_ctr.distributed import init
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.evaluation import SMALLEST_BATCH, Evaluator, check_readable, open_split
from afm_ctr.training.stored_table import StoredTable


class HalfChange(BaseModel):
    """Effect of storing the vectors in half precision.

    Attributes:
        bytes_before, bytes_after: of the vectors.
        largest_change: of a number in the vectors, absolute.
        split, rows: the rows of the figures; None: no data was given.
        before, after: ``auc``, ``log_loss`` and ``rmse``, as far as the loss and the label define them.
    """

    model_config = ConfigDict(frozen=True)

    bytes_before: int
    bytes_after: int
    largest_change: float
    split: str | None = None
    rows: int = 0
    before: dict[str, float] = {}
    after: dict[str, float] = {}

    def __str__(self) -> str:
        size = f"vectors as float16: {self.bytes_before / 1e6:,.1f} MB -> {self.bytes_after / 1e6:,.1f} MB"
        if self.split is None:
            return f"{size}; what it does to the AUC was not measured (give --data)"
        figures = ", ".join(
            f"{name} {old:.6f} -> {self.after[name]:.6f} ({self.after[name] - old:+.1e})"
            for name, old in self.before.items()
        )
        return f"{size}; {figures} on {self.rows:,} rows of {self.split}"


def halve_vectors(model: CTRModel) -> tuple[tf.Variable | None, float]:
    """Let the model score from a copy of its vectors in half precision, cast up after the gather.

    The trained weights do not change, and the linear weights, which are few and add up, stay in float32. Vectors in a
    checkpoint's files are not copied: they are rounded as they are read.

    Returns:
        The copy, float16 [V, k], or None; and the largest change of a number.

    Raises:
        UserError: the model has no vectors, or a number too large for half precision (65,504).
    """
    table = model.table
    if "vectors" not in table.widths:
        raise UserError(f"--float16-tables: the model {model.interaction_name} has no vectors to store in half")
    if isinstance(table, StoredTable):
        largest, whole = 0.0, table.read
        for rows in table.blocks("vectors"):
            with np.errstate(over="ignore"):
                largest = max(largest, float(np.abs(rows.astype(np.float16).astype(np.float32) - rows).max()))

        def rounded(ids: tf.Tensor) -> dict[str, tf.Tensor]:
            rows = whole(ids)
            return rows | {"vectors": tf.cast(tf.cast(rows["vectors"], tf.float16), rows["vectors"].dtype)}

        half, read = None, rounded
    else:
        vectors = table.columns["vectors"].value
        half = tf.Variable(tf.cast(vectors, tf.float16), trainable=False, name="vectors_float16")
        largest = float(tf.reduce_max(tf.abs(tf.cast(half, vectors.dtype) - vectors)))

        def cast_up(ids: tf.Tensor) -> dict[str, tf.Tensor]:
            rows = {name: tf.gather(column.value, ids) for name, column in table.columns.items() if name != "vectors"}
            return rows | {"vectors": tf.cast(tf.gather(half, ids), vectors.dtype)}

        read = cast_up
    if not math.isfinite(largest):
        raise UserError("--float16-tables: a vector holds a number beyond 65,504, the largest of half precision")
    table.read = read  # type: ignore[method-assign]  # only for this table
    return half, largest


def halve_and_measure(
    model: CTRModel, schema: ResolvedSchema, data_dir: str | Path | None, split: str
) -> tuple[tf.Variable | None, HalfChange]:
    """:func:`halve_vectors`, and the figures of a split before and after.

    Raises:
        UserError: as :func:`halve_vectors`; or no such split, or data of another schema.
    """
    reader = None
    if data_dir is not None:
        reader = open_split(data_dir, split, SMALLEST_BATCH, init())
        check_readable(schema, reader.schema, data_dir)
    before = {} if reader is None else _figures(Evaluator(model, reader, init())())
    half, largest = halve_vectors(model)
    numbers = model.table.feature_size * model.table.widths["vectors"]
    after = {} if reader is None else _figures(Evaluator(model, reader, init())())
    change = HalfChange(
        bytes_before=numbers * tf.as_dtype(model.table.dtype).size,
        bytes_after=numbers * tf.float16.size,
        largest_change=largest,
        split=None if reader is None else split,
        rows=0 if reader is None else reader.rows,
        before=before,
        after=after,
    )
    return half, change


def _figures(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[name] for name in ("auc", "log_loss", "rmse") if found.get(name) is not None}
