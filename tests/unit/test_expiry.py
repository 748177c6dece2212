"""Which rows have expired, and what becomes of them."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.training.checkpoint import Position
from afm_ctr.training.config import Expiry, TrainConfig
from afm_ctr.training.expiry import Begun, expire, last_kept
from afm_ctr.training.snapshot import Snapshot

TODAY = datetime.date(2026, 3, 10)
RUNS: list[Begun] = [
    {"after": 0, "date": "2026-03-01"},
    {"after": 100, "date": "2026-03-05"},
    {"after": 250, "date": "2026-03-09"},
]


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        ({"unseen_steps": 60}, 240),
        ({"unseen_steps": 300}, 0),
        ({"unseen_steps": 1000}, 0),
        ({"unseen_runs": 1}, 250),  # not touched by the last run
        ({"unseen_runs": 2}, 100),
        ({"unseen_runs": 3}, 0),
        ({"unseen_runs": 4}, 0),
        ({"unseen_days": 1}, 250),
        ({"unseen_days": 5}, 100),
        ({"unseen_days": 9}, 0),
    ],
)
def test_what_a_rule_comes_down_to(rule: dict[str, int], limit: int) -> None:
    assert last_kept(Expiry(**rule), RUNS, 300, TODAY) == limit


def test_all_rows_are_older_than_a_long_pause() -> None:
    assert last_kept(Expiry(unseen_days=3), RUNS[:2], 250, TODAY) == 250


def test_one_rule_at_a_time() -> None:
    with pytest.raises(UserError, match="give one of unseen_days, unseen_runs and unseen_steps"):
        TrainConfig.load(None, ["expiry={unseen_days: 3, unseen_runs: 1}"])
    with pytest.raises(UserError, match="give one of"):
        TrainConfig.load(None, ["expiry={}"])
    assert str(Expiry(unseen_steps=2000)) == "2,000 steps"


@pytest.mark.parametrize("optimizer", optimizers.names())
def test_rows_are_marked_and_go_back_with_their_slots(optimizer: str) -> None:
    model = CTRModel("fm", {"factors": 3}, 9, 2, [(0, 1)], seed=4, mark_rows=True)
    plain = optimizers.build(optimizer, learning_rate=0.1)
    model.compile(optimizer=wrap_optimizer(plain, SingleWorld()), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    fresh = [np.array(v) for v in [*model.table.columns.values(), *model.optimizer.variables]]
    for ids in ([[1, 2], [0, 3]], [[2, 4], [2, 5]], [[5, 6], [6, 1]]):
        batch = {
            "feature_ids": tf.constant(ids, tf.int64),
            "feature_vals": tf.constant([[1.0, 0.5], [2.0, 1.0]]),
            "label": tf.constant([1.0, 0.0]),
        }
        model.train_step(batch)
    assert np.array(model.table.last_seen).tolist() == [0, 3, 2, 1, 2, 3, 3, 0, 0]
    before = [np.array(v) for v in [*model.table.columns.values(), *model.optimizer.variables]]
    assert expire(model, 2) == (3, 6)
    assert np.array(model.table.last_seen).tolist() == [0, 3, 0, 0, 0, 3, 3, 0, 0]
    after = [np.array(v) for v in [*model.table.columns.values(), *model.optimizer.variables]]
    for start, old, new in zip(fresh, before, after, strict=True):
        rows = old.ndim == 2 and len(old) == 9
        expired = np.isin(np.arange(9), [2, 3, 4]) if rows else np.zeros(old.shape, bool)
        np.testing.assert_array_equal(new[~expired], old[~expired])
        np.testing.assert_array_equal(new[expired], start[expired])
    assert expire(model, 2) == (0, 3)


def test_a_checkpoint_whose_marks_are_int32_still_resumes(tmp_path: Path) -> None:
    def trained() -> CTRModel:
        model = CTRModel("fm", {"factors": 3}, 9, 2, [(0, 1)], seed=4, mark_rows=True)
        model.compile(wrap_optimizer(optimizers.build("sgd", learning_rate=0.1), SingleWorld()), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return model

    model, again = trained(), trained()
    assert model.table.last_seen is not None and again.table.last_seen is not None
    model.table.last_seen.assign([0, 3, 2, 1, 2, 3, 3, 0, 7])
    kept = Snapshot.take(model, Position(), schema_id="s", state={})
    (marks,) = [column for column in kept.columns if column.key == "last_seen"]
    marks.blocks[:] = [tf.cast(block, tf.int32) for block in marks.blocks]  # as they were written once
    kept.write(tmp_path / "c").restore(again)
    assert np.array(again.table.last_seen).tolist() == [0, 3, 2, 1, 2, 3, 3, 0, 7]
