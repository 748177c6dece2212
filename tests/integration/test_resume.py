"""A run that was stopped or killed at any step ends as the one that was not."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.distributed import SingleWorld
from afm_ctr.errors import Stopped, UserError
from afm_ctr.models import Interaction, InteractionInputs, register
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training import TrainConfig, evaluate, load_model, train
from afm_ctr.training.run_dir import RunDir
from afm_ctr.training.trainer import Trainer
from tests import prepared

AFM = "model={name: afm, factors: 4, attention: 4, attention_dropout: 0.2, pooled_dropout: 0.3, attention_l2: 0.01}"
SETTINGS = [AFM, "batch_size=16", "epochs=4", "row_l2=1e-3", "row_l2_per=step"]
SETTINGS += ["optimizer={name: adam, learning_rate: 0.05}"]
STEERING = [
    "early_stopping={patience: 3}",
    "reduce_on_plateau={patience: 1, factor: 0.5}",
    "optimizer.warmup_steps=9",
]
EVERY = "checkpoint={every_steps: 3, keep: 2}"
STEPS = 4 * 7


class WithKerasDropout(Interaction):
    """A model from outside: its dropout is Keras' own, whose seed generator moves at every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dropout = keras.layers.Dropout(0.5)
        self.dense = keras.layers.Dense(1)

    def call(self, inputs: InteractionInputs, training: bool = False, rows: tf.Tensor | None = None) -> tf.Tensor:
        pooled = self.dropout(tf.reduce_sum(inputs.vectors, axis=1), training=training)
        return tf.reduce_sum(inputs.linear, axis=1) + self.dense(pooled)[:, 0]


register("with_keras_dropout", WithKerasDropout)


