"""Day after day: a run that continues another one, under a schema that has grown, and forgets what is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_ctr.distributed import SingleWorld
from afm_ctr.errors import UserError
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training import TrainConfig, build_model, load_model, train
from tests import prepared

BATCH, ROWS = 16, 100
SETTINGS = [
    "model={name: fm, factors: 4}",
    f"batch_size={BATCH}",
    "optimizer={name: adam, learning_rate: 0.05}",
    "epochs=1",
    "expiry={unseen_runs: 1}",
    "checkpoint.every_steps=3",
]
GROWN = prepared.IDS + 3


def config(*overrides: str) -> TrainConfig:
    return TrainConfig.load(None, [*SETTINGS, *overrides])


def go(data: Path, run: Path, *overrides: str, **options: Any) -> Any:
    return train(data, run, config(*overrides), SingleWorld(), progress="lines", **options)


def day(folder: Path, local: list[int], resolved: ResolvedSchema | None = None, splits: Any = None) -> Path:
    """A data set whose fields take these of their values, the first of them once."""
    ids = np.random.default_rng(len(local)).choice(local[1:], [ROWS, prepared.FIELDS])
    ids[0] = local[0]
    rows = 1 + ids + prepared.IDS * np.arange(prepared.FIELDS)
    if resolved is not None:  # the values beyond the first schema's have their rows behind all others
        late = 1 + prepared.IDS * prepared.FIELDS + (ids - prepared.IDS) + 3 * np.arange(prepared.FIELDS)
        rows = np.where(ids < prepared.IDS, rows, late)
    values = np.ones([ROWS, prepared.FIELDS], np.float32)
    return prepared.write(
        folder, splits or {"train": ROWS, "valid": ROWS}, resolved, feature_ids=rows, feature_vals=values
    )


def table(run: Path) -> dict[str, np.ndarray]:
    """The columns of the last checkpoint's table, and their slots."""
    last = max((run / "checkpoints").glob("step-*"))
    return {path.stem.split(".", 1)[1]: np.load(path) for path in last.glob("tables/ids/*.npy")}


def local_rows(local: list[int]) -> np.ndarray:
    """The table's rows of these values, those of the first schema."""
    return (1 + np.array(local)[:, None] + prepared.IDS * np.arange(prepared.FIELDS)).ravel()


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResolvedSchema, list[Path]]:
    """Three data sets; the second one's schema has grown, and the third one has that too."""
    folder = tmp_path_factory.mktemp("days")
    first = day(folder / "1", [0, 1, 2, 3, 4, 5])
    grown = prepared.schema(ids=GROWN, parent=ResolvedSchema.load(first))
    return grown, [first, day(folder / "2", [12, 1, 2, 3], grown), day(folder / "3", [5, 1], grown)]


