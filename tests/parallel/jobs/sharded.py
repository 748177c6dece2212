"""``sharded.py DATA RUNS STEPS``: tables spread over the ranks, in one job; see test_sharded.py.

It takes steps of models, goes on with ``RUNS/chain`` by the config in ``$REPORTS``, and on two ranks continues
``RUNS/alone`` for so many steps as ``RUNS/more-sharded``.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr import distributed, optimizers
from afm_ctr.distributed import SingleWorld, World, wrap_optimizer
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.row_shards import RowShards
from afm_ctr.training import TrainConfig, build_model, evaluate, train
from afm_ctr.training.plan import Cluster, plan_run
from afm_ctr.training.progress import Reporter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
report = importlib.import_module("launch").report

ROWS, SLOTS, IDS, STEPS = 12, 3, 40, 20  # rows of a global batch: divides by 2 and by 3
PAIRS = [(0, 1), (0, 2), (1, 2)]
RATES = {"sgd": 0.1, "adagrad": 0.05, "adam": 0.01, "ftrl": 0.05, "rowwise_adagrad": 0.05}
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
    interaction, options = "fm", {"factors": 4}
    if optimizer in ("adagrad", "adam"):  # a graph of many more parts, each of which takes its time to make
        interaction = "afm"
        options |= {"attention_dropout": 0.2, "pooled_dropout": 0.2, "attention_l2": 0.01}
    penalty: dict[str, Any] = {"row_l2": 0.01, "row_l2_per": "step" if optimizer in ("sgd", "adam") else "touch"}
    model = CTRModel(
        interaction, options, IDS, SLOTS, PAIRS, **penalty, seed=3, mark_rows=True, shard_over=shard_over
    )
    built = wrap_optimizer(optimizers.build(optimizer, learning_rate=RATES[optimizer]), world)
    model.compile(optimizer=built, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    local = ROWS // world.size
    mine = slice(world.rank * local, (world.rank + 1) * local)
    step = tf.function(model.train_step)
    for batch in global_batches():
        step({name: tf.constant(column[mine]) for name, column in batch.items()})
    return model


def whole(world: World, variable: Any) -> np.ndarray:
    """What all ranks hold of a table's variable, by id."""
    parts = world.allgather_numpy(variable.numpy())
    table = np.zeros((IDS, *parts[0].shape[1:]), parts[0].dtype)
    for rank, part in enumerate(parts):
        shards = RowShards(IDS, rank, world.size)
        ids = shards.ids(shards.start, shards.stop)
        table[ids] = part[: len(ids)]
    return table


