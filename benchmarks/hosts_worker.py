"""One rank of ``benchmarks/hosts.py``: takes the measured steps and counts the bytes.

Rank 0 requests a link by creating ``<folder>/want-<number>-<link>``, continues once ``<folder>/have-<number>`` exists
and writes all results to ``<folder>/found.json``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from step_pieces import (
    Pieces,
    built_optimizer,
    distinct_rows,
    make_model,
    one_by_one,
    sharded_exchange,
    whole_steps,
    zipf_batches,
)
from wire import received_and_sent

from afm_ctr import distributed
from afm_ctr.distributed import World

BATCHES = 3


def prepare(task: dict[str, Any], ids: int, world: World) -> dict[str, Any]:
    """Steps and exchanges of each requested form, run once, and the rows that the batches touch."""
    shape = task["slots"], ids, task["k"], task["t"]
    if set(task["forms"]) != {"sharded"}:
        model = make_model(*shape)
        optimizer = built_optimizer(model)
    batches = zipf_batches(task["slots"], ids, task["batch"], BATCHES, seed=1 + world.rank)
    calls: dict[str, Any] = {}
    for form in task["forms"]:
        if form == "sharded":
            shared = make_model(*shape, shard_over=world)
            exchange = sharded_exchange(shared, batches)
            pieces = Pieces(shared, built_optimizer(shared), world, form)
        else:
            pieces = Pieces(model, optimizer, world, form)
            exchange = one_by_one(pieces, model, batches)["exchange"]
        calls[form] = {"whole": whole_steps(pieces, batches), "exchange": exchange}
    touched = int(np.median([distinct_rows(batch) for batch in batches]))
    return {"calls": calls, "facts": {"touched": touched, "read": task["batch"] * task["slots"]}}


def measured(call: Any, steps: int, world: World) -> dict[str, float]:
    """Seconds per step on this rank, and megabytes per step that its interface sent and received."""
    world.barrier()
    before, start = received_and_sent(), time.perf_counter()
    for _ in range(steps):
        call()
    taken, after = time.perf_counter() - start, received_and_sent()
    received, sent = ((b - a) / steps / 1e6 for a, b in zip(before, after, strict=True))
    return {"seconds": taken / steps, "received": received, "sent": sent}


def ask(folder: Path, number: int, link: int) -> None:
    (folder / f"want-{number}-{link}").touch()
    deadline = time.monotonic() + 60
    while not (folder / f"have-{number}").exists():
        if time.monotonic() > deadline:
            sys.exit("benchmark: nobody shapes the links")
        time.sleep(0.02)


def main() -> None:
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    world = distributed.init()
    prepared = {ids: prepare(task, ids, world) for ids in task["ids"]}
    found: list[dict[str, Any]] = []
    number = 0
    for turn in range(task["rounds"]):
        for link in range(task["links"]):
            number += 1
            if world.is_chief:
                ask(folder, number, link)
            world.barrier()
            for ids, ready in prepared.items():
                for form, calls in ready["calls"].items():
                    for kind, call in calls.items():
                        mine = measured(call, task["steps"], world)
                        key = {"round": turn, "link": link, "ids": ids, "form": form, "kind": kind}
                        ranks = world.allgather_object(mine)
                        found.append(key | {name: float(np.mean([rank[name] for rank in ranks])) for name in mine})
    if world.is_chief:
        facts = {str(ids): ready["facts"] for ids, ready in prepared.items()}
        (folder / "found.json").write_text(json.dumps({"found": found, "facts": facts}))
    world.barrier()


if __name__ == "__main__":
    main()
