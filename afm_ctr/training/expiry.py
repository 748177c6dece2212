"""A run that continues another one forgets the rows that no data has shown for long.

A table marks each row with the number of the optimizer's step that last touched it (0: never); that costs only as
much as the batch touches. A run also records at which step, and on which day, each run of its chain began. So one
mark per row serves all rules: each is equivalent to "not touched after step N".
"""

from __future__ import annotations

import datetime
from typing import Any, TypedDict

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.embedding import EmbeddingTable
from afm_ctr.training.config import Expiry
from afm_ctr.training.model_state import tables_of

BLOCK_ROWS = 1 << 20


class Begun(TypedDict):
    """A run of the chain: the optimizer's steps before it began, and the day (UTC)."""

    after: int
    date: str


def begun_now(after: int) -> Begun:
    """A run that begins today."""
    return {"after": after, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def last_kept(rule: Expiry, runs: list[Begun], steps: int, today: datetime.date) -> int:
    """The last step whose rows have expired: those not touched after it; 0 if none can have expired."""
    if rule.unseen_steps is not None:
        return max(0, steps - rule.unseen_steps)
    if rule.unseen_runs is not None:
        return runs[-rule.unseen_runs]["after"] if len(runs) >= rule.unseen_runs else 0
    since = today - datetime.timedelta(days=rule.unseen_days or 0)
    return min((run["after"] for run in runs if datetime.date.fromisoformat(run["date"]) >= since), default=steps)


def marks_of(table: EmbeddingTable) -> keras.Variable:
    """The marks of a table that keeps them."""
    assert table.last_seen is not None
    return table.last_seen


def expire(model: keras.Model, limit: int) -> tuple[int, int]:
    """Reset rows that were last touched at step ``limit`` or earlier to their initial values, with their slots.

    Rows that were never touched hold those values already; the absent slot's row is not reset.

    Args:
        model: its tables keep marks, with a built optimizer of :mod:`afm_ctr.optimizers`.
        limit: from :func:`last_kept`.

    Returns:
        How many rows were reset, and how many had been touched, of those that this rank stores.
    """
    gone = known = 0
    for table in tables_of(model):
        for start in range(0, table.local_rows, BLOCK_ROWS):
            ids = table.stored_ids(start, min(start + BLOCK_ROWS, table.local_rows))
            marks = tf.gather(marks_of(table).value, tf.range(start, start + len(ids))).numpy()
            expired = np.flatnonzero((marks > 0) & (marks <= limit))
            known += int(np.count_nonzero(marks))
            gone += len(expired)
            if len(expired):
                _restart(table, model.optimizer, start + expired, ids[expired])
    return gone, known


def _restart(table: EmbeddingTable, optimizer: Any, stored: np.ndarray, ids: np.ndarray) -> None:
    """Reset the stored rows with these numbers and ids."""
    rows = tf.constant(stored, tf.int64)

    def write(variable: Any, values: np.ndarray) -> None:
        variable.value.scatter_update(tf.IndexedSlices(tf.cast(values, variable.dtype), rows))

    for name, column in table.columns.items():
        write(column, table.initial_values(name, ids))
        for slot, variable in optimizer.slots_of(column).items():
            write(variable, np.full([len(ids), *variable.shape[1:]], optimizer.slots[slot]))
    write(marks_of(table), np.zeros(len(ids), np.int64))
