"""Peak memory of a rank against the number of ranks, of a table that is spread over them; and what a step takes.

    .venv/bin/python benchmarks/sharded.py                                   # 20 million ids on 1, 2 and 4 ranks
    .venv/bin/python benchmarks/sharded.py --ids 100000000 --ranks 4

Each number of ranks is a job of its own under ``horovodrun`` on this machine: FM with k factors and a linear weight,
zipf-distributed ids. Peak is the largest resident memory of a rank, with the program's own (the first row has a table
of a thousand ids); "of the table" is the rows and slots that it stores. All ranks share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Report, describe_machine, load, options, publish, versions


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def take_steps(task: dict[str, Any], folder: Path) -> None:
    """One rank: make the table, take steps, and leave what was found."""
    import numpy as np
    import tensorflow as tf
    from step_pieces import all_pairs, zipf_batches

    from afm_ctr import distributed, optimizers
    from afm_ctr.models import CTRModel

    world = distributed.init()
    begun = time.monotonic()
    pairs = all_pairs(task["slots"])
    model = CTRModel("fm", {"factors": task["k"]}, task["ids"] + 1, task["slots"], pairs, shard_over=world)
    model.compile(optimizers.build(task["optimizer"]))
    model.optimizer.build(model.trainable_variables)
    made = time.monotonic() - begun
    table = [v for v in [*model.variables, *model.optimizer.variables] if not distributed.is_replicated(v)]
    step = tf.function(model.train_step)
    batches = zipf_batches(task["slots"], task["ids"], task["batch"], 3, seed=1 + world.rank)
    losses, seconds = [], []
    for number in range(task["steps"]):
        world.barrier()
        begun = time.monotonic()
        losses.append(float(step(batches[number % len(batches)])["loss"]))
        seconds.append(time.monotonic() - begun)
    mine = {
        "peak": peak_bytes(),
        "table": sum(int(np.prod(v.shape)) * v.value.dtype.size for v in table),
        "made": made,
        "step": float(np.median(seconds[2:])),
        "losses": [losses[0], losses[-1]],
    }
    everyone = world.allgather_object(mine)
    if world.is_chief:
        (folder / "found.json").write_text(json.dumps(everyone))
    world.shutdown()


def measure(task: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """What each of so many ranks found."""
    with tempfile.TemporaryDirectory(prefix="afm-sharded-") as folder:
        launcher = Path(sys.executable).with_name("horovodrun")
        job = [str(launcher), "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}", sys.executable, __file__]
        command = [*job, "--rank-of", json.dumps(task), folder]
        ended = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        )
        if ended.returncode:
            said = f"{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
            sys.exit(f"benchmark: {ranks} ranks ended with {ended.returncode}\n{said}")
        found: list[dict[str, Any]] = json.loads((Path(folder) / "found.json").read_text())
        return found


def main() -> None:
    parser = options(__doc__, ids=20_000_000, ranks=[1, 2, 4], slots=20, k=16, steps=12)
    parser.add_argument("--optimizer", default="adagrad")
    parser.add_argument("--batch", type=int, default=1024, help="of a rank")
    parser.add_argument("--rank-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        take_steps(json.loads(arguments.rank_of[0]), Path(arguments.rank_of[1]))
        return
    if arguments.quick:
        arguments.ids, arguments.ranks, arguments.batch, arguments.steps = 2000, [2], 64, 4
    names = ("ids", "optimizer", "slots", "batch", "k", "steps")
    task, before = {name: getattr(arguments, name) for name in names}, load()
    columns = ["ranks", "ids", "of the table, MB", "peak, MB", "making it, s", "step, ms", "loss, first to last"]
    shape = f"{task['k']} factors, {task['optimizer']}, {task['slots']} slots, batch {task['batch']} a rank"
    report = Report(f"memory of a rank: {shape}", columns)
    for ids, ranks in [(1000, arguments.ranks[0]), *((task["ids"], ranks) for ranks in arguments.ranks)]:
        found = measure(task | {"ids": ids}, ranks)
        table, peak, made, step = (max(one[name] for one in found) for name in ("table", "peak", "made", "step"))
        first, last = (sum(one["losses"][end] for one in found) / ranks for end in (0, -1))
        figures = [f"{table / 1e6:,.0f}", f"{peak / 1e6:,.0f}", f"{made:.0f}", f"{1e3 * step:.0f}"]
        report.rows.append([str(ranks), f"{ids:,}", *figures, f"{first:.4f} – {last:.4f}"])
    facts = [
        f"{describe_machine()}, load average {before} before, {load()} after",
        versions("tensorflow", "keras", "horovod"),
    ]
    publish([report], arguments.output, facts)


if __name__ == "__main__":
    main()
