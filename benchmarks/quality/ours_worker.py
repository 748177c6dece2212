"""Trains one of our models for ``run.py`` by :func:`afm_ctr.training.train`, as ``afm-ctr train`` does.

It reads one JSON object from standard input: ``config`` (a :class:`~afm_ctr.training.TrainConfig` but for its seed),
``data`` (the prepared data set), ``rows`` (a file a split, of the same rows), ``threads``, ``keep`` (whether trained
models stay) and ``runs``, a seed and a folder each, and perhaps the folder of the run whose table and bias it begins
with. A run that was interrupted resumes from its last checkpoint.
Every split that has no ``scores-<split>.npz`` in a run's folder is scored with the best checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.pop(0)  # this folder, whose files are no modules of anybody

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.distributed import SingleWorld
from afm_ctr.training import TrainConfig, load_model, loop, train
from afm_ctr.training.model_io import make_scorer

SCORING_BATCH = 4096


def score(model: Any, rows: str) -> np.ndarray:
    """Logits of all rows, float32 [n]."""
    with np.load(rows) as stored:
        ids, vals = stored["ids"], stored["vals"]
    scorer = make_scorer(model, SCORING_BATCH)
    found = []
    for first in range(0, len(ids), SCORING_BATCH):
        part = slice(first, first + SCORING_BATCH)
        missing = SCORING_BATCH - len(ids[part])
        fill = ((0, missing), (0, 0))
        logits, _ = scorer(tf.constant(np.pad(ids[part], fill)), tf.constant(np.pad(vals[part], fill)))
        found.append(logits.numpy()[: SCORING_BATCH - missing])
    return np.concatenate(found)


def beginning_with(other: str | None) -> Any:
    """Within it, a new model has the table and the bias of that run's best checkpoint; None changes nothing."""
    if other is None:
        return contextlib.nullcontext()
    begun = loop.build_model

    def build(*arguments: Any, **options: Any) -> Any:
        model, (known, _, _) = begun(*arguments, **options), load_model(Path(other) / "model")
        for name, column in model.table.columns.items():
            column.value.assign(known.table.columns[name].value)
        model.bias.assign(known.bias)
        return model

    return mock.patch.object(loop, "build_model", build)


def run(task: dict[str, Any], seed: int, folder: Path, other: str | None) -> None:
    config = TrainConfig.parse({**task["config"], "seed": seed}, task["name"])
    folder.mkdir(parents=True, exist_ok=True)
    done, model_dir = folder / "run.json", folder / "model"
    if not done.exists():
        with beginning_with(other):
            summary = train(task["data"], model_dir, config, SingleWorld(), progress="none")
        history = [json.loads(line) for line in (model_dir / "history.jsonl").read_text().splitlines()]
        best = summary.epochs if summary.best is None else summary.best["epoch"] + 1
        found = {"epochs": summary.epochs, "best_epoch": best, "seconds": summary.seconds, "history": history}
        found["versions"] = f"afm-ctr {version('afm-ctr')}, tensorflow {tf.__version__}"
        temporary = folder / ".tmp-run.json"
        temporary.write_text(json.dumps(found))
        temporary.replace(done)
    missing = [split for split in task["score"] if not (folder / f"scores-{split}.npz").exists()]
    if missing:
        model, _, _ = load_model(model_dir)
        for split in missing:
            temporary = folder / f".tmp-scores-{split}.npz"
            np.savez(temporary, logits=score(model, task["rows"][split]))
            temporary.replace(folder / f"scores-{split}.npz")
    if not task["keep"]:
        shutil.rmtree(model_dir, ignore_errors=True)
    keras.backend.clear_session()


def main() -> None:
    task = json.load(sys.stdin)
    runpy.run_path(str(Path(__file__).with_name("variants.py")))  # they enter the registry
    tf.config.threading.set_intra_op_parallelism_threads(task["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(2)
    for one in task["runs"]:
        run(task, one["seed"], Path(one["folder"]), one["begin_with"])


if __name__ == "__main__":
    main()
