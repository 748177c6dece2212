"""Negatives thinned by prepare: what is trained on them scores the log as it was, by one correction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from afm_ctr.distributed import SingleWorld
from afm_ctr.errors import UserError
from afm_ctr.export import export_model
from afm_ctr.prediction import predict_records
from afm_ctr.records import Manifest
from afm_ctr.schema import FeatureSchema
from afm_ctr.training import TrainConfig, evaluate, load_model, train
from beam_jobs import PrepareOptions, prepare

RATE, ROWS = 0.125, 12_000
WORLD = SingleWorld()
SETTINGS = [
    "model={name: fm, factors: 2}",
    "batch_size=64",
    "optimizer={name: adam, learning_rate: 0.02}",
    "epochs=3",
]


def spec(correct: str) -> FeatureSchema:
    return FeatureSchema.model_validate(
        {
            "name": "thin",
            "format": {"kind": "delimited", "header": False, "columns": ["click", "site"]},
            "label": {"column": "click"},
            "negative_sampling": {"rate": RATE, "correct": correct, "apply": "here"},
            "fields": [{"name": "site", "kind": "categorical", "encoding": {"kind": "ids", "size": 4}}],
        }
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sites whose clicks differ."""
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rng = np.random.default_rng(5)
    sites = rng.integers(0, 4, ROWS)
    clicks = rng.random(ROWS) < np.array([0.02, 0.06, 0.12, 0.25])[sites]
    path.write_text("".join(f"{int(click)},{site}\n" for click, site in zip(clicks, sites, strict=True)))
    return path


def _check_label_sums(data: Path, rows: dict[str, int], correct: str) -> None:
    """Those of the thinned rows, with the weights that undo it; or without, and then the offset does."""
    sums = [shard.label_sums for shard in Manifest.load(data).shards if shard.split == "train"]
    weight, positives = (sum(column) for column in zip(*(pair for pair in sums if pair is not None), strict=True))
    negatives = rows["rows"] - rows["positives"]
    assert positives == rows["positives"]
    assert weight == positives + negatives / (RATE if correct == "weights" else 1.0)


@pytest.mark.parametrize("correct", ["logit", "weights"])
def test_probabilities_are_those_of_the_whole_log(correct: str, log: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    options: dict[str, Any] = {"schema": spec(correct), "inputs": [str(log)], "output": str(data)}
    summary = prepare(PrepareOptions(**options, split="tail:0.25"))
    train_rows, test_rows = summary.splits["train"], summary.splits["test"]
    assert test_rows["rows"] == ROWS // 4
    kept = (train_rows["rows"] - train_rows["positives"]) / (summary.sampled_out + train_rows["rows"])
    assert kept == pytest.approx(RATE * (1 - 0.1125), abs=0.015)
    _check_label_sums(data, train_rows, correct)
    train(data, run, TrainConfig.load(None, [*SETTINGS, "validation=null"]), WORLD, progress="none")
    found = evaluate(data, "test", run, WORLD)
    predict_records(run, data, "test", tmp_path / "scores.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    scores = np.array([row["probability"] for row in rows])
    # Once too few and the mean would be about 0.45; once too many, about 0.015.
    assert scores.mean() == pytest.approx(test_rows["positives"] / test_rows["rows"], abs=0.04)
    labels = np.array([row["label"] for row in rows])
    assert found["log_loss"] == pytest.approx(log_loss(labels, scores), rel=1e-4)
    assert found["constant_log_loss"] == pytest.approx(log_loss(labels, np.full(len(labels), labels.mean())))
    assert found["normalised_entropy"] < 1
    logits = np.array([row["logit"] for row in rows])
    model, _, _ = load_model(run)
    ids = np.arange(1, 5)[:, None]
    bare = model({"feature_ids": ids, "feature_vals": np.ones((4, 1), np.float32)}).numpy()
    offset = np.log(RATE) if correct == "logit" else 0.0
    np.testing.assert_allclose(np.unique(logits.round(4)), np.unique((bare + offset).round(4)), atol=2e-4)
    assert export_model(run, tmp_path / "served").logit_offset == pytest.approx(offset)


def test_another_split_was_not_thinned(log: Path, tmp_path: Path) -> None:
    prepare(
        PrepareOptions(schema=spec("logit"), inputs=[str(log)], output=str(tmp_path / "data"), split="tail:0.1/0.1")
    )
    settings = TrainConfig.load(None, [*SETTINGS, "validation=null", "train_split=valid"])
    with pytest.raises(UserError, match=r"train_split: valid: .* thins only the split 'train'"):
        train(tmp_path / "data", tmp_path / "run", settings, WORLD, progress="none")
