"""Whole training steps of AFM: ours against DeepCTR's (TensorFlow) and FuxiCTR's (PyTorch on the CPU), rows a second.

    .venv/bin/python benchmarks/train_step.py                    # a few minutes, and once the peers' environments
    .venv/bin/python benchmarks/train_step.py --batch 512 --rounds 9
    .venv/bin/python benchmarks/train_step.py --only deepctr

All get the same synthetic batches (Zipf-distributed ids, every slot with a table of the same size), batch size, k,
t, log loss, Adam at the same rate, no dropout, no L2, float32, the same cores. Each trains in a process of its own
and only one works at a time: ours, a peer, ours, the next peer and so on, in every round. A peer is compared with the
turn of ours just before it; medians over the rounds are printed. The last two columns are of CPU time a step, of all
threads. Measure on an idle machine: when others use its cores, PyTorch's threads wait for each other, spinning, and
FuxiCTR's steps take several times as long, by the clock and in CPU time, so that the ratio says too much for ours.

Timed are whole steps on batches that are in memory: lookup, forward, backward, optimizer, and the reading of the
loss, each in the way in which the library's own training loop makes a step. Reading files is not. The optimizers
differ in one thing: our Adam is lazy, it moves the rows of the batch alone; those of the peers, which offer no other,
pass over their whole tables in every step. So the ratio depends on the number of ids: ``--ids``.

The peers live in environments of their own below ``$AFM_CTR_CACHE``, else ``$XDG_CACHE_HOME/afm-ctr``, else
``~/.cache/afm-ctr``, made at the first run; one that cannot be installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))
from building import alone, cache, run  # noqa: E402

WORKERS = Path(__file__).with_name("step_workers.py")
BATCHES = 10


class Contender(NamedTuple):
    title: str
    worker: str
    environment: str | None = None  # None: this interpreter's
    pooling: str = ""


# torch by its version alone: the index decides on the build, and one without CUDA is enough.
ENVIRONMENTS = {
    "deepctr": ["deepctr==0.9.4", "tensorflow==2.15.1"],
    "fuxictr": ["fuxictr==2.3.10", "torch==2.13.0", "polars<1.30"],
}
OURS = Contender("ours, fused pooling", "ours", None, "fused")
OTHERS = [
    Contender("DeepCTR", "deepctr", "deepctr"),
    Contender("DeepCTR without its L2 ops (*)", "deepctr-bare", "deepctr"),
    Contender("FuxiCTR", "fuxictr", "fuxictr"),
    Contender("ours, pooling in TensorFlow", "ours", None, "tensorflow"),
]
REMARK = (
    "(*) DeepCTR hands Keras an L2 regulariser for every table also when λ is 0, which reads whole tables and makes "
    "their gradients dense; in this line they are taken away."
)


def environment(name: str) -> Path:
    """The interpreter of a peer's environment, made if it is not there or is for other versions."""
    place = cache() / "peers" / name
    interpreter, done = place / "bin" / "python", place / "installed.txt"
    wanted = "\n".join([platform.python_version(), *ENVIRONMENTS[name]])
    with alone(place):
        if not done.exists() or done.read_text() != wanted:
            print(f"installing {' '.join(ENVIRONMENTS[name])} in {place} ", end="", flush=True)
            log = place.parent / f"{name}.log"
            log.unlink(missing_ok=True)
            run([sys.executable, "-m", "venv", "--clear", str(place)], log)
            run([str(interpreter), "-m", "pip", "install", *ENVIRONMENTS[name]], log)
            done.write_text(wanted)
            print()
    return interpreter


