"""A training run under ``fit`` in which one rank misbehaves as told: stuck, drift, or uneven (has a batch less)."""

from __future__ import annotations

import sys
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr import distributed


class Misbehave(keras.callbacks.Callback):
    """On the last rank, after step 3."""

    def __init__(self, world: distributed.World, how: str) -> None:
        super().__init__()
        self.world, self.how = world, how

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.world.is_chief or batch != 2:
            return
        print(f"misbehaves at {time.time()}", flush=True)
        if self.how == "stuck":
            time.sleep(600)
        if self.how == "drift":
            self.model.get_layer("second").bias.assign_add([1e-6])


def main(how: str) -> None:
    world = distributed.init()
    model = keras.Sequential(
        [keras.Input([2]), keras.layers.Dense(4, name="first"), keras.layers.Dense(1, name="second")]
    )
    optimizer = distributed.wrap_optimizer(keras.optimizers.SGD(0.01), world)
    model.compile(optimizer, loss="mse", jit_compile=False)
    x = np.random.default_rng(world.rank).normal(size=[40, 2])
    callbacks = [
        distributed.BroadcastVariables(world),
        Misbehave(world, how),
        distributed.DriftCheck(world, every=5),
        distributed.Watchdog(world, timeout=4 if how == "stuck" else 120),
    ]
    batches = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(2)
    if how == "uneven":  # and nobody can know beforehand
        batches = batches.take(20 - world.rank).filter(lambda *_: True)
    model.fit(batches, epochs=2, verbose=0, callbacks=callbacks)
    print("the end was reached", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
