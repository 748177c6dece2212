"""``elastic_train.py EVENTS STEPS FOLDER train …``: the command ``afm-ctr train``, and events after steps.

An event is ``none``, ``kill-R`` (rank R kills itself; ``kill-R-S``: both do), ``add`` (a host appears in
FOLDER/hosts) or ``remove-R`` (that of rank R disappears); of a change of hosts rank 0 waits to hear. Each process
leaves in FOLDER what rows it trained in which step, as rank of how many, and what it held in the end.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import tensorflow as tf

from afm_ctr import distributed
from afm_ctr.cli.main import main
from afm_ctr.distributed import rendezvous
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.training.trainer import ElasticTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
ALIASES = importlib.import_module("launch").ALIASES

events = dict(zip(map(int, sys.argv[2].split(",")), sys.argv[1].split(","), strict=True))
folder = Path(sys.argv[3])
sys.argv[1:] = sys.argv[4:]
train_step, step_done, fit = CTRModel.train_step, ElasticTrainer.step_done, ElasticTrainer.fit
dataset = Reader.dataset
told = threading.Event()
hear = distributed.ElasticState.on_hosts_updated
held: dict[str, Any] = {}
removed = False
trace = (folder / f"trace-{os.getpid()}.jsonl").open("w")


def note(rows, keys, weights):  # type: ignore[no-untyped-def]
    world = distributed.init()
    real = weights > 0
    print(
        json.dumps(
            {
                "step": int(rows[0]) // BATCH,
                "rank": world.rank,
                "size": world.size,
                "rows": rows[real].tolist(),
                "keys": [key.decode() for key in keys[real].tolist()],
            }
        ),
        file=trace,
        flush=True,
    )
    return tf.constant(0, tf.int64).numpy()


def with_keys(self, epoch, start_step=0, columns=()):  # type: ignore[no-untyped-def]
    return dataset(self, epoch, start_step, {*columns, "key"})


def noting_step(self, batch):  # type: ignore[no-untyped-def]
    tf.numpy_function(note, [batch["row"], batch["key"], batch["weight"]], tf.int64)
    return train_step(self, batch)


def hear_of_it(self: distributed.ElasticState, *news: Any) -> None:
    hear(self, *news)
    told.set()


class Noted(distributed.RankRemoved):
    def __init__(self) -> None:
        global removed
        removed = True
        super().__init__()


def change_hosts(hosts: list[str]) -> None:
    aside = folder / "hosts.new"
    aside.write_text("".join(f"{host}\n" for host in hosts))
    aside.rename(folder / "hosts")
    assert told.wait(120), "the launcher did not tell of the change of hosts"


def eventful_step(self: ElasticTrainer) -> None:
    kind, *ranks = events.get(self.position.step, "none").split("-")
    happened = folder / f"happened-{kind}"
    if (
        kind == "kill"
        and str(self.world.rank) in ranks
        and not (mine := folder / f"killed-{self.world.rank}").exists()
    ):
        mine.touch()
        happened.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if kind != "none" and not happened.exists():
        hosts = (folder / "hosts").read_text().split()
        addressed = self.world.allgather_object(f"{os.environ['HOROVOD_HOSTNAME']}:1")
        if kind in ("add", "remove") and self.world.is_chief:
            happened.touch()
            if kind == "add":
                change_hosts([*hosts, next(host for host in ALIASES if host not in hosts)])
            else:
                change_hosts([host for host in hosts if host != addressed[int(ranks[0])]])
    step_done(self)


def summing_fit(self: ElasticTrainer) -> None:
    fit(self)
    state = distributed.training_state(self.network)
    held.update({name: distributed.checksum(variable) for name, variable in state.items()})


rendezvous.RankRemoved = Noted  # type: ignore[misc]
BATCH = int(os.environ["BATCH"])
Reader.dataset = with_keys  # type: ignore[method-assign]
CTRModel.train_step = noting_step  # type: ignore[method-assign]
ElasticTrainer.step_done = eventful_step  # type: ignore[method-assign]
ElasticTrainer.fit = summing_fit  # type: ignore[method-assign]
distributed.ElasticState.on_hosts_updated = hear_of_it  # type: ignore[method-assign]
ended = os._exit


def tell_end(code: int) -> None:
    world = distributed.init()
    findings = {"code": code, "removed": removed, "rank": world.rank, "size": world.size, "held": held}
    (folder / f"end-{os.getpid()}.json").write_text(json.dumps(findings))
    ended(code)


os._exit = tell_end  # type: ignore[assignment]
main()