def config(*overrides: str) -> TrainConfig:
    return TrainConfig.load(None, [*SETTINGS, *STEERING, EVERY, *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"))


def go(data: Path, run: Path, settings: TrainConfig, **options: Any) -> Any:
    return train(data, run, settings, SingleWorld(), progress="none", **options)


def contents(run: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint."""
    last = max((run / "checkpoints").glob("step-*"))
    with np.load(last / "dense.npz") as dense:
        found = {name: dense[name] for name in dense.files}
    return found | {path.name: np.load(path) for path in last.glob("tables/*/*.npy")}


def history(run: Path) -> list[dict[str, Any]]:
    epochs = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k not in ("seconds", "rows_per_second")} for one in epochs]


def assert_same_end(run: Path, other: Path) -> None:
    ours, theirs = contents(run), contents(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert history(run) == history(other)
    best = [json.loads((folder / "checkpoints/best.json").read_text()) for folder in (run, other)]
    assert best[0] == best[1]


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_killed_and_resumed(kills: int, data: Path, root: Path, tmp_path: Path) -> None:
    settings = config()
    whole = tmp_path / "whole"
    assert go(data, whole, settings).steps == STEPS
    run = tmp_path / "run"
    file = tmp_path / "train.yaml"
    file.write_text(settings.to_yaml())
    steps = sorted(random.Random(20).sample(range(4, STEPS - 3), kills))
    for number, step in enumerate(steps):
        how = ["write"] if number % 3 == 1 else []
        job = [sys.executable, root / "tests/integration/jobs/killed_run.py", data, run, file, step, *how]
        ended = subprocess.run([str(part) for part in job], cwd=root, capture_output=True, text=True, timeout=300)
        assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
        if how:  # in the thread that writes, while the training had gone on
            found = re.search(r"killed after step (\d+), while step (\d+) was written", ended.stdout)
            assert found and int(found[1]) > int(found[2]) >= step, ended.stdout
            assert list((run / "checkpoints").glob(".tmp-*"))
    summary = go(data, run, settings)
    assert summary.resumed_from is not None
    assert 0 < summary.resumed_from <= steps[-1]
    assert (summary.steps, summary.ended) == (STEPS, "epochs")
    assert_same_end(run, whole)
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert len(sessions) == kills + 1
    assert not list((run / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize(
    ("number", "steering"),
    [(signal.SIGTERM, []), (signal.SIGINT, ["reduce_on_plateau=null", "optimizer={warmup_steps: 3, decay: cosine}"])],
)
def test_told_to_stop(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, steering: list[str]
) -> None:
    settings = config("epochs=1", "checkpoint.every_steps=100", *steering)
    go(data, tmp_path / "whole", settings)
    run, before = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patch:
        counted = Trainer.on_train_batch_end

        def count(self: Trainer, batch: int, logs: Any = None) -> None:
            if self.position.step == 4:
                signal.raise_signal(number)
            counted(self, batch, logs)

        patch.setattr(Trainer, "on_train_batch_end", count)
        with pytest.raises(Stopped, match=f"stopped by {number.name} after step 5: the state is saved in") as stop:
            go(data, run, settings)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert go(data, run, settings).resumed_from == 5
    assert_same_end(run, tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["sgd, average: 0.9", "adagrad", "ftrl", "rowwise_adagrad"])
def test_stopped_in_the_middle_of_epochs(data: Path, tmp_path: Path, optimizer: str) -> None:
    settings = [
        f"optimizer={{name: {optimizer}, learning_rate: 0.05}}",
        "epochs=2",
        "model={name: with_keras_dropout}",
    ]
    go(data, tmp_path / "whole", config(*settings))
    for stop in (3, 4, 10):
        summary = go(data, tmp_path / "run", config(*settings, f"max_steps={stop}"))
        assert (summary.ended, summary.steps) == ("max_steps", stop)
    assert go(data, tmp_path / "run", config(*settings)).resumed_from == 10
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert go(data, tmp_path / "run", config(*settings)).ended == "epochs"  # and once more does nothing
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_epochs_may_grow_and_damage_costs_a_few_steps(data: Path, tmp_path: Path) -> None:
    go(data, tmp_path / "whole", config("epochs=3"))
    run = tmp_path / "run"
    go(data, run, config("epochs=2"))
    last = run / "checkpoints/step-000000014"
    (last / "dense.npz").write_bytes(b"damaged")
    summary = go(data, run, config("epochs=3"))
    assert summary.resumed_from == 12
    assert_same_end(run, tmp_path / "whole")


def test_what_a_run_does_not_go_on_with(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = config("epochs=1")
    go(data, run, config("epochs=1", "max_steps=5"))
    before = contents(run)
    with pytest.raises(UserError, match=r"--resume never: .*not empty"):
        go(data, run, settings, resume="never")
    with pytest.raises(UserError, match=r"another config \(optimizer.learning_rate: 0.05 -> 0.1\)"):
        go(data, run, config("epochs=1", "optimizer.learning_rate=0.1"))
    foreign = prepared.schema(name="other")
    with pytest.raises(UserError, match=f"foreign schema: the data has {foreign.id}"):
        go(prepared.write(tmp_path / "foreign", resolved=foreign), run, settings)
    with pytest.raises(UserError, match="the data changed in the middle of epoch 1"):
        go(prepared.write(tmp_path / "longer", {"train": 120, "valid": 50}), run, settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds no run"):
        go(data, tmp_path / "mine", settings)
    for name, value in contents(run).items():
        np.testing.assert_array_equal(value, before[name])


def test_one_process_at_a_time(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunDir(run).lock(), pytest.raises(UserError, match="another process is training in"):
        go(data, run, config("epochs=1"))
    assert go(data, run, config("epochs=1")).steps == 7


def test_a_grown_schema_is_taken_up(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(data, run, config("epochs=1"))
    old = ResolvedSchema.load(data)
    grown = prepared.schema(ids=prepared.IDS + 3, parent=old)
    assert grown.id != old.id
    assert grown.descends_from(old.id)
    more = prepared.write(tmp_path / "more", resolved=grown)
    learnt = contents(run)["rows-0-49.vectors.npy"]
    model, _, _ = load_model(run)
    summary = go(more, run, config("epochs=2"))
    assert summary.resumed_from == 7
    after = contents(run)[f"rows-0-{grown.feature_size}.vectors.npy"]
    assert after.shape[0] == grown.feature_size == learnt.shape[0] + 3 * prepared.FIELDS
    assert not np.array_equal(after[: len(learnt)], learnt)
    fresh = model.table.initial_rows("vectors", len(learnt), grown.feature_size)
    np.testing.assert_array_equal(after[len(learnt) :], fresh)  # nothing in this data touches them
    assert load_model(run)[1].id == grown.id
    assert evaluate(data, "test", run, SingleWorld())["rows"] == 30  # the old data still reads
    with pytest.raises(UserError, match="foreign schema"):
        go(data, run, config("epochs=3"))
