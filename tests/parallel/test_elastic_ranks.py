"""Ranks are lost, added and removed while ``afm-ctr train`` runs, and the run ends as an undisturbed one."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.distributed import SingleWorld
from afm_ctr.records import Reader
from afm_ctr.row_shards import mix
from afm_ctr.training import TrainConfig, train
from afm_ctr.training.checkpoint import Checkpoint
from tests import prepared
from tests.parallel.launch import ALIASES, JOBS, Job, elastic_horovodrun, needs_horovod

ROWS, BATCH, EPOCHS, COMMIT = 300, 32, 3, 4
STEPS_PER_EPOCH = -(-ROWS // BATCH)
STEPS = EPOCHS * STEPS_PER_EPOCH
AT = STEPS_PER_EPOCH + 7  # in the middle of the second epoch, three steps after a commit
TWICE = AT - 6, AT + 5  # of two events, in the second and the third epoch
AGAIN = f"{AT - 6},{2 * STEPS_PER_EPOCH + 1},{2 * STEPS_PER_EPOCH + 3}"  # the last before the next commit
SETTINGS = [
    "model={name: afm, factors: 4, attention: 4, attention_dropout: 0.2, pooled_dropout: 0.2, attention_l2: 0.01}",
    f"batch_size={BATCH}",
    f"epochs={EPOCHS}",
    "row_l2=0.001",
    f"optimizer={{name: adam, learning_rate: 0.01, warmup_steps: {AT + 2}}}",
    "early_stopping={patience: 5}",
    "reduce_on_plateau={patience: 1, factor: 0.5}",
    "checkpoint={every_steps: 5, keep: 2}",
    f"elastic.commit_steps={COMMIT}",
    "drift_check.every_steps=3",
    "watchdog.timeout_seconds=120",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), {"train": ROWS, "valid": 50, "test": 31})


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(data, folder, TrainConfig.load(None, SETTINGS), SingleWorld(), progress="none")
    return folder


def run(events: str, hosts: int, data: Path, folder: Path, at: str, placement: str = "replicated") -> Job:
    settings = [*SETTINGS, f"table.placement={placement}"]
    (folder / "train.yaml").write_text(TrainConfig.load(None, settings).to_yaml())
    command = ["train", "--data", data, "--model-dir", folder / "run", "--config", folder / "train.yaml", "--json"]
    line: list[str | Path] = [JOBS / "elastic_train.py", events, at, folder, *command]
    return elastic_horovodrun(ALIASES[:hosts], line, folder, BATCH=str(BATCH))


def attempts(folder: Path) -> dict[int, dict[int, list[dict[str, Any]]]]:
    """What was trained by step and number of ranks: a list of what each rank took."""
    found: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in folder.glob("trace-*.jsonl"):
        for line in path.read_text().splitlines():
            one = json.loads(line)
            found[one["step"]][one["size"]].append(one)
    return found


def contents(run: Path) -> dict[str, np.ndarray]:
    """All that the last checkpoint holds; tables by id."""
    last = Checkpoint.open(run / f"checkpoints/step-{STEPS:09d}")
    with np.load(last.folder / "dense.npz") as dense:
        found = {name: dense[name] for name in dense.files}
    for key, stored in last.manifest["tables"]["ids"].items():
        rows = np.concatenate([np.load(last.folder / name) for _, _, name in stored["files"]])
        places = np.arange(stored["rows"])
        found[key] = rows[mix(places, stored["rows"]) if last.sharded else places]
    return found


def curve(run: Path, name: str) -> dict[int, float]:
    """A TensorBoard curve; what was written twice has the last value."""
    points: dict[int, float] = {}
    for path in sorted(run.glob("tensorboard/*tfevents*"), key=lambda path: path.stat().st_mtime):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == name:
                    points[event.step] = float(tf.make_ndarray(value.tensor))
    return points


@needs_horovod
@pytest.mark.parametrize(("events", "sizes"), [("kill-0,remove-1", [3, 2, 1]), ("add,kill-1", [2, 3, 2])])
def test_a_run_survives(events: str, sizes: list[int], data: Path, undisturbed: Path, tmp_path: Path) -> None:
    job = run(events, sizes[0], data, tmp_path, ",".join(map(str, TWICE)))
    assert job.code == 0, job.output[-6000:]
    assert len(list(tmp_path.glob("happened-*"))) == 2
    # All processes have ended, each in its own way.
    ends = [json.loads(path.read_text()) for path in tmp_path.glob("end-*.json")]
    assert all(end["code"] == 0 for end in ends)
    for path in tmp_path.glob("trace-*.jsonl"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.stem.split("-")[1]), 0)
    stayed = [end for end in ends if not end["removed"]]
    assert sorted(end["rank"] for end in stayed) == list(range(sizes[-1])), ends
    assert len(ends) - len(stayed) == events.count("remove")
    # The ranks hold the same bits.
    assert len(stayed[0]["held"]) >= 9
    assert all(end["held"] == stayed[0]["held"] and end["size"] == sizes[-1] for end in stayed)
    # Every step was trained on the records of an undisturbed run, and few of them twice.
    trained = attempts(tmp_path)
    assert sorted(trained) == list(range(STEPS))
    whole = Reader(data, "train", BATCH)
    for step, by_size in trained.items():
        taken = next(by_size[size] for size in reversed(sizes) if size in by_size)
        where = divmod(step, STEPS_PER_EPOCH)
        real = whole.batch(*where)
        assert sorted(one["rank"] for one in taken) == list(range(taken[0]["size"]))
        rows = sorted((row, key) for one in taken for row, key in zip(one["rows"], one["keys"], strict=True))
        kept = real["weight"] > 0
        assert rows == [
            (int(row), key.decode()) for row, key in zip(real["row"][kept], real["key"][kept], strict=True)
        ]
    again = sorted(step for step, by_size in trained.items() if len(by_size) > 1)
    for number, (event, at) in enumerate(zip(events.split(","), TWICE, strict=True)):
        begun = TWICE[number - 1] + COMMIT if number else -1  # when the ranks before were surely there
        resumed = min(step for step, by_size in trained.items() if sizes[number + 1] in by_size and step > begun)
        if event.startswith("kill"):
            assert at - COMMIT <= resumed <= at
            assert again and set(again) <= set(range(at - COMMIT, at + 1))  # and nothing else was done twice
        else:
            assert at <= resumed <= at + COMMIT
    # And it ends with the weights, the history and the best of one.
    ours, theirs = contents(tmp_path / "run"), contents(undisturbed)
    assert ours.keys() == theirs.keys()
    differences = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ours if ours[name].size}
    assert max(differences.values()) <= 1e-4, differences
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", undisturbed)
    ]
    assert [one["epoch"] for one in histories[0]] == list(range(EPOCHS))
    for one, other in zip(*histories, strict=True):
        for name in ("step", "loss", "learning_rate", "val_auc", "val_log_loss"):
            assert one[name] == pytest.approx(other[name], abs=1e-4), name
    best = [json.loads((folder / "checkpoints/best.json").read_text()) for folder in (tmp_path / "run", undisturbed)]
    assert best[0]["step"] == best[1]["step"]
    assert (tmp_path / f"run/checkpoints/step-{best[0]['step']:09d}").is_dir()
    assert sorted(curve(tmp_path / "run", "epoch/val_auc")) == sorted(curve(undisturbed, "epoch/val_auc"))
    sessions = json.loads((tmp_path / "run/run.json").read_text())["sessions"]
    assert [one["world_size"] for one in sessions] == sizes
    # Rank 0, whoever it is by then, says how it ended.
    said = [line.partition(">:")[2] for line in job.output.splitlines()]
    assert [json.loads(line)["steps"] for line in said if line.startswith("{")] == [STEPS]
    worst = max(differences.values())
    print(f"{events}: {job.seconds:.0f} s, did steps {again} again, largest difference {worst:.1e}")


@needs_horovod
@pytest.mark.parametrize(
    ("events", "at", "before", "sizes", "lost"),
    [("add,kill-1,kill-0", AGAIN, 2, [2, 3, 2, 1], False), ("kill-1-2", str(AT), 3, [3, 1], True)],
)
def test_a_sharded_run_survives(
    events: str, at: str, before: int, sizes: list[int], lost: bool, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Rows of a lost rank come back from another's memory; if those that held them are lost too, from the disk."""
    job = run(events, before, data, tmp_path, at, "sharded")
    assert job.code == 0, job.output[-6000:]
    ends = [json.loads(path.read_text()) for path in tmp_path.glob("end-*.json")]
    assert sorted(end["rank"] for end in ends) == list(range(sizes[-1])) and {end["code"] for end in ends} == {0}
    assert all(end["held"] == ends[0]["held"] and end["size"] == sizes[-1] for end in ends)
    assert ("are held by no other rank: back to the last checkpoint" in job.output) == lost
    sessions = json.loads((tmp_path / "run/run.json").read_text())["sessions"]
    assert [one["world_size"] for one in sessions] == sizes
    trained = attempts(tmp_path)
    assert sorted(trained) == list(range(STEPS))
    again = sorted(step for step, by_size in trained.items() if len(by_size) > 1)
    assert 0 < len(again) <= 1 + (AT % 5 if lost else COMMIT), again  # the step under way, and those since the last
    ours, theirs = contents(tmp_path / "run"), contents(undisturbed)
    assert ours.keys() == theirs.keys() and {"linear", "vectors", "vectors.momentum"} <= ours.keys()
    differences = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ours if ours[name].size}
    assert max(differences.values()) <= 1e-4, differences
    worst = max(differences.values())
    print(f"{events}: {job.seconds:.0f} s, did steps {again} again, largest difference {worst:.1e}")
