"""Checkpoints are written beside the training: from a copy, one at a time, and a failure is told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.training.checkpoint import Checkpoint, Position
from afm_ctr.training.checkpoint_manager import CheckpointManager, Saver
from afm_ctr.training.snapshot import Snapshot

DEADLINE = 60


def build() -> CTRModel:
    model = CTRModel("fm", {"factors": 3}, 9, 2, [(0, 1)], seed=4)
    plain = optimizers.build("adam", learning_rate=0.1)
    model.compile(optimizer=wrap_optimizer(plain, SingleWorld()), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def step(model: CTRModel) -> None:
    ids = tf.constant([[1, 2], [0, 3]], tf.int64)
    model.train_step({"feature_ids": ids, "feature_vals": tf.ones([2, 2]), "label": tf.constant([1.0, 0.0])})


def values(model: CTRModel) -> list[np.ndarray]:
    return [np.array(variable) for variable in [*model.variables, *model.optimizer.variables]]


def snap(model: CTRModel, number: int) -> Snapshot:
    return Snapshot.take(model, Position(step=number), schema_id="feed", state={}, rows_per_file=4)


class SlowManager(CheckpointManager):
    """Writes when it may, or fails."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_write = threading.Event()
        self.error: Exception | None = None

    def save(self, snapshot: Snapshot, best: Any, progress: Any = lambda: None) -> None:
        assert self.may_write.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        super().save(snapshot, best, progress)


def test_what_is_written_is_the_state_when_it_was_taken(tmp_path: Path) -> None:
    model = build()
    step(model)
    before = values(model)
    manager = SlowManager(tmp_path / "checkpoints")
    saver = Saver(manager)
    saver.save(lambda: snap(model, 1), None)
    for _ in range(3):
        step(model)
    assert not manager.steps()  # the training has gone on, and nothing is written yet
    manager.may_write.set()
    saver.flush()
    assert manager.steps() == [1]
    fresh = build()
    Checkpoint.open(manager.path(1)).restore(fresh)
    changed = 0
    for old, stored, now in zip(before, values(fresh), values(model), strict=True):
        np.testing.assert_array_equal(stored, old)
        changed += not np.array_equal(old, now)
    assert changed > 5


def test_one_at_a_time(tmp_path: Path) -> None:
    model, manager = build(), SlowManager(tmp_path / "checkpoints")
    saver = Saver(manager)
    saver.save(lambda: snap(model, 1), None)
    taken = []

    def take() -> Snapshot:
        taken.append(manager.steps())
        return snap(model, 2)

    second = threading.Thread(target=saver.save, args=(take, None))
    second.start()
    second.join(0.2)
    assert second.is_alive() and not taken  # not even the copy is made before the first one is on the disk
    manager.may_write.set()
    second.join(DEADLINE)
    saver.flush()
    assert taken == [[1]]
    assert manager.steps() == [1, 2]


def test_a_failure_is_told_by_the_next_call_and_once(tmp_path: Path) -> None:
    model, manager = build(), SlowManager(tmp_path / "run/checkpoints")
    manager.may_write.set()
    saver = Saver(manager)
    saver.save(lambda: snap(model, 1), None)
    saver.flush()
    manager.error = OSError(28, "No space left on device")
    saver.save(lambda: snap(model, 2), None)
    with pytest.raises(UserError, match=r"cannot write the run in .*/run: .*No space left on device; every check"):
        saver.save(lambda: snap(model, 3), None)
    manager.error = None
    saver.flush()
    assert manager.steps() == [1]


def test_a_write_that_fails_leaves_no_half_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            snap(model, 1).write(tmp_path / "step-000000001")
    assert not list(tmp_path.iterdir())
