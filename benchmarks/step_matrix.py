"""Whole training steps by slots and batch size: ours, DeepCTR's and FuxiCTR's; rows per second and peak memory.

    .venv/bin/python benchmarks/step_matrix.py --plot docs/figures/step.png         # about eight minutes
    .venv/bin/python benchmarks/step_matrix.py --slots 10 39 --batch 512 --only fuxictr

Every size is a comparison as in ``train_step.py``, in separate processes, so that each has its own peak. The peers
hold tensors of all pairs; if these need more than ``--most`` GB, the peers are not started, and the table gives the
memory that they would need, by arithmetic.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from interaction import plain_bytes
from plots import panels
from report import NOTHING, Report, describe_machine, load, options, publish, versions
from train_step import LAYER, OTHERS, OURS, add_task, compare

PEERS = {"deepctr": "DeepCTR", "fuxictr": "FuxiCTR"}


def cells(found: dict[str, Any], titles: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Rates, ratios and peaks of ours and of the peers."""
    rates, ratios, peaks = [], [], []
    for title in titles:
        turns = found["taken"].get(title)
        rates.append(f"{statistics.median(turn['rate'] for turn in turns):,.0f}" if turns else NOTHING)
        peaks.append(f"{turns[-1]['peak']:.1f}" if turns else NOTHING)
        if title != OURS.title:
            ratio = statistics.median(turn["ours"] / turn["rate"] for turn in turns) if turns else None
            ratios.append(f"{ratio:.1f}" if ratio else NOTHING)
    return rates, ratios, peaks


def main() -> None:
    parser = options(__doc__, slots=[10, 39, 100, 196], batch=[512, 4096, 16384], rounds=3, **LAYER)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a turn, which has two steps at least")
    parser.add_argument("--most", type=float, default=4.0, help="GB of pair tensors at which peers are left out")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw rows/s by slots")
    add_task(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.slots, arguments.batch, arguments.ids, arguments.rounds, arguments.seconds = [3], [64], 999, 1, 0.1
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    peers = [other for other in OTHERS if other.worker in PEERS]
    peers = [peer for peer in peers if not arguments.only or peer.worker in arguments.only]
    titles = [OURS.title, *(peer.title for peer in peers)]
    names = ["ours", *titles[1:]]
    columns = ["slots", "batch", *(f"{name}, rows/s" for name in names), *(f"ours / {name}" for name in names[1:])]
    columns += [*(f"{name}, peak GB" for name in names), "pair tensors, GB"]
    title = f"whole training step, AFM, {arguments.ids:,} ids, k={arguments.k}, t={arguments.t}, Adam (lazy in ours)"
    title += f", all limited to {arguments.instructions}" if arguments.instructions else ""
    report = Report(title, columns)
    lines: dict[str, Any] = {}
    used: dict[str, str] = {}
    before = load()
    for batch in arguments.batch:
        part: dict[str, list[tuple[float, float]]] = lines.setdefault(f"batch {batch}", {})
        for slots in arguments.slots:
            need = plain_bytes(slots, batch, arguments.k, arguments.t) / 1e9
            size = argparse.Namespace(**vars(arguments) | {"slots": slots, "batch": batch})
            found = compare([OURS, *(peers if need <= arguments.most else [])], size, cores)
            used |= found["versions"]
            rates, ratios, peaks = cells(found, titles)
            report.rows.append([str(slots), str(batch), *rates, *ratios, *peaks, f"{need:.2f}"])
            for name, rate in zip(names, rates, strict=True):
                if rate != NOTHING:
                    part.setdefault(name, []).append((slots, float(rate.replace(",", ""))))
            print(f"{slots} slots, batch {batch}: done, load average {load()}", file=sys.stderr, flush=True)
    report.notes.append(
        "The last column is arithmetic: the least that a form with tensors of all pairs keeps for its backward pass. "
        f"The peers were not started where that is above {arguments.most:g} GB."
    )
    if arguments.plot:
        panels(arguments.plot, "whole training step", ("slots", "rows/s"), lines)
    facts = [
        f"{describe_machine(len(cores))}, load average {before} before, {load()} after",
        "; ".join([versions(), *dict.fromkeys(used.values())]),
        f"medians of {arguments.rounds} rounds, turns of {arguments.seconds:g} s and two steps at least, "
        "ours before each of the others",
    ]
    publish([report], arguments.output, facts)


if __name__ == "__main__":
    main()
