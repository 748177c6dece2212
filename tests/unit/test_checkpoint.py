"""Checkpoint folders: complete or not there, exact, and suspicious of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.embedding import EmbeddingTable
from afm_ctr.errors import UserError
from afm_ctr.training.checkpoint import MANIFEST, Checkpoint, DamagedCheckpoint, Position
from afm_ctr.training.checkpoint_manager import CheckpointManager
from afm_ctr.training.model_state import split_variables
from afm_ctr.training.snapshot import Snapshot

STATE = {"best": {"value": 0.1 + 0.2, "epoch": None}}


class Small(keras.Model):
    """A table of two columns, a dense layer, Keras' own dropout with its seed generator."""

    def __init__(self, rows: int = 7) -> None:
        super().__init__()
        self.table = EmbeddingTable(rows, {"linear": 1, "linear_vectors": 3}, seed=5, stddev={"linear_vectors": 0.1})
        self.dropout = keras.layers.Dropout(0.5, seed=11)
        self.dense = keras.layers.Dense(1)

    def call(self, ids: tf.Tensor, training: bool = False) -> tf.Tensor:
        look = self.table.lookup(ids)
        vectors = self.dropout(tf.reduce_sum(look.expand("linear_vectors"), 1), training=training)
        return self.dense(vectors) + tf.reduce_sum(look.expand("linear"), 1)


def build(optimizer: str = "adam", rows: int = 7, steps: int = 0) -> Small:
    model = Small(rows)
    model.compile(optimizer=optimizers.build(optimizer, learning_rate=0.1), loss="mse", jit_compile=False)
    model(tf.constant([[1, 2]]))
    model.optimizer.build(model.trainable_variables)
    if steps:
        train(model, steps)
    return model


def train(model: Small, steps: int) -> None:
    ids = np.array([[1, 2], [3, 3], [6, 1], [2, 4]])
    for _ in range(steps):
        model.train_on_batch(ids, np.array([[1.0], [0.0], [2.0], [-1.0]]))


def values(model: Small) -> list[np.ndarray]:
    groups, columns = split_variables(model)
    dense = [np.asarray(variable) for group in groups.values() for variable in group]
    return dense + [np.asarray(column.variable) for column in columns]


def snap(model: Small, position: Position, **options: Any) -> Snapshot:
    return Snapshot.take(model, position, schema_id="feed", state=STATE, **options)


def assert_same(one: Small, other: Small) -> None:
    for a, b in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("optimizer", optimizers.names())
def test_restored_model_goes_on_as_the_stored_one(tmp_path: Path, optimizer: str) -> None:
    model = build(optimizer, steps=3)
    snap(model, Position(1, 2, 3), rows_per_file=3).write(tmp_path / "c")
    fresh = build(optimizer)
    checkpoint = Checkpoint.open(tmp_path / "c")
    checkpoint.restore(fresh)
    assert checkpoint.position == Position(epoch=1, step_in_epoch=2, step=3)
    assert checkpoint.state == STATE
    assert checkpoint.schema_id == "feed"
    assert_same(model, fresh)
    train(model, 2)
    train(fresh, 2)  # dropout draws the same masks only if the seed generator came along
    assert_same(model, fresh)


def test_layout_of_the_folder(tmp_path: Path) -> None:
    model = build("adam", steps=1)
    snap(model, Position(step=1), rows_per_file=3, extra={"loss/0": np.float32(2)}).write(tmp_path / "c")
    names = sorted(p.relative_to(tmp_path / "c").as_posix() for p in (tmp_path / "c").rglob("*") if p.is_file())
    kinds = ["linear", "linear.momentum", "linear.velocity"]
    kinds += [kind.replace("linear", "linear_vectors") for kind in kinds]
    tables = [f"tables/ids/rows-{a}-{b}.{kind}.npy" for a, b in [(0, 3), (3, 6), (6, 7)] for kind in kinds]
    assert names == sorted([MANIFEST, "dense.npz", *tables])
    rows = np.load(tmp_path / "c/tables/ids/rows-3-6.linear_vectors.npy", mmap_mode="r")
    np.testing.assert_array_equal(rows, np.asarray(model.table.columns["linear_vectors"])[3:6])
    assert Checkpoint.open(tmp_path / "c").extra() == {"loss/0": np.float32(2)}
    manifest = json.loads((tmp_path / "c" / MANIFEST).read_text())
    assert set(manifest["files"]) == set(names) - {MANIFEST}
    groups, columns = split_variables(model)
    total = sum(len(group) for group in groups.values()) + len(columns)
    assert total == len(model.variables) + len(model.optimizer.variables)


