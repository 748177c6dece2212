"""Training, evaluation and prediction on a small data set, in one process."""

from __future__ import annotations

import errno
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import log_loss, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorflow import make_ndarray

from afm_ctr import native, optimizers
from afm_ctr.distributed import SingleWorld
from afm_ctr.errors import UserError
from afm_ctr.optimizers.average import Average
from afm_ctr.prediction import predict_logs, predict_records
from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training import TrainConfig, TrainSummary, build_model, epoch, evaluate, load_model, snapshot, train
from afm_ctr.training.checkpoint import Checkpoint
from afm_ctr.training.evaluation import scoring_batch
from tests import prepared

SETTINGS = ["model={name: fm, factors: 4}", "batch_size=16", "optimizer={name: adam, learning_rate: 0.05}"]
WORLD = SingleWorld()


def config(*overrides: str) -> TrainConfig:
    return TrainConfig.load(None, [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), {"train": 700, "valid": 250, "test": 230})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainSummary]:
    run = tmp_path_factory.mktemp("runs") / "fm"
    settings = config("epochs=6", "checkpoint.keep=1", "early_stopping={patience: 2}")
    return run, train(data, run, settings, WORLD, command=["train", "--data", str(data)], progress="none")


def read_history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_it_learns_what_was_planted(trained: tuple[Path, TrainSummary]) -> None:
    run, summary = trained
    history = read_history(run)
    assert [one["epoch"] for one in history] == list(range(summary.epochs))
    assert history[-1]["loss"] < history[0]["loss"] < 0.75
    assert summary.best is not None
    assert summary.best["value"] == max(one["val_auc"] for one in history) > 0.9
    assert summary.last == history[-1]
    assert summary.rows == 700
    assert summary.rows_per_second and summary.rows_per_second > 0
    assert json.dumps(summary.to_json(), allow_nan=False)


def test_the_folder_says_how_it_came_about(data: Path, trained: tuple[Path, TrainSummary]) -> None:
    run, _ = trained
    said = json.loads((run / "run.json").read_text())
    assert said["command"] == ["train", "--data", str(data)]
    assert said["world_size"] == 1
    assert said["schema_id"] == Manifest.load(data).schema_id == ResolvedSchema.load(run).id
    assert {"python", "tensorflow", "keras", "numpy"} <= set(said["versions"])
    assert said["config"] == yaml.safe_load((run / "config.yaml").read_text())
    assert TrainConfig.load(run / "config.yaml").batch_size == 16
    assert said["machine"]["cores"] >= 1 and said["machine"]["processor"]


def test_tensorboard_shows_the_curves_of_the_history(trained: tuple[Path, TrainSummary]) -> None:
    run, _ = trained
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    curves: dict[str, list[tuple[int, float]]] = {}
    for one in read_history(run):
        for name, value in one.items():
            if name not in ("epoch", "step") and value is not None:
                curves.setdefault(f"epoch/{name}", []).append((one["step"], float(np.float32(value))))
    assert {"epoch/loss", "epoch/val_auc", "epoch/learning_rate", "epoch/rows_per_second"} <= curves.keys()
    tags = set(events.Tags()["tensors"])
    assert {tag for tag in tags if tag.startswith("epoch/")} == curves.keys()
    assert {"train/loss", "train/learning_rate", "train/rows_per_second"} <= tags
    for tag, points in curves.items():
        assert [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)] == points, tag


def test_evaluation_is_exact_and_of_the_best_checkpoint(data: Path, trained: tuple[Path, TrainSummary]) -> None:
    run, summary = trained
    assert summary.best is not None
    found = evaluate(data, "valid", run, WORLD)
    assert found["auc"] == pytest.approx(summary.best["value"], rel=1e-12)
    assert found["checkpoint"] == f"step-{summary.best['step']:09d}"
    found = evaluate(data, "test", run, WORLD)
    rows = prepared.rows_of("test", 230)
    model, schema, _ = load_model(run)
    assert schema.num_slots == prepared.FIELDS
    logits = model({"feature_ids": rows["feature_ids"], "feature_vals": rows["feature_vals"]}).numpy().astype(float)
    expected = roc_auc_score(rows["labels"], logits, sample_weight=rows["weights"])
    assert found["auc"] == pytest.approx(expected, rel=1e-9)
    expected = log_loss(rows["labels"], 1 / (1 + np.exp(-logits)), sample_weight=rows["weights"])
    assert found["log_loss"] == pytest.approx(expected, rel=1e-6)
    assert (found["rows"], found["positives"]) == (230, int(rows["labels"].sum()))
    assert found["weight"] == rows["weights"].sum()
    latest = evaluate(data, "valid", run, WORLD, which="latest")
    assert latest["checkpoint"] == f"step-{summary.steps:09d}"
    assert latest["auc"] == pytest.approx(read_history(run)[-1]["val_auc"], rel=1e-12)


