"""Tables spread over the ranks, in one job. Findings: {check: largest difference}; see test_sharded.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr import distributed, optimizers
from afm_ctr.distributed import SingleWorld, World, wrap_optimizer
from afm_ctr.models import CTRModel
from afm_ctr.row_shards import RowShards

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
report = importlib.import_module("launch").report

ROWS, SLOTS, IDS, STEPS = 12, 3, 40, 20  # rows of a global batch: divides by 2 and by 3
PAIRS = [(0, 1), (0, 2), (1, 2)]
RATES = {"sgd": 0.1, "adagrad": 0.05, "adam": 0.01, "ftrl": 0.05}
FOUND: dict[str, Any] = {}


def global_batches() -> list[dict[str, np.ndarray]]:
    """Ids that repeat within a rank's part and across the parts, tails, ranks without rows, a step of weight 0."""
    rng = np.random.default_rng(2)
    batches = []
    for number in range(STEPS):
        ids = np.minimum(rng.geometric(0.1, [ROWS, SLOTS]), IDS - 1)
        ids[rng.random(ids.shape) < 0.1] = 0
        weight = rng.integers(1, 4, ROWS).astype(np.float32)
        if number % 4 == 1:
            weight[5:], ids[5:] = 0, 0  # the tail of an epoch: the last rank is short or empty
        if number % 4 == 2:
            weight[: ROWS // 2], ids[: ROWS // 2] = 0, 0  # nothing on rank 0
        if number % 7 == 3:
            weight[:] = 0
        batches.append(
            {
                "feature_ids": ids,
                "feature_vals": rng.uniform(0.5, 1.5, ids.shape).astype(np.float32),
                "label": rng.integers(0, 2, ROWS).astype(np.float32),
                "weight": weight,
                "row": np.arange(ROWS, dtype=np.int64) + number * ROWS,
            }
        )
    return batches


def trained(world: World, shard_over: World | None, optimizer: str) -> CTRModel:
    options = {"factors": 4, "attention_dropout": 0.2, "pooled_dropout": 0.2, "attention_l2": 0.01}
    model = CTRModel("afm", options, IDS, SLOTS, PAIRS, row_l2=0.01, seed=3, mark_rows=True, shard_over=shard_over)
    built = wrap_optimizer(optimizers.build(optimizer, learning_rate=RATES[optimizer]), world)
    model.compile(optimizer=built, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    local = ROWS // world.size
    mine = slice(world.rank * local, (world.rank + 1) * local)
    step = tf.function(model.train_step)
    for batch in global_batches():
        step({name: tf.constant(column[mine]) for name, column in batch.items()})
    return model


def whole(world: World, model: CTRModel, variable: Any) -> np.ndarray:
    """What all ranks hold of a table's variable, by id."""
    parts = world.allgather_numpy(variable.numpy())
    table = np.zeros((IDS, *parts[0].shape[1:]), parts[0].dtype)
    for rank, part in enumerate(parts):
        shards = RowShards(IDS, rank, world.size)
        ids = shards.ids(shards.start, shards.stop)
        table[ids] = part[: len(ids)]
    return table


def check_steps(world: World) -> None:
    """Weights, slots, marks and scores are those of one process with the whole table."""
    for optimizer in optimizers.names():
        ours, alone = trained(world, world, optimizer), trained(SingleWorld(), None, optimizer)
        assert ours.table.columns["vectors"].shape[0] == -(-IDS // world.size)
        pairs = [(ours.table.last_seen, alone.table.last_seen)]
        for name, column in ours.table.columns.items():
            pairs.append((column, alone.table.columns[name]))
            theirs = alone.optimizer.slots_of(alone.table.columns[name])
            pairs += [(slot, theirs[kind]) for kind, slot in ours.optimizer.slots_of(column).items()]
        differences = [np.abs(whole(world, ours, a) - b.numpy()).max() for a, b in pairs]
        dense = zip(ours.interaction.variables, alone.interaction.variables, strict=True)
        differences += [np.abs(a.numpy() - b.numpy()).max() for a, b in [*dense, (ours.bias, alone.bias)]]
        assert int(ours.optimizer.iterations) == int(alone.optimizer.iterations)
        assert np.abs(alone.table.columns["linear"].numpy()).max() > 0.005
        batch = {name: tf.constant(column[world.rank :]) for name, column in global_batches()[0].items()}
        scores = [model.predict_step(batch)["logit"].numpy() for model in (ours, alone)]
        FOUND[f"weights, slots and marks, {optimizer}"] = float(max(differences))
        FOUND[f"scores, {optimizer}"] = float(np.abs(scores[0] - scores[1]).max())


if __name__ == "__main__":
    this_world = distributed.init()
    check_steps(this_world)
    report(this_world.rank, {"size": this_world.size, **FOUND})
    this_world.shutdown()
