"""Two and three ranks train the model that one rank trains."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld
from afm_ctr.optimizers.average import Average
from afm_ctr.training import TrainConfig, evaluate, train
from tests import prepared
from tests.parallel.launch import JOBS, horovodrun, needs_horovod

ROWS, BATCH, STEPS, EPOCH = 100, 32, 20, 4  # the last batch of an epoch has 4 rows: none for the last ranks
RESUMED, RESUMED_AT = "adagrad", 6  # begun by one rank, in the middle of an epoch
AVERAGE = 0.9  # of the weights, where Adam trains
MODEL = "model={name: afm, factors: 4, attention: 4, attention_dropout: 0.2, pooled_dropout: 0.2, attention_l2: 0.01}"

FM = "model={name: fm, factors: 4}"
DEEP = (
    "model={name: deep_afm, factors: 4, attention: 4, hidden: [6, 5], read_vectors: true, attention_dropout: 0.2, "
    "pooled_dropout: 0.2, attention_l2: 0.01}"
)


def config(optimizer: str, *overrides: str) -> TrainConfig:
    rates = {"sgd": 0.1, "adagrad": 0.05, "adam": 0.01, "ftrl": 0.05, "rowwise_adagrad": 0.05}
    steering = ["reduce_on_plateau={patience: 1, factor: 0.5}", "drift_check.every_steps=7", f"max_steps={STEPS}"]
    average = f", average: {AVERAGE}" if optimizer == "adam" else ""
    how = [f"optimizer={{name: {optimizer}, learning_rate: {rates[optimizer]}{average}}}", "row_l2=0.001"]
    how += ["row_l2_per=step"]
    how += ["epochs=9"]
    how += ["expiry={unseen_runs: 1}"]  # so that the marks of the rows are compared as well
    model = {"sgd": DEEP, "rowwise_adagrad": FM}.get(optimizer, MODEL)
    return TrainConfig.load(None, [model, f"batch_size={BATCH}", *how, *steering, *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), {"train": ROWS, "valid": 50, "test": 31})


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one rank."""
    folder = tmp_path_factory.mktemp("alone")
    for optimizer in optimizers.names():
        train(data, folder / optimizer, config(optimizer), SingleWorld(), progress="none")
    return folder


def contents(run: Path) -> dict[str, np.ndarray]:
    last = run / f"checkpoints/step-{STEPS:09d}"
    with np.load(last / "dense.npz") as dense:
        found = {name: dense[name] for name in dense.files}
    found |= {path.name: np.load(path) for path in last.glob("tables/*/*.npy")}
    paths = json.loads((last / "checkpoint.json").read_text())["dense"]["optimizer"]
    averages = {f"optimizer/{number}" for number, path in enumerate(paths) if path.endswith("_average")}
    averages |= {name for name in found if name.endswith(".average.npy")}
    assert bool(averages) == ("adam" in run.name)
    return found | {name: found[name] * Average(AVERAGE).scale(STEPS) for name in averages}


def test_the_data_is_awkward_enough(data: Path) -> None:
    """Ids repeat within a rank's part and across the parts, and absent slots occur."""
    ids = prepared.rows_of("train", ROWS)["feature_ids"]
    parts = np.array_split(ids[:BATCH], 3)
    assert all(len(np.unique(part)) < part.size for part in parts)
    assert set(parts[0].ravel()) & set(parts[1].ravel()) & set(parts[2].ravel())
    assert (ids == 0).any()
    assert ROWS % BATCH < 3 * 2


@needs_horovod
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_as_one(ranks: int, data: Path, alone: Path, tmp_path: Path) -> None:
    forms = dict(zip(optimizers.names(), ["gather", "reduce"] * 3, strict=False))
    if ranks == 3:  # so that each optimizer has trained in both
        forms = {name: "reduce" if form == "gather" else "gather" for name, form in forms.items()}
    for optimizer, form in forms.items():
        (tmp_path / f"{optimizer}.yaml").write_text(config(optimizer, f"exchange={form}").to_yaml())
    begun = config(RESUMED, f"max_steps={RESUMED_AT}")
    train(data, tmp_path / RESUMED, begun, SingleWorld(), progress="none")
    job = horovodrun(ranks, [JOBS / "train_ranks.py", data, tmp_path], tmp_path, timeout=300)
    assert job.code == 0, job.output[-4000:]
    assert sorted(job.reports) == list(range(ranks))
    worst: dict[str, float] = {}
    for optimizer in optimizers.names():
        found: list[dict[str, Any]] = [job.reports[rank][optimizer] for rank in range(ranks)]
        # Ranks hold the same bits: weights, slots, seeds, counters.
        assert len(found[0]["sums"]) >= 9
        assert all(one["sums"] == found[0]["sums"] for one in found)
        assert all(one["steps"] == STEPS for one in found)
        (exchange,) = json.loads((tmp_path / optimizer / "run.json").read_text())["exchange"]
        assert (exchange["form"], exchange["rows"]) == (forms[optimizer], 1 + prepared.FIELDS * prepared.IDS)
        assert 0 < exchange["touched"] < exchange["rows"]
        # Every row once an epoch, whoever took it.
        assert found[0]["resumed_from"] == (RESUMED_AT if optimizer == RESUMED else None)
        seen = sum((Counter(one["seen"]) for one in found), Counter())
        if optimizer == RESUMED:
            assert sum(seen.values()) == STEPS // EPOCH * ROWS - (ROWS + 2 * BATCH)
        else:
            assert seen == {f"train-{row}": STEPS // EPOCH for row in range(ROWS)}
        # And what they end with is what one rank ends with.
        ours, theirs = contents(tmp_path / optimizer), contents(alone / optimizer)
        assert ours.keys() == theirs.keys()
        assert np.abs(ours[f"rows-0-{1 + prepared.FIELDS * prepared.IDS}.linear.npy"]).max() > 0.005  # it moved
        differences = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ours if ours[name].size}
        name = max(differences, key=lambda name: differences[name])
        worst[optimizer] = differences[name]
        assert differences[name] <= 1e-5, (optimizer, name, differences[name])
        judged = evaluate(data, "test", tmp_path / optimizer, SingleWorld())
        for one in found:
            assert one["test"]["rows"] == 31
            assert one["test"]["auc"] == pytest.approx(judged["auc"], rel=1e-9)
            assert one["test"]["log_loss"] == pytest.approx(judged["log_loss"], rel=1e-6)
            assert one["best"] == found[0]["best"]
    print(f"{ranks} ranks against one, largest difference of any variable or slot after {STEPS} steps: {worst}")
    refused = {job.reports[rank]["refused"] for rank in range(ranks)}
    assert len(refused) == 1
    assert "not empty" in refused.pop()