def test_a_config_may_be_a_mapping_or_left_out(data: Path, tmp_path: Path) -> None:
    content = {"model": {"name": "fm", "factors": 4}, "batch_size": 16, "epochs": 1}
    assert train(data, tmp_path / "run", content, WORLD, progress="none").epochs == 1
    resumed = train(data, tmp_path / "run", None, WORLD, progress="none")  # by the run's own config
    assert (resumed.epochs, resumed.resumed_from) == (1, 44)
    assert TrainConfig.load(tmp_path / "run" / "config.yaml") == TrainConfig.parse(content, "")
    with pytest.raises(UserError, match=r"^config: epoch: unknown key"):
        train(data, tmp_path / "other", {"epoch": 1}, WORLD)
    assert not (tmp_path / "other").exists()


def test_validation_evaluation_and_a_loaded_model_take_the_averages(data: Path, tmp_path: Path) -> None:
    settings = config("epochs=2", "optimizer.average=0.98")
    summary = train(data, tmp_path / "run", settings, WORLD, progress="none")
    train(data, tmp_path / "plain", config("epochs=2"), WORLD, progress="none")
    averaged, plain = read_history(tmp_path / "run"), read_history(tmp_path / "plain")
    for one, other in zip(averaged, plain, strict=True):
        assert one["loss"] == other["loss"]  # the training is the same
        assert abs(one["val_log_loss"] - other["val_log_loss"]) > 1e-3
    found = evaluate(data, "valid", tmp_path / "run", WORLD, which="latest")
    assert found["log_loss"] == pytest.approx(averaged[-1]["val_log_loss"], rel=1e-6)
    last = tmp_path / f"run/checkpoints/step-{summary.steps:09d}"
    weights, kept = (
        np.load(last / f"tables/ids/rows-0-{1 + prepared.FIELDS * prepared.IDS}.vectors{slot}.npy")
        for slot in ("", ".average")
    )
    model, _, _ = load_model(tmp_path / "run", "latest")
    expected = weights + kept * Average(0.98).scale(summary.steps)
    np.testing.assert_allclose(model.table.columns["vectors"].numpy(), expected, rtol=1e-6, atol=1e-7)
    assert np.abs(expected - weights).max() > 0.01