def test_three_days(days: tuple[ResolvedSchema, list[Path]], tmp_path: Path, capfd: Any) -> None:
    grown, (first, second, third) = days
    runs = [tmp_path / name for name in "123"]
    go(first, runs[0], "shuffle=false")
    old = table(runs[0])
    # The first rows have ids that never come again: their last touch is the first step; an unknown row has none.
    assert (old["last_seen"][local_rows([0])] == 1).all()
    assert old["last_seen"][0] == 0 and (old["last_seen"][local_rows([6, 11])] == 0).all()
    assert old["last_seen"].max() == 7
    capfd.readouterr()
    summary = go(second, runs[1], "optimizer.learning_rate=0.01", from_checkpoint=runs[0])
    said = capfd.readouterr().err
    assert f"(step 7 of its optimizer), {3 * prepared.FIELDS} new rows" in said
    assert "expiry: 0 of 24 known rows, unseen for 1 runs, went back" in said
    assert (summary.resumed_from, summary.steps) == (None, 7)
    between = table(runs[1])
    assert len(between["vectors"]) == grown.feature_size
    untouched = local_rows([0, 4, 5])
    for name, values in old.items():  # what today does not touch is as yesterday left it
        np.testing.assert_array_equal(between[name][untouched], values[untouched], err_msg=name)
    assert (between["last_seen"][local_rows([2])] > 7).all()
    started = json.loads((runs[1] / "run.json").read_text())["from_checkpoint"]
    assert started["path"] == str(runs[0]) and started["checkpoint"] == "step-000000007"
    model, _, _ = load_model(runs[1], "latest")
    assert float(json.loads((runs[1] / "history.jsonl").read_text())["learning_rate"]) == pytest.approx(0.01)
    # Today's run is not yesterday's from its start on, nor one that began from nothing.
    touched = local_rows([1, 2, 3])
    assert not np.array_equal(between["vectors"][touched], old["vectors"][touched])
    go(third, runs[2], "shuffle=false", from_checkpoint=runs[1] / "checkpoints/step-000000007")
    assert "expiry: 12 of 28 known rows" in capfd.readouterr().err
    last = table(runs[2])
    fresh = build_model(grown, config()).table
    gone = local_rows([0, 4])  # 5 went as well, and has come again
    np.testing.assert_array_equal(last["vectors"][gone], fresh.initial_rows("vectors", 0, 49)[gone])
    for name in ("linear", "vectors.momentum", "vectors.velocity", "linear.velocity", "last_seen"):
        assert not last[name][gone].any(), name
    kept = local_rows([2, 3])
    np.testing.assert_array_equal(last["vectors"][kept], between["vectors"][kept])
    assert (last["last_seen"][local_rows([5])] == 15).all()  # its first step is the 15th of the chain
    np.testing.assert_array_equal(np.array(model.table.columns["vectors"]), between["vectors"])


def test_stopped_and_taken_up(days: tuple[ResolvedSchema, list[Path]], tmp_path: Path) -> None:
    first, second = days[1][:2]
    go(first, tmp_path / "1")
    go(second, tmp_path / "whole", from_checkpoint=tmp_path / "1")
    run = tmp_path / "run"
    go(second, run, "max_steps=4", from_checkpoint=tmp_path / "1")
    other = tmp_path / "other"
    go(first, other)
    with pytest.raises(UserError, match=r"was started with --from-checkpoint .*1, not .*other"):
        go(second, run, from_checkpoint=other)
    with pytest.raises(UserError, match=r"was started without one and has trained since"):
        go(first, other, from_checkpoint=tmp_path / "1")
    assert go(second, run, from_checkpoint=tmp_path / "1").resumed_from == 4
    ours, theirs = table(run), table(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    assert go(second, run).ended == "epochs"  # what it began from need not be said again


def test_what_cannot_be_continued(days: tuple[ResolvedSchema, list[Path]], tmp_path: Path, capfd: Any) -> None:
    first, second = days[1][:2]
    go(first, tmp_path / "1", "expiry=null", "max_steps=3")
    for origin, overrides, said in [
        ("nothing", [], "neither a run's folder"),
        ("1", ["model.factors=5"], "trained with another model.factors: 4 -> 5"),
        ("1", ["optimizer.name=sgd"], "another optimizer.name: 'adam' -> 'sgd'"),
        ("1", ["optimizer.average=0.9"], "another optimizer.average: None -> 0.9"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            go(second, tmp_path / "2", *overrides, from_checkpoint=tmp_path / origin)
        assert "\n" not in str(caught.value)
    foreign = prepared.write(tmp_path / "foreign", resolved=prepared.schema(name="other"))
    with pytest.raises(UserError, match="foreign schema"):
        go(foreign, tmp_path / "2", from_checkpoint=tmp_path / "1")
    capfd.readouterr()
    go(second, tmp_path / "2", "max_steps=1", from_checkpoint=tmp_path / "1")
    assert "kept no marks, so all of its rows count as just seen" in capfd.readouterr().err
