"""Two ranks on this machine against one: rows per second, and the time of a step by part.

    .venv/bin/python benchmarks/ranks.py
    .venv/bin/python benchmarks/ranks.py --form reduce --ids 100000

In one job of ``horovodrun -np 2`` each way takes its turn in every round; while one rank works, the other waits. Two
ranks share the cores: each has half. So two ranks compare with one rank on half of the cores, to which they add cores
as a second machine would, and with one rank on all cores, which is the best for a single machine.

gradients  merge of the ids, lookup, forward, backward
exchange   merge, transfer by Horovod (Gloo), merge; including the wait for the other rank
optimizer  the update of the touched rows and the dense weights

The parts are timed one by one, each on the result of the one before; so their sum is only near the whole step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import Report, describe_machine, load, options, publish, versions

from afm_ctr import native

WORKER = Path(__file__).with_name("ranks_worker.py")
PIECES = ("gradients", "exchange", "optimizer")


def run(task: dict[str, Any], timeout: float = 1800) -> dict[str, Any]:
    """Run the job under ``horovodrun`` and return the results of rank 0."""
    with tempfile.TemporaryDirectory(prefix="afm-ranks-") as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps(task | {"found": str(folder / "found.json")}))
        launcher = str(Path(sys.executable).with_name("horovodrun"))
        command = [
            launcher,
            "--gloo",
            "-np",
            "2",
            "-H",
            "localhost:2",
            sys.executable,
            str(WORKER),
            f"{folder}/task.json",
        ]
        log = folder / "log"
        with log.open("wb") as sink:
            code = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, timeout=timeout).returncode
        if code:
            lines = log.read_text(errors="replace").splitlines()
            sys.exit(f"benchmark: horovodrun ended with {code}\n" + "\n".join(lines[-25:]))
        return json.loads((folder / "found.json").read_text())


def table_of(task: dict[str, Any], found: dict[str, Any]) -> Report:
    times: dict[str, dict[str, list[float]]] = {}
    for entry in found["found"]:
        times.setdefault(entry["way"], {}).setdefault(entry["piece"], []).append(entry["seconds"])
    columns = ["", "rows/s", "lowest – highest", "times one core", "step, ms", *(f"{piece}, ms" for piece in PIECES)]
    columns.append("distinct rows a rank")
    title = f"{task['slots']} slots, {task['ids']:,} ids, batch {task['batch']}, k={task['k']}, t={task['t']}, Adam, "
    report = Report(title + f"exchange: {task['form']}", columns)
    base = next(iter(found["facts"]))
    for way, facts in found["facts"].items():
        rows = facts["rows"] * facts["ranks"]
        rates = [rows / taken for taken in times[way]["whole"]]
        first = [found["facts"][base]["rows"] / taken for taken in times[base]["whole"]]
        gain = statistics.median(a / b for a, b in zip(rates, first, strict=True))
        row = [f"{way} ({rows} rows)", f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} – {max(rates):,.0f}"]
        row += [f"{gain:.2f}"] + [f"{1e3 * statistics.median(times[way][p]):.1f}" for p in ("whole", *PIECES)]
        report.rows.append([*row, f"{facts['ids']:,}"])
    return report


def main() -> None:
    parser = options(__doc__, slots=39, ids=1_000_000, batch=4096, k=16, t=16, rounds=9)
    parser.add_argument("--form", choices=["gather", "reduce"], default="gather", help="of the exchange")
    parser.add_argument("--steps", type=int, default=4, help="in a turn")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.ids, arguments.slots, arguments.batch, arguments.rounds, arguments.steps = 2000, 5, 256, 1, 2
    names = ("form", "slots", "ids", "batch", "k", "t", "rounds", "steps")
    task = {name: getattr(arguments, name) for name in names}
    before = load()
    found = run(task)
    report = table_of(task, found)
    if len(os.sched_getaffinity(0)) < 2:
        report.notes.append("One core only: the ranks took turns on it, and no speed-up can be seen.")
    facts = [
        f"{describe_machine()}, load average {before} before, {load()} after",
        versions("tensorflow", "keras", "horovod") + f"; pooling: {native.describe()}",
        f"medians of {arguments.rounds} rounds of {arguments.steps} steps, the ways taking turns",
    ]
    publish([report], arguments.output, facts)


if __name__ == "__main__":
    main()