def test_predictions_carry_keys_and_lose_nothing(
    data: Path, trained: tuple[Path, TrainSummary], tmp_path: Path
) -> None:
    run, _ = trained
    output = tmp_path / "out/scores.jsonl"
    summary = predict_records(run, data, "test", output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert summary.rows == len(lines) == 230
    assert [line["key"] for line in lines] == [f"test-{row}" for row in range(230)]
    rows = prepared.rows_of("test", 230)
    assert [line["label"] for line in lines] == rows["labels"].tolist()
    # The same rows as raw lines: an id is its field's offset and the number in the cell; an empty cell is absent.
    log = tmp_path / "log.csv"
    values_are_one = prepared.write(tmp_path / "ones", {"test": 230}, feature_vals=(rows["feature_ids"] > 0) * 1.0)
    predict_records(run, values_are_one, "test", output)
    expected = [json.loads(line) for line in output.read_text().splitlines()]
    cells = np.where(rows["feature_ids"] > 0, rows["feature_ids"] - 1 - prepared.IDS * np.arange(4), -1)
    texts = ["1,u," + ",".join("" if cell < 0 else str(cell) for cell in row) for row in cells.tolist()]
    log.write_text("\n".join([*texts[:100], "1,u,3", "", *texts[100:], "0,u,1,2,3,x"]) + "\n")
    summary = predict_logs(run, [str(tmp_path / "*.csv")], output, batch_rows=64)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert (summary.rows, summary.errors, len(lines)) == (233, 2, 233)
    assert [line["key"] for line in lines] == [f"log.csv#{number}" for number in range(1, 234)]
    assert [number for number, line in enumerate(lines) if "error" in line] == [100, 101]
    assert lines[100]["error"].startswith("column_count")
    assert lines[-1]["bad_cells"] == 1
    scored = [line for line in lines if "error" not in line][:-1]
    for one, other in zip(scored, expected, strict=True):
        assert one["bad_cells"] == 0
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
        assert one["logit"] == pytest.approx(other["logit"], abs=1e-6)


def test_early_stopping_and_plateau(data: Path, tmp_path: Path) -> None:
    still = [
        "optimizer.learning_rate=1e-30",
        "epochs=9",
        "early_stopping={patience: 3}",
        "validation.metric=log_loss",
    ]
    plateau = "reduce_on_plateau={patience: 1, factor: 0.5}"
    summary = train(data, tmp_path / "run", config(*still, plateau), WORLD, progress="none")
    assert (summary.ended, summary.epochs) == ("early_stopping", 4)
    rates = [one["learning_rate"] for one in read_history(tmp_path / "run")]
    np.testing.assert_allclose(rates, [1e-30, 1e-30, 5e-31, 2.5e-31], rtol=1e-6)  # the rate that the epoch ran with
    patient = config(*still[:2], "early_stopping={patience: 4}", "validation.metric=log_loss", plateau)
    assert train(data, tmp_path / "run", patient, WORLD, progress="none").epochs == 5


def test_speed_counts_the_rows_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(epoch, "time", SimpleNamespace(monotonic=lambda: 4.0 * next(ticks)))  # 4 s a step
    data = prepared.write(tmp_path / "data", {"train": 100, "valid": 50})
    settings = config("batch_size=48", "epochs=2")
    summary = train(data, tmp_path / "run", settings, WORLD, progress="none")
    first, second = read_history(tmp_path / "run")
    # The first step traces; the last batch of an epoch has 4 rows.
    assert (first["seconds"], first["rows_per_second"]) == (8, (100 - 48) / 8)
    assert (second["seconds"], second["rows_per_second"]) == (12, round(100 / 12, 1))
    assert (summary.seconds, summary.rows_per_second) == (20, (100 - 48 + 100) / 20)
    one_step = train(data, tmp_path / "one", config("batch_size=5000", "epochs=1"), WORLD, progress="none")
    assert one_step.rows_per_second is None and "rows/s" not in str(one_step)


def test_rows_without_weight_teach_nothing(tmp_path: Path) -> None:
    data = prepared.write(tmp_path / "data", {"train": 60, "valid": 60}, weights=np.zeros(60, np.float32))
    with pytest.raises(UserError, match="every row of split 'train' has weight 0"):
        train(data, tmp_path / "run", config(), WORLD, progress="none")
    half = np.tile(np.array([0, 2], np.float32), 30)
    data = prepared.write(tmp_path / "half", {"train": 60, "valid": 60}, weights=half)
    train(data, tmp_path / "half-run", config("epochs=1"), WORLD, progress="none")
    found = evaluate(data, "valid", tmp_path / "half-run", WORLD)
    assert (found["rows"], found["rows_of_weight_0"], found["weight"]) == (60, 30, 60.0)


def test_a_folder_that_cannot_be_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write the run in .*file/run: Not a directory: .*/file is a file; name"
    ):
        train(data, tmp_path / "file/run", config(), WORLD, progress="none")
    run = tmp_path / "run"
    settings = config("epochs=1", "checkpoint.every_steps=10")
    write = snapshot.HashingWriter.write

    def full(self: Any, content: Any) -> int:
        if (run / "checkpoints/step-000000020").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot.HashingWriter, "write", full)
        with pytest.raises(UserError, match="No space left on device; every checkpoint there is whole"):
            train(data, run, settings, WORLD, progress="none")
    assert train(data, run, settings, WORLD, progress="none").resumed_from == 20


def test_a_validation_split_that_is_not_there(data: Path, tmp_path: Path) -> None:
    settings = config("validation.split=dev", "early_stopping={patience: 1}", "reduce_on_plateau=null")
    with pytest.raises(
        UserError, match=r"^validation.split 'dev' is not there; splits of this data set: train \("
    ) as caught:
        train(data, tmp_path / "run", settings, WORLD, progress="none")
    assert str(caught.value).endswith("--set validation=null --set early_stopping=null")
    assert not (tmp_path / "run").exists()