class Worker:
    """A contender's process: it waits while others work."""

    def __init__(self, contender: Contender, cores: list[int], log: Path) -> None:
        interpreter = environment(contender.environment) if contender.environment else Path(sys.executable)
        self.title, self.log = contender.title, log
        self.process = subprocess.Popen(
            [str(interpreter), str(WORKERS), contender.worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            # Not PYTHONPATH: what is ours must not be found before what is the peer's.
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"AFM_CTR_POOLING": contender.pooling},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            lines = self.log.read_text(errors="replace").splitlines()[-8:]
            raise RuntimeError(f"{self.title}: ended with {self.process.wait()}\n" + "\n".join(lines))
        return json.loads(answer)

    def end(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def write_batches(file: Path, arguments: argparse.Namespace) -> None:
    """Ids from 0 in each slot, int64 [batches, batch, slots], and labels, float32 [batches, batch]."""
    rng = np.random.default_rng(0)
    ids = rng.zipf(1.2, size=(BATCHES, arguments.batch, arguments.slots)) % (arguments.ids // arguments.slots)
    labels = rng.integers(0, 2, (BATCHES, arguments.batch)).astype(np.float32)
    np.savez(file, ids=ids.astype(np.int64), labels=labels)


def describe_machine(cores: list[int]) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(cores)} of {os.cpu_count()} cores used"


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def start(contenders: list[Contender], task: dict[str, Any], cores: list[int], folder: Path) -> dict[str, Any]:
    """The workers, built and warm, by their titles, and their versions; without the peers that cannot be had."""
    workers: dict[str, Worker] = {}
    versions: dict[str, str] = {}
    for contender in contenders:
        try:
            worker = Worker(contender, cores, folder / f"{len(workers)}.log")
            versions[contender.title] = worker.ask(task)["versions"]
            workers[contender.title] = worker
        except RuntimeError as error:
            if contender is OURS:
                raise
            print(f"left out: {contender.title}: {error}")
    return {"workers": workers, "versions": versions}


def measure(workers: dict[str, Worker], arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The turns of every contender; one of the others also holds "ours", the rows/s of ours in the turn before."""
    taken: dict[str, list[dict[str, Any]]] = {title: [] for title in workers}

    def turn(title: str) -> dict[str, Any]:
        answer = workers[title].ask({"seconds": arguments.seconds})
        taken[title].append(answer | {"rate": answer["steps"] * arguments.batch / answer["seconds"]})
        return taken[title][-1]

    for number in range(arguments.rounds):
        for title in workers:
            if title != OURS.title:
                before = turn(OURS.title)["rate"]
                turn(title)["ours"] = before
        print(f"round {number + 1} of {arguments.rounds}, load average {load()}", flush=True)
    return taken


def table_of(
    taken: dict[str, list[dict[str, Any]]], versions: dict[str, str], arguments: argparse.Namespace
) -> Table:
    title = (
        f"whole training step, AFM, {arguments.slots} slots, {arguments.ids:,} ids, batch {arguments.batch}, "
        f"k={arguments.k}, t={arguments.t}, Adam (lazy in ours), float32"
    )
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    table.add_column("versions")
    for name in (
        "rows/s",
        "lowest - highest",
        "ms a step",
        "peak, GB",
        "ours / it",
        "lowest - highest",
        "CPU ms",
        "CPU, it / ours",
    ):
        table.add_column(name, justify="right")
    cpu = {name: statistics.median(turn["cpu"] / turn["steps"] for turn in turns) for name, turns in taken.items()}
    for name, turns in taken.items():
        rates = [turn["rate"] for turn in turns]
        median = statistics.median(rates)
        ratios = [turn["ours"] / turn["rate"] for turn in turns if "ours" in turn]
        row = [f"{median:,.0f}", f"{min(rates):,.0f} - {max(rates):,.0f}", f"{1000 * arguments.batch / median:.0f}"]
        row.append(f"{turns[-1]['peak']:.1f}")
        row += [f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f} - {max(ratios):.1f}"] if ratios else ["", ""]
        row += [f"{1000 * cpu[name]:.0f}", f"{cpu[name] / cpu[OURS.title]:.1f}" if ratios else ""]
        table.add_row(name, versions[name], *row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--slots", type=int, default=39)
    parser.add_argument("--ids", type=int, default=1_000_000, help="of all slots together")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--t", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn, which has two steps at least")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=["deepctr", "deepctr-bare", "fuxictr", "ours"], metavar="PEER")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    others = [other for other in OTHERS if not arguments.only or other.worker in arguments.only]
    before = load()
    with tempfile.TemporaryDirectory(prefix="afm-step-") as name:
        data = Path(name) / "batches.npz"
        write_batches(data, arguments)
        task = {name: getattr(arguments, name) for name in ("batch", "slots", "ids", "k", "t")}
        task |= {"data": str(data), "rate": 0.001, "cores": len(cores)}
        started = start([OURS, *others], task, cores, Path(name))
        try:
            taken = measure(started["workers"], arguments)
        finally:
            for worker in started["workers"].values():
                worker.end()
    print(f"\n$ {shlex.join(['python', 'benchmarks/train_step.py', *sys.argv[1:]])}")
    print(f"{describe_machine(cores)}, load average {before} before, {load()} after")
    turns = f"{arguments.rounds} rounds, turns of {arguments.seconds:g} s, ours before each of the others"
    print(f"{turns}; last losses: " + ", ".join(f"{t[-1]['loss']:.3f}" for t in taken.values()))
    Console(width=190).print(table_of(taken, started["versions"], arguments))
    if any(other.worker == "deepctr-bare" for other in others):
        print(REMARK)


if __name__ == "__main__":
    main()
