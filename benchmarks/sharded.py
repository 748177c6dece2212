"""Peak memory of a rank by the number of ranks, for a sharded table; and the time of a step.

    .venv/bin/python benchmarks/sharded.py                                   # 20 million ids on 1, 2 and 4 ranks
    .venv/bin/python benchmarks/sharded.py --ids 200000000 --ranks 4 --optimizer rowwise_adagrad --progress

Each number of ranks is a separate job under ``horovodrun`` on this machine: FM with k factors and a linear weight,
Zipf-distributed ids. Peak is the largest resident memory of a rank, with the program's own (the first row has a table
of a thousand ids); "of the table" is the rows and slots that it stores. All ranks share this machine's cores.
A table that does not fit into free memory is refused; ranks that leave less than 0.5 GB are stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Report, describe_machine, load, options, publish, versions

PROGRAM, LEAST = 600 << 20, 512 << 20  # bytes of a rank without a table, and bytes that must stay free


def memory(file: str, key: str) -> int:
    """The bytes of an entry in a file of /proc."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def refusal(task: dict[str, Any], optimizer: Any) -> str:
    """Why the table is refused: it and its slots do not fit into free memory; "" if they do."""
    widths = (1, task["k"])
    numbers = sum(widths) + sum(optimizer.slot_width(slot, width) for slot in optimizer.slots for width in widths)
    needed, free = 1.06 * 4 * numbers * task["ids"] + LEAST, memory("/proc/meminfo", "MemAvailable")
    if needed < free:
        return ""
    return f"{task['ids']:,} ids of {numbers} numbers need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


def take_steps(task: dict[str, Any], folder: Path) -> None:
    """One rank: create the table, take steps, and write the results."""
    import numpy as np
    import tensorflow as tf
    from step_pieces import all_pairs, zipf_batches

    from afm_ctr import distributed, optimizers
    from afm_ctr.models import CTRModel

    world = distributed.init()
    (folder / f"{world.rank}.pid").write_text(str(os.getpid()))
    optimizer = optimizers.build(task["optimizer"])
    if why := world.broadcast_object(refusal(task, optimizer)):
        (folder / "refused").write_text(why)
        world.shutdown()
        return
    begun = time.monotonic()
    pairs = all_pairs(task["slots"])
    model = CTRModel("fm", {"factors": task["k"]}, task["ids"] + 1, task["slots"], pairs, shard_over=world)
    model.compile(optimizer)
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
        (folder / "step").write_text(str(number + 1))
    mine = {
        "peak": memory("/proc/self/status", "VmHWM"),
        "table": sum(int(np.prod(v.shape)) * v.value.dtype.size for v in table),
        "made": made,
        "step": float(np.median(seconds[2:])),
        "losses": [losses[0], losses[-1]],
    }
    everyone = world.allgather_object(mine)
    if world.is_chief:
        (folder / "found.json").write_text(json.dumps(everyone))
    world.shutdown()


def measure(task: dict[str, Any], ranks: int, progress: bool) -> list[dict[str, Any]]:
    """The results of each rank."""
    with tempfile.TemporaryDirectory(prefix="afm-sharded-") as name:
        folder = Path(name)
        launcher = Path(sys.executable).with_name("horovodrun")
        job = [str(launcher), "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}", sys.executable, __file__]
        with (folder / "output").open("w") as output:
            started = subprocess.Popen(
                [*job, "--rank-of", json.dumps(task), name],
                stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
            try:
                watch(started, folder, progress)
            finally:
                if started.poll() is None:
                    started.terminate()  # the launcher; its ranks may be busy
                    for file in folder.glob("*.pid"):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(file.read_text()), signal.SIGKILL)
                code = started.wait()
        if (folder / "refused").exists():
            sys.exit(f"benchmark: {(folder / 'refused').read_text()}")
        if code:
            sys.exit(f"benchmark: {ranks} ranks ended with {code}\n{(folder / 'output').read_text()[-4000:]}")
        found: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())
        return found


def watch(job: subprocess.Popen[bytes], folder: Path, progress: bool) -> None:
    """Wait for a job to end, printing its progress every ten seconds; stop it if memory runs out."""
    begun = said = time.monotonic()
    while job.poll() is None:
        time.sleep(0.1)
        free = memory("/proc/meminfo", "MemAvailable")
        if free < LEAST:
            sys.exit(f"benchmark: stopped, as only {free >> 20} MB of memory are free")
        if progress and time.monotonic() - said >= 10:
            said = time.monotonic()
            held = []
            for file in sorted(folder.glob("*.pid")):
                with contextlib.suppress(OSError, ValueError, StopIteration):  # it has just ended
                    held.append(memory(f"/proc/{int(file.read_text())}/status", "VmRSS"))
            step = (folder / "step").read_text() if (folder / "step").exists() else "0"
            holding = " + ".join(f"{one / 1e9:.2f}" for one in held)
            print(f"{said - begun:.0f} s: ranks hold {holding} GB, {free / 1e9:.1f} free, steps {step}", flush=True)


def main() -> None:
    parser = options(__doc__, ids=20_000_000, ranks=[1, 2, 4], slots=20, k=16, steps=12)
    parser.add_argument("--optimizer", default="adagrad")
    parser.add_argument("--batch", type=int, default=1024, help="of a rank")
    parser.add_argument("--progress", action="store_true", help="say every ten seconds how far a job is")
    parser.add_argument("--rank-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        take_steps(json.loads(arguments.rank_of[0]), Path(arguments.rank_of[1]))
        return
    if arguments.quick:
        arguments.ids, arguments.ranks, arguments.batch, arguments.steps = 2000, [2], 64, 4
    names = ("ids", "optimizer", "slots", "batch", "k", "steps")
    task, before = {name: getattr(arguments, name) for name in names}, load()
    columns = ["ranks", "ids", "of the table, MB", "peak, MB", "making it, s", "step, ms", "rows/s", "loss"]
    shape = f"{task['k']} factors, {task['optimizer']}, {task['slots']} slots, batch {task['batch']} a rank"
    report = Report(f"memory of a rank: {shape}", columns)
    for ids, ranks in [(1000, arguments.ranks[0]), *((task["ids"], ranks) for ranks in arguments.ranks)]:
        found = measure(task | {"ids": ids}, ranks, arguments.progress)
        table, peak, made, step = (max(one[name] for one in found) for name in ("table", "peak", "made", "step"))
        first, last = (sum(one["losses"][end] for one in found) / ranks for end in (0, -1))
        speed = ranks * task["batch"] / step
        figures = [f"{table / 1e6:,.0f}", f"{peak / 1e6:,.0f}", f"{made:.0f}", f"{1e3 * step:.0f}", f"{speed:,.0f}"]
        report.rows.append([str(ranks), f"{ids:,}", *figures, f"{first:.4f} – {last:.4f}"])
    facts = [
        f"{describe_machine()}, load average {before} before, {load()} after",
        versions("tensorflow", "keras", "horovod"),
    ]
    publish([report], arguments.output, facts)


if __name__ == "__main__":
    main()