def test_squared_loss_and_no_validation(data: Path, tmp_path: Path) -> None:
    settings = config("loss=squared", "validation=null", "epochs=2", "tensorboard=false")
    summary = train(data, tmp_path / "run", settings, WORLD, progress="none")
    assert summary.best is None
    assert not (tmp_path / "run/tensorboard").exists()
    found = evaluate(data, "test", tmp_path / "run", WORLD)
    assert found["rmse"] < 1.0
    assert "log_loss" not in found
    predict_records(tmp_path / "run", data, "test", tmp_path / "scores.jsonl")
    first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert first["score"] == first["logit"]


def test_kept_negatives_are_corrected_once(tmp_path: Path) -> None:
    thinned = prepared.schema(negative_sampling={"rate": 0.25, "correct": "logit"})
    data = prepared.write(tmp_path / "data", resolved=thinned)
    settings = config("epochs=1", "validation.metric=log_loss")
    train(data, tmp_path / "run", settings, WORLD, progress="none")
    model, _, _ = load_model(tmp_path / "run")
    rows = prepared.rows_of("test", 30)
    logits = model({"feature_ids": rows["feature_ids"], "feature_vals": rows["feature_vals"]}).numpy()
    predict_records(tmp_path / "run", data, "test", tmp_path / "scores.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["logit"] for line in lines], logits + np.log(0.25), atol=1e-6)
    corrected = 1 / (1 + np.exp(-(logits.astype(float) + np.log(0.25))))
    found = evaluate(data, "test", tmp_path / "run", WORLD)
    expected = log_loss(rows["labels"], corrected, sample_weight=rows["weights"])
    assert found["log_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_diverging_run_says_so_and_keeps_its_last_good_state(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["optimizer={name: sgd, learning_rate: 1.0}", "loss=squared", "validation.metric=rmse"]
    train(data, run, config(*settings, "max_steps=1", "optimizer.learning_rate=1e-3"), WORLD, progress="none")
    wild = [*settings, "optimizer.learning_rate=1e18", "checkpoint.every_steps=1"]
    with pytest.raises(UserError, match=r"not finite after step \d+|step \d+: the loss is"):
        train(data, tmp_path / "wild", config(*wild), WORLD, progress="none")
    for folder in (tmp_path / "wild/checkpoints").glob("step-*"):
        with np.load(folder / "dense.npz") as dense:
            assert all(np.isfinite(dense[name]).all() for name in dense.files)


def with_value(folder: Path, row: int, value: float, **splits: int) -> Path:
    """A data set in which one cell of field "b" holds a number that no log should."""
    rows = prepared.rows_of("train", sum(splits.values()))
    rows["feature_ids"][row, 1], rows["feature_vals"][row, 1] = 1 + prepared.IDS, value
    return prepared.write(
        folder, splits, feature_ids=rows["feature_ids"], feature_vals=rows["feature_vals"], labels=rows["labels"]
    )


@pytest.mark.parametrize("steps", ["checkpoint.every_steps=1", "checkpoint.every_steps=1000"])
def test_divergence_names_the_row_and_no_checkpoint_that_is_not_there(steps: str, tmp_path: Path) -> None:
    data = with_value(tmp_path / "data", 37, -1e30, train=100)
    run, settings = tmp_path / "run", config(steps, "shuffle=false", "validation=null")
    with pytest.raises(UserError, match="diverged") as caught:
        train(data, run, settings, WORLD, progress="none")
    said = str(caught.value)
    assert "-1e+30, field 'b' of row 'train-37'" in said
    there = sorted((run / "checkpoints").glob("step-*"))
    if steps.endswith("=1"):
        assert said.endswith(f"the last checkpoint is {there[-1]}")
    else:
        assert not there and said.endswith("there is no checkpoint yet")


def test_divergence_of_ordinary_numbers_names_the_learning_rate(data: Path, tmp_path: Path) -> None:
    wild = config("optimizer={name: sgd, learning_rate: 1.0e+20}", "loss=squared", "validation=null")
    with pytest.raises(UserError, match="no number that it read is above 100: lower optimizer"):
        train(data, tmp_path / "run", wild, WORLD, progress="none")


def test_divergence_names_a_label(tmp_path: Path) -> None:
    real = prepared.schema(label={"column": "label", "kind": "real"})
    labels = prepared.rows_of("train", 100)["labels"]
    labels[61] = 3e30
    data = prepared.write(tmp_path / "data", {"train": 100}, real, labels=labels)
    settings = config("loss=squared", "validation=null")
    with pytest.raises(UserError, match=r"3e\+30, the label of row 'train-61'"):
        train(data, tmp_path / "run", settings, WORLD, progress="none")


def test_a_score_of_validation_that_is_not_finite_names_the_row(data: Path, tmp_path: Path) -> None:
    other = with_value(tmp_path / "other", 5, 1e30, test=20)
    run = tmp_path / "run"
    train(data, run, config("epochs=1"), WORLD, progress="none")
    with pytest.raises(
        UserError, match=r"'test': 1 scores .* row 'test-5' first; .* 1e\+30, field 'b' of row 'test-5'"
    ):
        evaluate(other, "test", run, WORLD)


@pytest.mark.parametrize(
    ("overrides", "changes", "said"),
    [
        (["validation.split=nothing"], {}, "split 'nothing' is not there"),
        (["train_split=nothing"], {}, "split 'nothing' is not there"),
        (["model={name: afmm}"], {}, "there is no model 'afmm'"),
        (["model={name: fm, factor: 3}"], {}, r"model 'fm': factor: unknown key \(did you mean 'factors'"),
        (["optimizer={name: adam, beta: 3}"], {}, "has no option 'beta'"),
        (["optimizer={name: adamw}"], {}, r"optimizer\.name: 'adamw': must be .* \(did you mean 'adam'"),
        (["row_l2={vector: 1}"], {}, "no column 'vector'"),
        (["validation.metric=group_auc"], {"group": None}, "group_auc needs a schema that declares a `group`"),
        (
            ["loss=squared"],
            {"label": {"column": "label", "kind": "real"}},
            "validation.metric auc needs binary labels",
        ),
        (
            ["loss=squared"],
            {"negative_sampling": {"rate": 0.1, "correct": "logit"}},
            "`loss: squared` has none: use loss: log, or prepare with correct: weights",
        ),
        ([], {"label": {"column": "label", "kind": "real"}}, "log loss needs binary labels|auc needs binary labels"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    overrides: list[str], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    data = prepared.write(tmp_path / "data", resolved=prepared.schema(**changes))
    with pytest.raises(UserError, match=said) as caught:
        train(data, tmp_path / "run", config(*overrides), WORLD, progress="none")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_unlabelled_and_damaged_data(data: Path, trained: tuple[Path, TrainSummary], tmp_path: Path) -> None:
    run, _ = trained
    bare = prepared.write(tmp_path / "bare", labelled=False, labels=None)
    with pytest.raises(UserError, match="without labels"):
        train(bare, tmp_path / "run", config(), WORLD, progress="none")
    with pytest.raises(UserError, match="without labels"):
        evaluate(bare, "test", run, WORLD)
    predict_records(run, bare, "test", tmp_path / "scores.jsonl")
    first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert set(first) == {"key", "probability", "logit"}
    broken = prepared.write(tmp_path / "broken")
    shard = broken / "attempt/train/part-00001.tfrecord"
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00001\.tfrecord"):
        train(broken, tmp_path / "run", config(), WORLD, progress="none")


def test_a_model_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training run"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="use best or latest"):
        load_model(tmp_path, which="first")  # type: ignore[arg-type]


def test_scoring_batches_are_as_large_as_the_split_needs() -> None:
    assert [scoring_batch(rows, 4096, ranks) for rows, ranks in [(1, 1), (64, 1), (65, 1), (100, 3)]] == [
        64,
        64,
        128,
        192,
    ]
    assert scoring_batch(10**6, 4096, 3) == 4224  # every rank's part a multiple of 64


IDLE = ["optimizer={name: sgd, learning_rate: 1.0e-30}", "model.init_stddev=0"]


def weighted_rate(split: str, count: int) -> float:
    rows = prepared.rows_of(split, count)
    return float(np.average(rows["labels"].astype(float), weights=rows["weights"].astype(float)))


@pytest.fixture(scope="module")
def idle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainSummary]:
    """A run that learns nothing."""
    run = tmp_path_factory.mktemp("runs") / "idle"
    return run, train(data, run, config(*IDLE, "epochs=1"), WORLD, progress="none")


def test_a_fresh_model_begins_at_the_base_rate(data: Path, idle: tuple[Path, TrainSummary]) -> None:
    run, _ = idle
    rate = weighted_rate("train", 700)
    bias = load_model(run)[0].bias.numpy()
    assert bias == np.float32(np.log(rate / (1 - rate)))
    (epoch,) = read_history(run)
    assert epoch["constant_loss"] == pytest.approx(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate), rel=1e-12)
    assert epoch["normalised_entropy"] == pytest.approx(1.0, abs=1e-6)


def test_a_model_that_is_no_better_than_the_constant_is_named(
    data: Path, idle: tuple[Path, TrainSummary], trained: tuple[Path, TrainSummary]
) -> None:
    run, summary = idle
    (warning,) = summary.warnings
    assert "no better than a constant" in warning
    assert evaluate(data, "valid", run, WORLD)["warnings"] == [warning]
    assert not any("constant" in text for text in evaluate(data, "test", trained[0], WORLD)["warnings"])


def test_a_model_that_was_still_improving_is_named(data: Path, tmp_path: Path) -> None:
    settings = config("epochs=2", "validation.metric=log_loss", "optimizer.learning_rate=0.01")
    summary = train(data, tmp_path / "run", settings, WORLD, progress="none")
    assert len(read_history(tmp_path / "run")) == 2
    assert any("still improving in its last epoch" in text for text in summary.warnings)
    assert any("still improving" in text for text in evaluate(data, "test", tmp_path / "run", WORLD)["warnings"])


def test_weights_of_another_run_bring_their_own_bias(
    data: Path, trained: tuple[Path, TrainSummary], tmp_path: Path
) -> None:
    origin = trained[0]
    settings = config(*IDLE[:1], "max_steps=1", "optimizer.name=adam")
    train(data, tmp_path / "run", settings, WORLD, from_checkpoint=origin, progress="none")
    before, after = (
        load_model(origin, "latest")[0].bias.numpy(),
        load_model(tmp_path / "run", "latest")[0].bias.numpy(),
    )
    assert after == before != 0


@pytest.mark.parametrize("weights", [0.0, 1.0])
def test_validation_that_cannot_steer_is_named(
    weights: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negatives alone, or rows without weight: auc is not defined."""
    changes = {"labels": np.zeros(40, np.float32)} if weights else {}
    whole = prepared.write(tmp_path / "train", {"train": 100})
    other = prepared.write(tmp_path / "valid", {"valid": 40}, weights=np.full(40, weights, np.float32), **changes)
    (other / "attempt/valid").rename(whole / "attempt/valid")
    train_part, valid_part = Manifest.load(whole), Manifest.load(other, check_files=False)
    shards = [shard.model_copy(update={"positives": 0} if weights else {}) for shard in valid_part.shards]
    train_part.model_copy(update={"shards": [*train_part.shards, *shards], "rows_in": 140, "rows_out": 140}).save(
        whole
    )
    settings = config("epochs=2", "early_stopping={patience: 1}", "reduce_on_plateau={patience: 1}")
    summary = train(whole, tmp_path / "run", settings, WORLD, progress="lines")
    said = capsys.readouterr().err
    assert summary.best is None
    assert "auc is not defined on split 'valid'" in summary.warnings[0]
    assert f"warning: {summary.warnings[0]}" in said
    assert all(one["not_steered"] == summary.warnings[0] for one in read_history(tmp_path / "run"))
    assert ("validation.metric: log_loss would do" in said) is bool(weights)


@pytest.mark.parametrize("reason", ["not built", ""])
def test_a_run_without_the_ops_in_cpp_says_so(
    reason: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "load", lambda: SimpleNamespace(reason=reason))
    train(data, tmp_path / "run", config("max_steps=1"), WORLD, progress="lines")
    said = [line for line in capsys.readouterr().err.splitlines() if "C++" in line]
    line = "slower than it could be: the ops in C++ are not in use (not built); build them by"
    assert [one.partition(line)[2] for one in said] == ([f" `{native.BUILD}`"] if reason else [])


@pytest.mark.parametrize("end", ["epochs=2", "max_steps=5"])
def test_a_decay_ends_with_the_run(end: str, tmp_path: Path) -> None:
    """Seven steps an epoch: the n-th of m takes 1 - (n - 1) / m of the rate."""
    data = prepared.write(tmp_path / "data", {"train": 100})
    settings = config(end, "optimizer.decay=linear", "optimizer.learning_rate=0.5", "validation=null")
    train(data, tmp_path / "run", settings, WORLD, progress="none")
    steps = 14 if end == "epochs=2" else 5
    checkpoint = Checkpoint.open(tmp_path / f"run/checkpoints/step-{steps:09d}")
    model = build_model(ResolvedSchema.load(data), settings)
    model.compile(optimizer=optimizers.build("adam"))
    model.optimizer.build(model.trainable_variables)
    checkpoint.restore(model)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.5 / steps, rel=1e-6)
