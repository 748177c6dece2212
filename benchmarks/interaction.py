"""Attentional pooling, forward and backward: the op in C++ against the two TensorFlow forms; and its memory.

    .venv/bin/python benchmarks/interaction.py                       # the table, a few minutes
    .venv/bin/python benchmarks/interaction.py --slots 39 --batch 4096 --rounds 9
    .venv/bin/python benchmarks/interaction.py --steps               # whole training steps, 39 slots, 1M ids
    .venv/bin/python benchmarks/interaction.py --memory              # peak of a process that trains 196 slots, t=64

The forms take turns inside every round and medians are taken, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from afm_ctr import native, optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.interactions import attentional_pooling, blocked_attentional_pooling, fused_attentional_pooling
from afm_ctr.models import CTRModel

FORMS: dict[str, Callable[..., Any]] = {
    "plain": attentional_pooling,
    "blocked": blocked_attentional_pooling,
    "fused": fused_attentional_pooling,
}
MOST_BYTES = 3 << 30


def pairs_of(slots: int) -> np.ndarray:
    return np.argwhere(np.triu(np.ones((slots, slots), bool), 1)).astype(np.int32)


def plain_bytes(slots: int, batch: int, k: int, t: int) -> int:
    """What the plain form keeps at least for its backward pass: factors, products and hidden layer of all pairs."""
    return 4 * batch * len(pairs_of(slots)) * (3 * k + 2 * t)


def pooling_step(form: str, slots: int, batch: int, k: int, t: int) -> Callable[[], Any]:
    """Forward and backward on fixed random inputs, as a function of a graph."""
    rng = np.random.default_rng(0)
    shapes = [(batch, slots, k), (k, t), (t,), (t,)]
    inputs = [tf.constant(rng.normal(size=shape) * 0.5, tf.float32) for shape in shapes]
    present, pairs = tf.ones([batch, slots], tf.bool), pairs_of(slots)

    @tf.function
    def step(u: tf.Tensor, W: tf.Tensor, b: tf.Tensor, h: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([u, W, b, h])
            pooled = FORMS[form](u, present, W, b, h, pairs)
            total = tf.reduce_sum(tf.square(pooled[0] if isinstance(pooled, tuple) else pooled))
        return tape.gradient(total, [u, W, b, h])

    return lambda: step(*inputs)[0][0, 0, 0].numpy()


def training_step(form: str, slots: int, batch: int, k: int, t: int, ids: int) -> Callable[[], Any]:
    """A step of AFM with Adam; the ids of a slot are Zipf-distributed and ten batches take turns."""
    os.environ["AFM_CTR_POOLING"] = {"fused": "fused", "blocked": "tensorflow"}[form]
    options = {"factors": k, "attention": t, "scale_by_pairs": True}
    model = CTRModel("afm", options, feature_size=ids + 1, num_slots=slots, pairs=pairs_of(slots))
    optimizer = wrap_optimizer(optimizers.build("adam", learning_rate=0.001), SingleWorld())
    model.compile(optimizer=optimizer, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(10):
        local = rng.zipf(1.2, size=(batch, slots)) % (ids // slots)
        values = {
            "feature_ids": tf.constant(local + 1 + np.arange(slots) * (ids // slots)),
            "feature_vals": tf.ones([batch, slots]),
            "label": tf.constant(rng.integers(0, 2, batch), tf.float32),
        }
        batches.append(values)
    step = tf.function(model.train_step)
    step(batches[0])
    del os.environ["AFM_CTR_POOLING"]
    count = iter(range(1 << 30))
    return lambda: step(batches[next(count) % len(batches)])["loss"].numpy()


def seconds(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Of each form in every round, after a round that does not count."""
    taken: dict[str, list[float]] = {form: [] for form in steps}
    for turn in range(rounds + 1):
        for form, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                taken[form].append(time.perf_counter() - start)
    return taken


def cells(taken: dict[str, list[float]], batch: int) -> list[str]:
    """Rows a second of every form, and how many times the fused one is faster, both as medians of the rounds."""
    row = [f"{batch / statistics.median(taken[form]):,.0f}" if form in taken else "-" for form in FORMS]
    for form in ("plain", "blocked"):
        if form in taken and "fused" in taken:
            ratio = statistics.median(a / b for a, b in zip(taken[form], taken["fused"], strict=True))
            row.append(f"{ratio:.1f}")
        else:
            row.append("-")
    return row


def table_of(title: str, first: Sequence[str]) -> Table:
    table = Table(title=title)
    for name in [*first, "plain", "blocked", "fused", "fused / plain", "fused / blocked"]:
        table.add_column(name, justify="right")
    return table


def available() -> list[str]:
    return [form for form in FORMS if form != "fused" or native.available()]


def compare_pooling(arguments: argparse.Namespace) -> Table:
    k, t = arguments.k, arguments.t
    table = table_of(
        f"rows/s, forward and backward, k={k}, t={t}, {native.describe()}", ["slots", "batch", "plain, GB"]
    )
    for slots in arguments.slots:
        for batch in arguments.batch:
            need = plain_bytes(slots, batch, k, t)
            forms = [form for form in available() if form != "plain" or need < MOST_BYTES]
            steps = {form: pooling_step(form, slots, batch, k, t) for form in forms}
            row = cells(seconds(steps, arguments.rounds), batch)
            table.add_row(str(slots), str(batch), f"{need / 1e9:.2f}", *row)
    return table


def compare_steps(arguments: argparse.Namespace) -> Table:
    table = table_of(f"rows/s, whole training steps, 39 slots, {arguments.ids:,} ids, Adam", ["batch"])
    for batch in arguments.batch:
        forms = [form for form in available() if form != "plain"]
        steps = {form: training_step(form, 39, batch, arguments.k, arguments.t, arguments.ids) for form in forms}
        table.add_row(str(batch), *cells(seconds(steps, arguments.rounds), batch))
    return table


def compare_memory() -> Table:
    """Each form in a process of its own: its peak after three steps."""
    table = Table(title="peak of a training process, 196 slots, k=16, t=64, batch 4096, 100,000 ids")
    for name in ("form", "GB", "s a step"):
        table.add_column(name, justify="right")
    for form in available():
        if form == "plain":
            table.add_row("plain", f"at least {plain_bytes(196, 4096, 16, 64) / 1e9:.0f}", "-")
            continue
        command = [sys.executable, __file__, "--peak", form]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        table.add_row(form, *done.stdout.split())
    return table


def print_peak(form: str) -> None:
    step = training_step(form, 196, 4096, 16, 64, 100_000)
    start = time.perf_counter()
    for _ in range(2):
        step()
    taken = (time.perf_counter() - start) / 2
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} {taken:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[10, 39, 100, 196])
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--t", type=int, default=16)
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--steps", action="store_true", help="whole training steps")
    parser.add_argument("--memory", action="store_true", help="peak memory of training processes")
    parser.add_argument("--peak", choices=["blocked", "fused"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak)
    elif arguments.memory:
        Console().print(compare_memory())
    else:
        Console().print(compare_steps(arguments) if arguments.steps else compare_pooling(arguments))


if __name__ == "__main__":
    main()
