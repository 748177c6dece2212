"""``train_ranks.py DATA RUNS``: train with each optimizer and report what each rank saw and holds."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path

import tensorflow as tf

from afm_ctr import distributed, optimizers
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.training import TrainConfig, evaluate, train
from afm_ctr.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
report = importlib.import_module("launch").report

data, runs = Path(sys.argv[1]), Path(sys.argv[2])
world = distributed.init()
seen: Counter[str] = Counter()
sums: dict[str, int] = {}
train_step, fit, dataset = CTRModel.train_step, Trainer.fit, Reader.dataset


def with_keys(self, epoch, start_step=0, columns=()):  # type: ignore[no-untyped-def]
    return dataset(self, epoch, start_step, {*columns, "key"})


def note(keys, weights):  # type: ignore[no-untyped-def]
    seen.update(key.decode() for key, weight in zip(keys.tolist(), weights.tolist(), strict=True) if weight > 0)
    return tf.constant(0, tf.int64).numpy()


def noting_step(self, batch):  # type: ignore[no-untyped-def]
    tf.numpy_function(note, [batch["key"], batch["weight"]], tf.int64)
    return train_step(self, batch)


def summing_fit(self: Trainer) -> None:
    fit(self)
    state = distributed.training_state(self.network)
    sums.clear()
    sums.update({name: distributed.checksum(variable) for name, variable in state.items()})


Reader.dataset = with_keys  # type: ignore[method-assign]
CTRModel.train_step = noting_step  # type: ignore[method-assign]
Trainer.fit = summing_fit  # type: ignore[method-assign]
findings = {}
for name in optimizers.names():
    seen.clear()
    config = TrainConfig.load(runs / f"{name}.yaml")
    summary = train(data, runs / name, config, world, progress="none")
    findings[name] = {
        "seen": dict(seen),
        "sums": dict(sums),
        "steps": summary.steps,
        "resumed_from": summary.resumed_from,
        "best": summary.best,
        "test": evaluate(data, "test", runs / name, world),
    }
try:  # a mistake that only rank 0 can see is every rank's
    train(data, runs / "sgd", TrainConfig.load(runs / "sgd.yaml"), world, resume="never", progress="none")
except UserError as error:
    findings["refused"] = str(error)
report(world.rank, findings)
