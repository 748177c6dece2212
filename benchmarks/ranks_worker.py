"""One of the two ranks of ``benchmarks/ranks.py``: every way takes its turn; while one rank works the other waits.

Rank 0 writes the results to the given file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from step_pieces import Pieces, built_optimizer, distinct_rows, make_model, one_by_one, whole_steps, zipf_batches

from afm_ctr import distributed
from afm_ctr.distributed import SingleWorld, World

BATCHES = 4
WAYS = (
    "one rank, one core",
    "one rank, all cores",
    "two ranks, the same global batch",
    "two ranks, the same local batch",
)
PIECES = ("gradients", "exchange", "optimizer")


def confine(cores: Iterable[int]) -> None:
    """Restrict every thread of this process to these cores, including those that TensorFlow has created."""
    allowed = set(cores)
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), allowed)
        except ProcessLookupError:
            continue


def prepare(task: dict[str, Any], world: World) -> dict[str, dict[str, Any]]:
    """By way: its calls, the cores per rank, rows per rank and step, distinct rows."""
    model = make_model(task["slots"], task["ids"], task["k"], task["t"])
    optimizer, alone = built_optimizer(model), SingleWorld()
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[world.rank % len(cores) :: world.size] or cores
    ways = {}
    for way in WAYS:
        together = way.startswith("two")
        rows = task["batch"] // world.size if way.endswith("global batch") else task["batch"]
        batches = zipf_batches(task["slots"], task["ids"], rows, BATCHES, seed=1 + world.rank)
        calls: dict[str, Callable[[], Any]] = {}
        # Both ranks create it: an exchange is named by the number of those before it.
        pieces = Pieces(model, optimizer, world if together else alone, task["form"])
        if together or world.is_chief:
            calls = one_by_one(pieces, model, batches) | {"whole": whole_steps(pieces, batches)}
        where = cores if way.endswith("all cores") else mine
        touched = int(np.median([distinct_rows(batch) for batch in batches]))
        ways[way] = {
            "calls": calls,
            "cores": where,
            "rows": rows,
            "ranks": world.size if together else 1,
            "ids": touched,
        }
        world.barrier()
    return ways


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    world = distributed.init()
    ways = prepare(task, world)
    found: list[dict[str, Any]] = []
    for turn in range(task["rounds"] + 1):
        for way, ready in ways.items():
            confine(ready["cores"])
            for piece in ("whole", *PIECES):
                world.barrier()
                start = time.perf_counter()
                if call := ready["calls"].get(piece):
                    for _ in range(task["steps"]):
                        call()
                taken = (time.perf_counter() - start) / task["steps"]
                if turn and world.is_chief:
                    found.append({"round": turn, "way": way, "piece": piece, "seconds": taken})
    if world.is_chief:
        facts = {way: {name: ready[name] for name in ("rows", "ranks", "ids")} for way, ready in ways.items()}
        Path(task["found"]).write_text(json.dumps({"found": found, "facts": facts}))
    world.barrier()


if __name__ == "__main__":
    main()
