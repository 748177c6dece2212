"""Ranks that hold other values than the rest are named, and only when they are compared."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from fake_world import FakeWorld

from afm_ctr.distributed import DistributedError, DriftCheck, SingleWorld, World, wrap_optimizer
from afm_ctr.training.config import TrainConfig


class Drifting(FakeWorld):
    """Three ranks; what the others hold differs in the last variable if they ``drift``."""

    def __init__(self) -> None:
        super().__init__(size=3)
        self.drift, self.compared = False, 0

    def allgather_numpy(self, array: Any) -> list[np.ndarray]:
        self.compared += 1
        theirs = np.array(array)
        theirs[-1] += self.drift
        return [np.array(array), np.array(array), theirs]


def check_of(world: World, every: int) -> DriftCheck:
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, name="last")])
    model.compile(wrap_optimizer(keras.optimizers.SGD(0.1), world), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    check = DriftCheck(world, every)
    check.set_model(model)
    return check


def test_equal_ranks_pass_and_are_compared_every_so_often() -> None:
    world = Drifting()
    check = check_of(world, every=3)
    for step in range(7):
        check.on_train_batch_end(step)
    assert world.compared == 2
    check.on_train_end()
    assert world.compared == 3


def test_a_rank_that_drifted_is_named() -> None:
    world = Drifting()
    check = check_of(world, every=2)
    check.on_train_batch_end(0)
    world.drift = True
    with pytest.raises(DistributedError, match="after 2 steps: rank 2 holds other values than the rest"):
        check.on_train_batch_end(1)


def test_it_has_one_default() -> None:
    section = TrainConfig().drift_check
    assert section is not None and DriftCheck(SingleWorld()).every == section.every_steps
