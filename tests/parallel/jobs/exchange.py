"""Every exchange that needs no failure, in one job. Findings: {check: number or true}; see test_exchange.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr import distributed
from afm_ctr.distributed import SingleWorld, World, wrap_optimizer
from afm_ctr.metrics import Evaluation
from afm_ctr.sparse_gradients import MergedSlices, merge_slices

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
report = importlib.import_module("launch").report

ROWS, SLOTS, IDS, STEPS = 12, 3, 9, 8  # rows of a global batch: divides by 2 and by 3
FOUND: dict[str, Any] = {}


def check_world(world: World) -> None:
    rank, size = world.rank, world.size
    ranks = list(range(size))
    value = tf.constant([rank + 1, 10 - rank], tf.int64)
    assert world.allreduce(value).numpy().tolist() == [sum(r + 1 for r in ranks), sum(10 - r for r in ranks)]
    assert world.allreduce(value, "max").numpy().tolist() == [size, 10]
    assert world.allreduce(value, "min").numpy().tolist() == [1, 11 - size]
    assert float(world.allreduce(tf.constant(float(rank)), "mean")) == (size - 1) / 2
    mixed = [tf.constant(1.5, kind) for kind in (tf.float32, tf.float64, tf.float32, tf.float16)]
    sums = world.grouped_sum(mixed)
    assert [t.dtype for t in sums] == [t.dtype for t in mixed] and all(float(t) == 1.5 * size for t in sums)
    ragged = tf.fill([rank, 2], rank)  # rank 0 has nothing
    gathered = tf.function(lambda t: world.allgather(t, "ragged"))(ragged).numpy()
    assert gathered[:, 0].tolist() == [r for r in ranks for _ in range(r)]
    assert world.allgather_object({"rank": rank, "long": "x" * rank}) == [{"rank": r, "long": "x" * r} for r in ranks]
    texts = world.allgather_numpy(np.array(["a" * (rank + 1)] * rank, dtype="U8"))
    assert [t.tolist() for t in texts] == [["a" * (r + 1)] * r for r in ranks]
    assert world.broadcast_object("from the chief" if world.is_chief else None) == "from the chief"
    assert world.agree(100 + rank) == 100 + size - 1 and world.agree(rank, "min") == 0
    world.barrier()
    assert distributed.init() is world


def check_broadcast(world: World) -> None:
    kinds = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint32", "bool"]
    variables = [keras.Variable(np.full([3, 2], world.is_chief), dtype=kind, trainable=False) for kind in kinds]
    variables.append(keras.Variable(7.0 if world.is_chief else 0.0, trainable=False))
    own = keras.Variable(np.full(2, float(world.rank)))
    own.placement = "sharded"
    first = tf.Variable(tf.fill([4], float(world.rank + 1)))
    second = tf.Variable(tf.zeros([4]))
    second.assign(first)  # may share the buffer: writing one in place must not change the other
    world.broadcast_variables([*variables, own, second])
    assert all(np.all(np.asarray(v.numpy(), np.float64) == 1) for v in variables[:-1])
    assert float(variables[-1].numpy()) == 7
    assert np.all(own.numpy() == world.rank)
    assert np.all(second.numpy() == 1) and np.all(first.numpy() == world.rank + 1)
    table = tf.Variable(tf.fill([2_000_000, 16], float(world.is_chief)))
    world.broadcast_variables([table])
    assert float(tf.reduce_min(table)) == 1


def network(seed: int) -> keras.Model:
    """Embedding (repeated ids), dense layers and dropout that is off: nothing of ours in it."""
    keras.utils.set_random_seed(seed)
    ids = keras.Input([SLOTS], dtype="int64")
    x = keras.layers.Flatten()(keras.layers.Embedding(IDS, 4)(ids))
    x = keras.layers.Dense(8, activation="relu")(x)
    return keras.Model(ids, keras.layers.Dense(1)(keras.layers.Dropout(0.0, seed=1)(x)))


def check_plain_keras(world: World) -> None:
    """``fit`` on every rank's part equals ``fit`` on the joined batches in one process."""
    rng = np.random.default_rng(5)
    x = rng.integers(0, IDS, [STEPS * ROWS, SLOTS])
    y = rng.normal(size=[STEPS * ROWS, 1]).astype(np.float32)
    local = ROWS // world.size
    mine = (np.arange(STEPS * ROWS) % ROWS) // local == world.rank
    if world.is_chief:
        network(9)  # so that Keras gives other names to what rank 0 builds later
    for make in (
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    ):
        joined, ours = network(0), network(world.rank)  # each rank starts elsewhere; the broadcast mends it
        joined.compile(wrap_optimizer(make(), SingleWorld()), loss="mse", jit_compile=False)
        if world.is_chief:
            joined.fit(x, y, batch_size=ROWS, epochs=2, shuffle=False, verbose=0)
        ours.compile(wrap_optimizer(make(), world), loss="mse", jit_compile=False)
        callbacks = [
            distributed.BroadcastVariables(world),
            distributed.DriftCheck(world, every=5),
            distributed.Watchdog(world, timeout=60),
        ]
        ours.fit(x[mine], y[mine], batch_size=local, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        name = f"plain keras {type(ours.optimizer).__name__}"
        compare(
            world,
            name,
            [*ours.variables, *ours.optimizer.variables],
            [*joined.variables, *joined.optimizer.variables],
        )


def compare(world: World, name: str, ours: list[Any], joined: list[Any]) -> None:
    """Largest difference to the single process over all variables, of rank 0, and whether all ranks hold its bits."""
    sums = world.allgather_object([distributed.checksum(v) for v in ours])
    if world.is_chief:
        FOUND[name] = max(
            float(np.max(np.abs(np.asarray(a.numpy(), np.float64) - np.asarray(b.numpy(), np.float64)), initial=0))
            for a, b in zip(ours, joined, strict=True)
            if "learning_rate" not in b.path and a.trainable == b.trainable
        )
    assert all(theirs == sums[0] for theirs in sums), f"{name}: ranks differ"


def optimizers() -> dict[str, Callable[[], keras.optimizers.Optimizer]]:
    found: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
        "keras SGD": lambda: keras.optimizers.SGD(0.1),
        "keras Adagrad": lambda: keras.optimizers.Adagrad(0.1),
        "keras Adam": lambda: keras.optimizers.Adam(0.01),
        "keras Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    }
    try:
        own = importlib.import_module("afm_ctr.optimizers")
    except ImportError:
        return found
    for name in ("SGD", "Adagrad", "LazyAdam", "FTRL"):
        found[f"afm_ctr {name}"] = lambda name=name: getattr(own, name)(learning_rate=0.05)  # type: ignore[misc]
    return found


def weighted_steps(
    world: World, make: Callable[[], Any], steps: list[tuple[np.ndarray, ...]], form: str
) -> list[Any]:
    """Logistic regression with an id table and a dense layer, on sums of weighted losses with a row penalty.

    The table has two columns. Their gradients come merged and share their rows, or each with repeated rows.
    """
    rng = np.random.default_rng(1)
    table = keras.Variable(rng.normal(size=[IDS, 2]).astype(np.float32), name="table")
    linear = keras.Variable(rng.normal(size=[IDS, 1]).astype(np.float32), name="linear")
    table.exchange = linear.exchange = form.removeprefix("merged ")
    dense = keras.Variable(rng.normal(size=[2 * SLOTS]).astype(np.float32), name="dense")
    unused = keras.Variable(np.ones(3, np.float32), name="unused")
    variables = [table, dense, unused, linear]
    optimizer = wrap_optimizer(make(), world)
    optimizer.build(variables)

    def penalty(grads: list[Any], where: list[Any]) -> list[Any]:
        rows = grads[0]
        values = rows.values + 0.01 * tf.gather(table.value, rows.indices)
        return [tf.IndexedSlices(values, rows.indices, rows.dense_shape), grads[1] + 0.02 * dense.value, *grads[2:]]

    @tf.function
    def step(ids: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            features = tf.reshape(tf.gather(table.value, ids), [tf.shape(ids)[0], 2 * SLOTS])
            logits = tf.linalg.matvec(features, tf.convert_to_tensor(dense.value))
            logits += tf.reduce_sum(tf.gather(linear.value, ids), [1, 2])
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(weights * losses)
        grads = tape.gradient(loss, [v.value for v in variables])
        assert isinstance(grads[0], tf.IndexedSlices) and grads[2] is None
        if form.startswith("merged"):
            grads[0], grads[3] = merge_slices(grads[0]), merge_slices(grads[3])
            grads[3] = MergedSlices(grads[3].values, grads[0].indices, grads[3].dense_shape)
        optimizer.apply(grads, variables, weight=tf.reduce_sum(weights), penalty=penalty)

    for ids, labels, weights in steps:
        step(tf.constant(ids), tf.constant(labels), tf.constant(weights))
    distributed.end_epoch(optimizer)
    return [*variables, *optimizer.variables]


def check_weighted(world: World) -> None:
    """Unequal tails, a rank without weight, a step without any weight: N ranks = one, for every optimizer."""
    rng = np.random.default_rng(2)
    joined: list[tuple[np.ndarray, ...]] = []
    local = ROWS // world.size
    for number in range(20):
        weights = rng.random(ROWS).astype(np.float32)
        if number % 4 == 1:
            weights[5:] = 0  # the tail of an epoch: the last rank is short or empty
        if number % 4 == 2:
            weights[:local] = 0  # nothing on rank 0
        if number % 7 == 3:
            weights[:] = 0  # nothing anywhere
        labels = rng.integers(0, 2, ROWS).astype(np.float32)
        joined.append((rng.integers(1, IDS, [ROWS, SLOTS]), labels, weights))
    part = slice(world.rank * local, (world.rank + 1) * local)
    mine = [tuple(column[part] for column in step) for step in joined]
    empty = sum(not step[2].any() for step in joined)
    for number, (name, make) in enumerate(optimizers().items()):
        alone = joined if world.is_chief else []  # made on every rank, since exchanges are numbered
        reference = weighted_steps(SingleWorld(), make, alone, "gather")
        merged = "merged " if name.startswith("afm_ctr") else ""  # the package's models merge before
        form = ("gather", "reduce")[(number + world.size) % 2]  # two ranks and three: each optimizer in both
        ours = weighted_steps(world, make, mine, merged + form)
        compare(world, f"weighted {name} {form}", ours, reference)
        iterations = next(v for v in ours if v.path.endswith("iteration"))
        assert int(iterations.numpy()) == len(joined) - empty, name


def check_metrics(world: World) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    n = 5000
    logits = np.round(rng.normal(size=n), 1).astype(np.float32)
    labels = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    weights, groups = rng.random(n).astype(np.float32), rng.integers(0, 300, n)
    mine = slice(0, 700) if world.is_chief else slice(700, n) if world.rank == 1 else slice(0, 0)  # rank 2: nothing
    evaluation, whole = Evaluation(), Evaluation()
    evaluation.update(labels[mine], logits[mine], weights=weights[mine], groups=groups[mine])
    whole.update(labels, logits, weights=weights, groups=groups)
    got, expected = evaluation.over(world).result(), whole.result()
    exact = roc_auc_score(labels, logits, sample_weight=weights.astype(np.float64))
    FOUND["auc against scikit-learn"] = abs(got["auc"] - exact) / exact
    for name in ("group_auc", "log_loss", "rmse", "calibration", "ece"):
        FOUND[f"metric {name}"] = abs(got[name] - expected[name]) / abs(expected[name])
    assert got["rows"] == n and len({str(result) for result in world.allgather_object(got)}) == 1


if __name__ == "__main__":
    this_world = distributed.init()
    for check in (check_world, check_broadcast, check_plain_keras, check_weighted, check_metrics):
        check(this_world)
    report(this_world.rank, {"size": this_world.size, **FOUND})
    this_world.shutdown()