def test_a_grown_table_keeps_its_initial_rows_behind_the_stored_ones(tmp_path: Path) -> None:
    model = build("adagrad", steps=2)
    snap(model, Position(step=2)).write(tmp_path / "c")
    grown = build("adagrad", rows=9)
    Checkpoint.open(tmp_path / "c").restore(grown)
    for name, variable in grown.table.columns.items():
        np.testing.assert_array_equal(np.asarray(variable)[:7], np.asarray(model.table.columns[name]))
        np.testing.assert_array_equal(np.asarray(variable)[7:], grown.table.initial_rows(name, 7, 9))
    slot = grown.optimizer.slots_of(grown.table.columns["linear"])["accumulator"]
    assert slot.shape == (9, 1)
    np.testing.assert_array_equal(np.asarray(slot)[7:], np.full((2, 1), 0.1, np.float32))
    with pytest.raises(UserError, match="linear"):
        snap(grown, Position()).write(tmp_path / "d").restore(model)


def test_another_model_is_refused(tmp_path: Path) -> None:
    snap(build("adam"), Position()).write(tmp_path / "c")
    checkpoint = Checkpoint.open(tmp_path / "c")
    with pytest.raises(UserError, match="optimizer variables"):
        checkpoint.restore(build("sgd"))
    checkpoint.restore(build("sgd"), optimizer=False)
    other = build("adam")
    other.dense.kernel._shape = (9, 9)
    with pytest.raises(UserError, match=r"float32 \[3, 1\]"):
        checkpoint.restore(other)


def damage(folder: Path, how: str) -> None:
    victim = folder / "tables/ids/rows-0-7.linear.npy"
    content = bytearray(victim.read_bytes())
    if how == "flip":
        content[-1] ^= 1
        victim.write_bytes(content)
    elif how == "cut":
        victim.write_bytes(content[:-1])
    elif how == "gone":
        victim.unlink()
    elif how == "manifest gone":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("{")


@pytest.mark.parametrize("how", ["flip", "cut", "gone", "manifest gone", "manifest cut"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, how: str) -> None:
    warnings: list[str] = []
    manager = CheckpointManager(tmp_path, keep=3, warn=warnings.append)
    model = build("sgd")
    for step in (10, 20):
        manager.save(snap(model, Position(step=step)), best=None)
    damage(manager.path(20), how)
    with pytest.raises(DamagedCheckpoint):
        Checkpoint.open(manager.path(20))
    found = manager.latest()
    assert found is not None
    assert found.position.step == 10
    assert len(warnings) == 1
    assert "step 20 is damaged" in warnings[0]
    damage(manager.path(10), how)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        manager.latest()


def test_the_last_few_and_the_best_stay(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "checkpoints", keep=2)
    assert manager.latest() is None
    assert manager.best() is None
    model = build("sgd")
    best = {"step": 2, "epoch": 0, "metric": "auc", "value": 0.7}
    for step in range(1, 7):
        manager.save(snap(model, Position(step=step)), best=best if step >= 2 else None)
    assert manager.steps() == [2, 5, 6]
    found = manager.best()
    assert found is not None
    assert found.position.step == 2
    manager.rewind(5, None)
    assert manager.steps() == [2, 5]
    assert manager.best() is None
    manager.mark_best(best)
    damage(manager.path(2), "flip")
    with pytest.raises(UserError, match="best checkpoint is damaged"):
        manager.best()


def test_an_unfinished_folder_is_nothing_and_goes(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=2)
    model = build("sgd")
    manager.save(snap(model, Position(step=1)), best=None)
    left = tmp_path / ".tmp-step-000000002"
    left.mkdir()
    (left / "dense.npz").write_bytes(b"half")
    assert manager.steps() == [1]
    manager.save(snap(model, Position(step=1)), best=None)  # the same step again replaces it
    assert manager.steps() == [1]
    assert not left.exists()
    assert manager.latest() is not None


def test_a_diverged_state_is_not_stored(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    model = build("sgd")
    manager.save(snap(model, Position(step=1)), best=None)
    column = model.table.columns["linear"]
    column.value[3:4].assign([[np.inf]])
    with pytest.raises(UserError, match=r"ids\.linear is not finite after step 2"):
        manager.save(snap(model, Position(step=2)), best=None)
    assert manager.steps() == [1]
