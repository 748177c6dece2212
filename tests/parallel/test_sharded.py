"""Two and three ranks with a table spread over them do what one process with the whole table does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld
from afm_ctr.explain import explain
from afm_ctr.export import export_model
from afm_ctr.prediction import predict
from afm_ctr.records import Reader
from afm_ctr.training import TrainConfig, evaluate, train
from tests import prepared
from tests.parallel.launch import JOBS, horovodrun, needs_horovod

BLOCKS, HALF = {"largest_table_mb": 0}, {"float16_tables": True}
EXPORTS: dict[str, dict[str, Any]] = {"whole": {}, "in blocks": BLOCKS, "half": HALF, "half in blocks": BLOCKS | HALF}
STEPS, CHAIN, CONTINUED = 20, {3: 11, 2: 16}, 5  # the chain's sessions end in the middle of an epoch of 4 steps


def config(*overrides: str) -> TrainConfig:
    model = "{name: afm, factors: 4, attention: 4, attention_dropout: 0.2, pooled_dropout: 0.2, attention_l2: 0.01}"
    settings = [f"model={model}", "batch_size=32", "row_l2=0.001", "epochs=9", "expiry={unseen_steps: 1}"]
    settings += ["optimizer={name: adam, learning_rate: 0.01}", "reduce_on_plateau={patience: 1, factor: 0.5}"]
    return TrainConfig.load(None, [*settings, "drift_check.every_steps=3", *overrides])


def contents(run: Path, step: int) -> dict[str, np.ndarray]:
    last = run / f"checkpoints/step-{step:09d}"
    with np.load(last / "dense.npz") as dense:
        found = {name: dense[name] for name in dense.files}
    return found | {path.name: np.load(path) for path in last.glob("tables/*/*.npy")}


def largest_difference(run: Path, other: Path, step: int) -> float:
    ours, theirs = contents(run, step), contents(other, step)
    assert ours.keys() == theirs.keys() and any(name.startswith("rows-") for name in ours)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours if ours[name].size)


def told_in_one_process(data: Path, run: Path, folder: Path, exports: list[str]) -> dict[str, np.ndarray]:
    """What the commands after a training say of its latest checkpoint."""
    predict(run, folder / "scores.jsonl", data=data, split="test", which="latest")
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    found = {name: np.array([line[name] for line in lines]) for name in ("label", "logit", "probability")}
    judged = evaluate(data, "test", run, SingleWorld(), which="latest")
    found |= {name: np.array(judged[name]) for name in ("rows", "auc", "group_auc", "log_loss")}
    pairs = sorted(explain(run, data, requests=1, which="latest").pairs, key=lambda pair: pair.fields)
    found |= {name: np.array([getattr(pair, name) for pair in pairs]) for name in ("effect", "attention", "present")}
    batch = Reader(data, "test", len(lines), shuffle=False).batch(0, 0)
    inputs = {name: tf.constant(batch[name]) for name in ("feature_ids", "feature_vals")}
    for how in exports:
        written = export_model(run, folder / how, which="latest", warmup="none", **EXPORTS[how])
        served = tf.saved_model.load(written.path).signatures
        found[how] = served["serving_default"](**inputs)["logit"].numpy()
        found[f"{how}, explain"] = served["explain"](**inputs)["attention"].numpy()
        assert written.streamed == ("in blocks" in how)
    np.testing.assert_allclose(found[exports[0]], found["logit"], rtol=0, atol=1e-6)
    return found


@needs_horovod
def test_sharded_ranks_equal_one_process(tmp_path: Path) -> None:
    """A run is begun by one process, goes on sharded over three ranks and over two, and ends in one process; another
    continues a run, with rows that expire."""
    data = prepared.write(tmp_path / "data", {"train": 100, "valid": 50, "test": 31})
    ids = np.random.default_rng(4).integers(0, 3000, [6144, prepared.FIELDS])
    wide = {"feature_ids": 1 + ids + 3000 * np.arange(prepared.FIELDS)}
    wide["feature_vals"] = np.ones(ids.shape, np.float32)  # type: ignore[assignment]
    prepared.write(tmp_path / "wide", {"train": len(ids)}, prepared.schema(3000), **wide)
    alone, chain, whole = SingleWorld(), tmp_path / "chain", "table.placement=replicated"
    shared = max(CHAIN.values())  # the last step that ranks share
    train(data, tmp_path / "alone", config(f"max_steps={shared}"), alone, progress="none")
    expected = told_in_one_process(data, tmp_path / "alone", tmp_path / "told-alone", ["whole"])
    train(data, tmp_path / "alone", config(f"max_steps={STEPS}"), alone, progress="none")
    train(data, chain, config(whole, "max_steps=6"), alone, progress="none")
    done = 6
    for ranks, until in CHAIN.items():
        folder = tmp_path / f"{ranks}"
        folder.mkdir()
        placement = ["table.placement=sharded"] if ranks == 2 else ["table={placement: auto, memory_gb: 0.00001}"]
        sharded = config(*placement, f"max_steps={until}")
        (folder / "train.yaml").write_text(sharded.to_yaml())
        job = horovodrun(ranks, [JOBS / "sharded.py", data, tmp_path, CONTINUED], folder)
        assert job.code == 0, job.output[-4000:]
        assert sorted(job.reports) == list(range(ranks))
        judged = evaluate(data, "test", chain, alone, which="latest")  # in one process, of the ranks' checkpoint
        for findings in job.reports.values():
            assert findings["size"] == ranks
            assert (findings["trained"]["steps"], findings["trained"]["resumed_from"]) == (until, done)
            assert findings["test"]["rows"] == judged["rows"] == 31
            assert findings["test"]["auc"] == pytest.approx(judged["auc"], rel=1e-9)
            assert findings["test"]["log_loss"] == pytest.approx(judged["log_loss"], rel=1e-6)
        for form, planned in job.reports[0]["planned"].items():
            measured = max(findings["sent"][form] for findings in job.reports.values())
            assert measured == pytest.approx(planned, rel=0.05), form
        done, found = until, job.reports[0]["steps"]
        assert len(found) == (2 * len(optimizers.names()) if ranks == 3 else 4)
        for name, difference in found.items():
            assert difference <= 1e-5, (name, difference)
        manifest = json.loads((chain / f"checkpoints/step-{until:09d}/checkpoint.json").read_text())
        assert manifest["format_version"] == 3
        assert {entry["order"] for entry in manifest["tables"]["ids"].values()} == {"mixed"}
        assert len(manifest["tables"]["ids"]["vectors.momentum"]["files"]) == ranks
        (exchange,) = json.loads((chain / "run.json").read_text())["exchange"]
        assert exchange["form"] == "sharded" and exchange["sharded_bytes"] == exchange["touched"] * (8 + 2 * 5 * 4)
        if until == shared:
            told = told_in_one_process(data, chain, tmp_path / "told", ["in blocks", "half", "half in blocks"])
            np.testing.assert_allclose(told["half in blocks"], told["half"], rtol=0, atol=1e-6)
            for name, figures in expected.items():
                ours = told[name.replace("whole", "in blocks")]
                np.testing.assert_allclose(ours, figures, rtol=0, atol=1e-5, err_msg=name)
        print(f"{ranks} ranks: {job.seconds:.0f} s, largest difference {max(found.values()):.1e}")
    train(data, chain, config(whole, f"max_steps={STEPS}"), alone, progress="none")
    assert largest_difference(chain, tmp_path / "alone", STEPS) <= 1e-5
    # A run that continues the other, with rows that expire.
    start = tmp_path / "alone"
    train(data, tmp_path / "more", config(f"max_steps={CONTINUED}"), alone, from_checkpoint=start, progress="none")
    again = tmp_path / "more-sharded"
    (said,) = {job.reports[rank]["expired"] for rank in job.reports}
    assert said.startswith("expiry: ") and not said.startswith("expiry: 0 of")
    train(data, again, config(whole, f"max_steps={CONTINUED + 1}"), alone, progress="none")
    train(data, tmp_path / "more", config(f"max_steps={CONTINUED + 1}"), alone, progress="none")
    assert largest_difference(again, tmp_path / "more", CONTINUED + 1) <= 1e-5
