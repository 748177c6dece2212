"""Attentional pooling, forward and backward: the op in C++, the two TensorFlow forms, and the limit.

    .venv/bin/python benchmarks/interaction.py                       # 10 to 196 slots, batch 512 to 16384, minutes
    .venv/bin/python benchmarks/interaction.py --slots 39 --batch 4096 --rounds 9
    .venv/bin/python benchmarks/interaction.py --memory              # peaks of processes that train 196 slots, t=64

The forms take turns inside every round and medians are taken, so that a busy machine slows all of them alike.

plain    the usual form, with a tensor of all pairs; if it does not fit, the table gives the memory it needs
blocked  the same in TensorFlow for a few rows at a time
fused    the op
limit    3·k·t multiply-adds per pair (the hidden layer, and the gradients of its matrix and of its input, as matrix
         products need them; the op uses sums of subsets for two of them), at the current speed of TensorFlow's matrix
         multiplication on this machine

``--limit-program FILE`` runs your own yardstick: a program that measures 39 slots, k = t = 16, and prints lines
``threads 2 ex/s 100000``; its best line with the most threads is compared with the fused op's turn before it.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from plots import panels
from report import NOTHING, Report, describe_machine, load, options, publish, versions
from step_pieces import all_pairs, make_model, training_steps, zipf_batches

from afm_ctr import native
from afm_ctr.interactions import attentional_pooling, blocked_attentional_pooling, fused_attentional_pooling

FORMS: dict[str, Callable[..., Any]] = {
    "plain": attentional_pooling,
    "blocked": blocked_attentional_pooling,
    "fused": fused_attentional_pooling,
}
LARGEST = 196, 4096, 16, 64  # slots, batch, k, t of the memory table
AIM_BYTES = 3e9


def plain_bytes(slots: int, batch: int, k: int, t: int) -> int:
    """What the plain form keeps at least for its backward pass: factors, products and hidden layer of all pairs."""
    return 4 * batch * (slots * (slots - 1) // 2) * (3 * k + 2 * t)


def most_bytes() -> int:
    """Half of the free memory, at most 8 GB: the plain form takes more than its minimum."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return min(8 * 10**9, free // 2)


def pooling_step(form: str, slots: int, batch: int, k: int, t: int) -> Callable[[], Any]:
    """Forward and backward on fixed random inputs, as a function of a graph."""
    rng = np.random.default_rng(0)
    shapes = [(batch, slots, k), (k, t), (t,), (t,)]
    inputs = [tf.constant(rng.normal(size=shape) * 0.5, tf.float32) for shape in shapes]
    present, pairs = tf.ones([batch, slots], tf.bool), all_pairs(slots)

    @tf.function
    def step(u: tf.Tensor, W: tf.Tensor, b: tf.Tensor, h: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([u, W, b, h])
            pooled = FORMS[form](u, present, W, b, h, pairs)
            total = tf.reduce_sum(tf.square(pooled[0] if isinstance(pooled, tuple) else pooled))
        return tape.gradient(total, [u, W, b, h])

    return lambda: step(*inputs)[0][0, 0, 0].numpy()


def multiplication(size: int = 1024) -> Callable[[], Any]:
    """size³ multiply-adds in one call."""
    left = tf.random.stateless_normal([size, size], [1, 2])
    product = tf.function(tf.matmul)
    return lambda: product(left, left)[0, 0].numpy()


def run_program(program: Path) -> float:
    """Rows per second: the best of its lines with the most threads."""
    printed = subprocess.run([str(program.resolve())], capture_output=True, text=True, check=True).stdout
    found = [(int(n), float(rate)) for n, rate in re.findall(r"threads (\d+) ex/s (\d+)", printed)]
    if not found:
        sys.exit(f"benchmark: {program} prints no line like: threads 2 ex/s 100000")
    return max(found)[1]


def compare(slots: int, batch: int, arguments: argparse.Namespace, slow: set[str]) -> dict[str, list[float]]:
    """Rows per second by form and round, except slow ones; "limit" by arithmetic, and "program" if it applies."""
    k, t = arguments.k, arguments.t
    forms = ["plain"] if plain_bytes(slots, batch, k, t) < most_bytes() else []
    forms += ["blocked", "fused"] if not native.why_not() else ["blocked"]
    steps = {form: pooling_step(form, slots, batch, k, t) for form in forms if form not in slow}
    steps["limit"] = multiplication()
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    program: list[float] = []
    start = last = time.perf_counter()
    # Start another round only if there is time for it.
    while len(taken["limit"]) < arguments.rounds and 2 * time.perf_counter() - last - start <= arguments.seconds:
        last = time.perf_counter()
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - begun)
        if arguments.limit_program and (slots, k, t) == (39, 16, 16):
            program.append(run_program(arguments.limit_program))
    rates = {name: [batch / turn for turn in turns] for name, turns in taken.items()}
    needed = 3 * k * t * slots * (slots - 1) / 2
    rates["limit"] = [1024**3 / needed / turn for turn in taken["limit"]]
    return rates | ({"program": program} if program else {})