def check_steps(world: World) -> None:
    """Weights, slots, marks and scores are those of one process with the whole table; rank 0 compares."""
    for optimizer in optimizers.names() if world.size == 3 else ("adam", "ftrl"):
        ours = trained(world, world, optimizer)
        variables = {}
        for name, column in ours.table.columns.items():
            slots = {f"{name}.{kind}": slot for kind, slot in ours.optimizer.slots_of(column).items()}
            variables |= {name: column, **slots}
        tables = {name: whole(world, variable) for name, variable in variables.items()}
        marks = whole(world, ours.table.last_seen)
        batch = {name: tf.constant(column[world.rank :]) for name, column in global_batches()[0].items()}
        scores = ours.predict_step(batch)["logit"].numpy()
        if not world.is_chief:
            wrap_optimizer(optimizers.build(optimizer), SingleWorld())  # exchanges are numbered, alike on all ranks
            continue
        alone = trained(SingleWorld(), None, optimizer)
        assert ours.table.columns["vectors"].shape[0] == -(-IDS // world.size)
        np.testing.assert_array_equal(marks, alone.table.last_seen.numpy())
        for name, column in alone.table.columns.items():
            slots = {f"{name}.{kind}": slot for kind, slot in alone.optimizer.slots_of(column).items()}
            tables |= {key: tables[key] - kept.numpy() for key, kept in {name: column, **slots}.items()}
        differences = [np.abs(table).max() for table in tables.values()]
        dense = zip(ours.interaction.variables, alone.interaction.variables, strict=True)
        differences += [np.abs(a.numpy() - b.numpy()).max() for a, b in [*dense, (ours.bias, alone.bias)]]
        assert int(ours.optimizer.iterations) == int(alone.optimizer.iterations)
        assert np.abs(alone.table.columns["linear"].numpy()).max() > 0.005
        FOUND[f"weights and slots, {optimizer}"] = float(max(differences))
        FOUND[f"scores, {optimizer}"] = float(np.abs(scores - alone.predict_step(batch)["logit"].numpy()).max())


def sent_a_step(world: World, form: str, wide: Path, config: TrainConfig) -> float:
    """Bytes that this rank sends to others in a step of the first batches, by what it hands to Horovod."""
    reader = Reader(wide, "train", config.batch_size, seed=config.seed, rank=world.rank, size=world.size)
    sent = 0
    plain = {name: getattr(world, name) for name in ("alltoall", "allgather", "allreduce")}

    def alltoall(tensor: Any, splits: Any, name: str | None = None) -> Any:
        nonlocal sent
        parts = splits.numpy().tolist()
        sent += (
            (sum(parts) - parts[world.rank]) * (tf.size(tensor).numpy() // max(len(tensor), 1)) * tensor.dtype.size
        )
        return plain["alltoall"](tensor, splits, name)

    def ring(kind: str, times: float) -> Any:
        def counted(tensor: Any, *options: Any) -> Any:
            nonlocal sent
            sent += times * tf.size(tensor).numpy() * tensor.dtype.size
            return plain[kind](tensor, *options)

        return counted

    model = build_model(reader.schema, config, training=True, shard_over=world if form == "sharded" else None)
    optimizer = optimizers.build("sgd")
    model.compile(optimizer=wrap_optimizer(optimizer, world), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    for column in model.table.columns.values():
        column.exchange = form
    batches = [reader.batch(0, step) for step in range(4)]
    world.alltoall = alltoall  # type: ignore[method-assign]
    world.allgather = ring("allgather", world.size - 1)  # type: ignore[method-assign]
    world.allreduce = ring("allreduce", 2 * (world.size - 1) / world.size)  # type: ignore[method-assign]
    for batch in batches:
        model.train_step({name: tf.constant(batch[name]) for name in ("feature_ids", "feature_vals", "label", "row")})
    for name in plain:
        delattr(world, name)
    return sent / len(batches)


if __name__ == "__main__":
    data, runs, continued = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    this_world = distributed.init()
    check_steps(this_world)
    findings: dict[str, Any] = {"size": this_world.size, "steps": FOUND}
    config = TrainConfig.load(Path(os.environ["REPORTS"]) / "train.yaml")
    wide = runs / "wide"
    wider = config.model_copy(update={"batch_size": 1536})
    findings["sent"] = {form: sent_a_step(this_world, form, wide, wider) for form in ("gather", "reduce", "sharded")}
    cluster = Cluster(this_world.size, 1, 1.0, 10**9)
    findings["planned"] = {form: cost.sent for form, cost in plan_run(wide, wider, cluster).costs.items()}
    findings["trained"] = train(data, runs / "chain", config, this_world, progress="none").to_json()
    findings["test"] = evaluate(data, "test", runs / "chain", this_world, which="latest")
    if this_world.size == 2:
        said: list[str] = []
        Reporter.say = lambda self, text: said.append(text)  # type: ignore[method-assign]
        short = config.model_copy(update={"max_steps": continued})
        train(data, runs / "more-sharded", short, this_world, from_checkpoint=runs / "alone", progress="none")
        findings["expired"] = next(text for text in said if text.startswith("expiry"))
    report(this_world.rank, findings)
    this_world.shutdown()
