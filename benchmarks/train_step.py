"""Whole training steps of AFM: ours against DeepCTR (TensorFlow) and FuxiCTR (PyTorch on the CPU), rows per second.

    .venv/bin/python benchmarks/train_step.py                    # a few minutes, and once the peers' environments
    .venv/bin/python benchmarks/train_step.py --batch 512 --rounds 9
    .venv/bin/python benchmarks/train_step.py --only deepctr
    .venv/bin/python benchmarks/train_step.py --instructions avx2    # as on a machine without AVX-512
    .venv/bin/python benchmarks/train_step.py --gpu                  # on an NVIDIA GPU, with PyTorch's plain form

All get the same synthetic batches (Zipf-distributed ids, every slot with a table of the same size), batch size, k,
t, log loss, Adam at the same rate, no dropout, no L2, float32, the same cores. Each trains in a separate process and
only one works at a time: ours, a peer, ours, the next peer and so on, in every round. A peer is compared with the
turn of ours just before it; medians over the rounds are printed. The last two columns are CPU time per step, of all
threads. Measure on an idle machine: when others use its cores, PyTorch's threads wait for each other, spinning, and
FuxiCTR's steps take several times as long, by the clock and in CPU time, so that the ratio flatters ours.

Timed are whole steps on batches in memory: lookup, forward, backward, optimizer, and reading the loss, each as in the
library's own training loop, without reading files. The optimizers differ in one thing: our Adam is lazy and updates
only the rows of the batch; those of the peers, which have no lazy one, pass over their whole tables in every step. So
the ratio depends on the number of ids: ``--ids``.

``--instructions avx2`` limits our kernels, oneDNN, PyTorch and MKL to AVX2. TensorFlow's other kernels do not
choose at run time.

``--gpu`` puts all of them on the first GPU, and adds a straightforward AFM in PyTorch, eager and under
``torch.compile``; DeepCTR is left out, since it needs another TensorFlow. Without it no GPU is used. Batches are on
the GPU beforehand, except FuxiCTR's: its step copies them, one field at a time.

The peers have separate environments below ``$AFM_CTR_CACHE``, else ``$XDG_CACHE_HOME/afm-ctr``, else
``~/.cache/afm-ctr``, created on the first run; one that cannot be installed is reported and left out. ``--installed``
uses the peers of this Python instead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import environment
from report import Report, describe_machine, load, options, publish, versions

WORKERS = Path(__file__).with_name("step_workers.py")
BATCHES = 10


class Contender(NamedTuple):
    title: str
    worker: str
    environment: str | None = None  # None: this interpreter's
    pooling: str = ""


OURS = Contender("ours, fused pooling", "ours", None, "fused")
OTHERS = [
    Contender("DeepCTR", "deepctr", "deepctr"),
    Contender("DeepCTR without its L2 ops (*)", "deepctr-bare", "deepctr"),
    Contender("FuxiCTR", "fuxictr", "fuxictr"),
    Contender("ours, pooling in TensorFlow", "ours", None, "tensorflow"),
]
PYTORCH = [
    Contender("PyTorch, plain", "pytorch", "fuxictr"),
    Contender("PyTorch, torch.compile", "pytorch-compiled", "fuxictr"),
]
REMARK = (
    "(*) DeepCTR hands Keras an L2 regulariser for every table also when λ is 0, which reads whole tables and makes "
    "their gradients dense; in this line they are taken away."
)


# Settings that limit each library to an instruction set: our kernels, oneDNN, PyTorch's own kernels, MKL.
LIMITS = {
    "avx2": {
        "AFM_CTR_INSTRUCTIONS": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


class Worker:
    """A contender's process, which waits while others work."""

    def __init__(self, contender: Contender, cores: list[int], log: Path, limits: dict[str, str]) -> None:
        place = contender.environment
        interpreter = environment(place) if place else Path(sys.executable)
        self.title, self.log = contender.title, log
        self.process = subprocess.Popen(
            [str(interpreter), str(WORKERS), contender.worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            # Without PYTHONPATH, so that our modules do not hide the peer's.
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            | {"AFM_CTR_POOLING": contender.pooling}
            | limits,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def tell(self, command: dict[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer is reported instead

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            lines = self.log.read_text(errors="replace").splitlines()[-8:]
            raise RuntimeError(f"{self.title}: ended with {self.process.wait()}\n" + "\n".join(lines))
        return json.loads(answer)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

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


def start(
    contenders: list[Contender], task: dict[str, Any], cores: list[int], folder: Path, limits: dict[str, str]
) -> dict[str, Any]:
    """The workers, built and warmed up, by title, and their versions; without the peers that cannot be installed."""
    workers: dict[str, Worker] = {}
    used: dict[str, str] = {}

    def leave_out(contender: Contender, error: RuntimeError) -> None:
        if contender is OURS:
            raise error
        print(f"left out: {contender.title}: {error}", file=sys.stderr)

    for contender in contenders:
        try:
            workers[contender.title] = Worker(contender, cores, folder / f"{len(workers)}.log", limits)
            workers[contender.title].tell(task)  # they build in parallel
        except RuntimeError as error:
            leave_out(contender, error)
    for contender in contenders:
        try:
            if contender.title in workers:
                used[contender.title] = workers[contender.title].answer()["versions"]
        except RuntimeError as error:
            del workers[contender.title]
            leave_out(contender, error)
    return {"workers": workers, "versions": used}


def measure(workers: dict[str, Worker], batch: int, rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """The turns of every contender; those of the others also hold "ours", the rows/s of ours in the turn before."""
    taken: dict[str, list[dict[str, Any]]] = {title: [] for title in workers}

    def turn(title: str) -> dict[str, Any]:
        answer = workers[title].ask({"seconds": seconds})
        taken[title].append(answer | {"rate": answer["steps"] * batch / answer["seconds"]})
        return taken[title][-1]

    for number in range(rounds):
        if list(workers) == [OURS.title]:
            turn(OURS.title)
        for title in workers:
            if title != OURS.title:
                before = turn(OURS.title)["rate"]
                turn(title)["ours"] = before
        print(f"round {number + 1} of {rounds}, load average {load()}", file=sys.stderr, flush=True)
    return taken


def compare(contenders: list[Contender], arguments: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Start the contenders on the same batches, let them take turns, end them: "taken" and "versions" by title."""
    with tempfile.TemporaryDirectory(prefix="afm-step-") as name:
        data = Path(name) / "batches.npz"
        write_batches(data, arguments)
        task = {name: getattr(arguments, name) for name in ("batch", "slots", "ids", "k", "t")}
        task |= {"data": str(data), "rate": 0.001, "cores": len(cores), "gpu": arguments.gpu}
        devices = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if arguments.gpu else {"CUDA_VISIBLE_DEVICES": ""}
        started = start(contenders, task, cores, Path(name), devices | LIMITS.get(arguments.instructions, {}))
        try:
            taken = measure(started["workers"], arguments.batch, arguments.rounds, arguments.seconds)
        finally:
            for worker in started["workers"].values():
                worker.end()
    return {"taken": taken, "versions": started["versions"]}


def table_of(found: dict[str, Any], arguments: argparse.Namespace) -> Report:
    taken = found["taken"]
    title = (
        f"whole training step, AFM, {arguments.slots} slots, {arguments.ids:,} ids, batch {arguments.batch}, "
        f"k={arguments.k}, t={arguments.t}, Adam (lazy in ours), float32"
    ) + (f", all limited to {arguments.instructions}" if arguments.instructions else "")
    title += ", on a GPU" if arguments.gpu else ""
    columns = ["", "versions", "rows/s", "lowest – highest", "ms a step", "peak, GB", "ours / it", "lowest – highest"]
    report = Report(title, [*columns, "CPU ms", "CPU, it / ours"])
    cpu = {name: statistics.median(turn["cpu"] / turn["steps"] for turn in turns) for name, turns in taken.items()}
    for name, turns in taken.items():
        rates = [turn["rate"] for turn in turns]
        median = statistics.median(rates)
        ratios = [turn["ours"] / turn["rate"] for turn in turns if "ours" in turn]
        row = [f"{median:,.0f}", f"{min(rates):,.0f} – {max(rates):,.0f}", f"{1000 * arguments.batch / median:.0f}"]
        row.append(f"{turns[-1]['peak']:.1f}")
        row += [f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f} – {max(ratios):.1f}"] if ratios else ["", ""]
        row += [f"{1000 * cpu[name]:.0f}", f"{cpu[name] / cpu[OURS.title]:.1f}" if ratios else ""]
        report.rows.append([name, found["versions"][name], *row])
    report.notes.append("Last losses: " + ", ".join(f"{turns[-1]['loss']:.3f}" for turns in taken.values()) + ".")
    if any(name.endswith("(*)") for name in taken):
        report.notes.append(REMARK)
    return report


LAYER = {"k": 16, "t": 16, "cores": 2}


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options of the task and its measurement, except slots and batch."""
    parser.add_argument("--ids", type=int, default=1_000_000, help="of all slots together")
    parser.add_argument("--instructions", choices=list(LIMITS), help="limit ours and the peers to this set")
    parser.add_argument("--only", nargs="+", choices=sorted({c.worker for c in OTHERS + PYTORCH}), metavar="PEER")
    parser.add_argument("--gpu", action="store_true", help="on the first GPU, next to PyTorch's plain form")
    parser.add_argument("--installed", action="store_true", help="the peers that this Python has")


def main() -> None:
    parser = options(__doc__, batch=4096, slots=39, rounds=5, **LAYER)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn, which has two steps at least")
    add_task(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.slots, arguments.batch, arguments.ids, arguments.rounds, arguments.seconds = 5, 64, 2000, 1, 0.1
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    known = [other for other in OTHERS if "deepctr" not in other.worker] + PYTORCH if arguments.gpu else OTHERS
    others = [other for other in known if not arguments.only or other.worker in arguments.only]
    if arguments.installed:
        others = [other._replace(environment=None) for other in others]
    before = load()
    found = compare([OURS, *others], arguments, cores)
    facts = [
        f"{describe_machine(len(cores))}, load average {before} before, {load()} after",
        versions(),
        f"{arguments.rounds} rounds, turns of {arguments.seconds:g} s, ours before each of the others",
    ]
    publish([table_of(found, arguments)], arguments.output, facts)


if __name__ == "__main__":
    main()