def ratio(rates: dict[str, list[float]], one: str, other: str) -> str:
    if one not in rates or other not in rates:
        return NOTHING
    return f"{statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)):.2f}"


def compare_all(arguments: argparse.Namespace) -> tuple[Report, dict[str, Any]]:
    k, t = arguments.k, arguments.t
    shown = [*FORMS, "limit"] + (["program"] if arguments.limit_program else [])
    columns = ["slots", "batch", *(f"{name}, rows/s" for name in shown), "fused / plain", "fused / blocked"]
    columns += ["fused / limit"] + (["fused / program"] if arguments.limit_program else []) + ["pair tensors, GB"]
    report = Report(f"attentional pooling, forward and backward, k={k}, t={t}", columns)
    lines: dict[str, Any] = {}
    known: dict[tuple[str, int], float] = {}
    for batch in sorted(arguments.batch):
        part: dict[str, list[tuple[float, float]]] = lines.setdefault(f"batch {batch}", {})
        for slots in arguments.slots:
            # Skip forms whose call would take longer than all rounds may, by their rate with fewer rows.
            slow = {form for form in FORMS if batch / known.get((form, slots), batch) > arguments.seconds}
            rates = compare(slots, batch, arguments, slow)
            middle = {name: statistics.median(each) for name, each in rates.items()}
            known |= {(name, slots): rate for name, rate in middle.items()}
            row = [str(slots), f"{batch}"] + [f"{middle[n]:,.0f}" if n in middle else NOTHING for n in shown]
            row += [ratio(rates, "fused", name) for name in ("plain", *shown[1:2], *shown[3:])]
            report.rows.append([*row, f"{plain_bytes(slots, batch, k, t) / 1e9:.2f}"])
            for name in (*FORMS, "limit"):
                if name in middle:
                    part.setdefault(name, []).append((slots, middle[name]))
            print(f"{slots} slots, batch {batch}: done, load average {load()}", file=sys.stderr, flush=True)
    report.notes.append(
        "The last column is arithmetic: the least that plain needs; it was left out where that does not fit. A form "
        f"was left out too where one call would take more than {arguments.seconds:g} s."
    )
    return report, lines


def compare_memory(quick: bool) -> tuple[Report, bool]:
    """Each form in a separate process: its peak after a few steps."""
    slots, batch, k, t = (6, 64, 4, 4) if quick else LARGEST
    title = f"peak of a process that trains {slots} slots, k={k}, t={t}, batch {batch}, 100,000 ids, Adam"
    report, met = Report(title, ["pooling", "GB", "s a step"]), False
    report.rows.append(["plain", f"at least {plain_bytes(slots, batch, k, t) / 1e9:.1f} (arithmetic)", NOTHING])
    for form in ["blocked"] + (["fused"] if not native.why_not() else []):
        command = [sys.executable, __file__, "--peak", form, *(["--quick"] if quick else [])]
        peak, taken = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        report.rows.append([form, peak, taken])
        met = float(peak) * 1e9 <= AIM_BYTES
    said = "met" if met else "NOT met"
    report.notes.append(f"Aim: the form that training takes here (the last line) stays within 3 GB: {said}.")
    return report, met


def print_peak(form: str, quick: bool) -> None:
    slots, batch, k, t = (6, 64, 4, 4) if quick else LARGEST
    os.environ["AFM_CTR_POOLING"] = {"fused": "fused", "blocked": "tensorflow"}[form]
    step = training_steps(make_model(slots, 100_000, k, t), "adam", zipf_batches(slots, 100_000, batch, 2))
    start = time.perf_counter()
    for _ in range(2):
        step()
    taken = (time.perf_counter() - start) / 2
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} {taken:.1f}")


def main() -> None:
    parser = options(__doc__, slots=[10, 39, 100, 196], batch=[512, 4096, 16384], k=16, t=16)
    parser.add_argument("--rounds", type=int, default=7, help="at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="about, for the rounds of a size; one at least")
    parser.add_argument("--limit-program", type=Path, metavar="FILE", help="a yardstick to run, see above")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw rows/s by slots")
    parser.add_argument("--memory", action="store_true", help="peak memory of training processes")
    parser.add_argument("--peak", choices=["blocked", "fused"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak, arguments.quick)
        return
    if arguments.quick:
        arguments.slots, arguments.batch, arguments.rounds = [3, 6], [64], 1
    before, met = load(), True
    if arguments.memory:
        report, met = compare_memory(arguments.quick)
    else:
        report, lines = compare_all(arguments)
        if arguments.plot:
            panels(arguments.plot, report.title, ("slots", "rows/s"), lines, dashed="limit")
    facts = [
        f"{describe_machine()}, load average {before} before, {load()} after",
        versions("tensorflow", "keras") + f"; {native.describe()}",
    ]
    publish([report], arguments.output, facts)
    sys.exit(0 if met or arguments.quick else 1)


if __name__ == "__main__":
    main()
