"""Settings sized to the data, and ``init``, which writes them: what they go by, and what ``train`` takes."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import prepared
import pytest
import yaml
from typer.testing import CliRunner

from afm_ctr import distributed, penalty, training
from afm_ctr.cli import commands  # noqa: F401  (registers the sub-commands)
from afm_ctr.cli.app import app
from afm_ctr.errors import UserError
from afm_ctr.infer import infer_schema
from afm_ctr.infer.trial import encoded
from afm_ctr.models import interaction_class, parse_options
from afm_ctr.pair_signal import signals_of
from afm_ctr.records import Reader
from afm_ctr.schema import FeatureSchema
from afm_ctr.sizing import DataSize, Signals, settings_for
from afm_ctr.training import defaults, loop
from afm_ctr.training.config import TrainConfig
from afm_ctr.training.defaults import data_size, default_config, some_rows
from beam_jobs import PrepareOptions, prepare

SIZES = [
    DataSize(rows, ids, ids, slots)
    for rows in (1, 500, 16_000, 10**6, 10**9)
    for ids in (1, 10**6)
    for slots in (1, 40)
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("validated", [True, False])
def test_settings_are_a_training_config(size: DataSize, validated: bool) -> None:
    settings = settings_for(dataclasses.replace(size, validated=validated))
    config = TrainConfig.from_content(settings.content)
    assert yaml.safe_load(settings.to_yaml()) == settings.content
    parse_options(config.model.name, interaction_class(config.model.name).Options, config.model.options)
    assert (config.validation is not None) == (config.early_stopping is not None) == validated


@pytest.mark.parametrize("rows", [30_000, 100_000, 700_000, 1_500_000])
def test_an_epoch_has_some_hundred_steps(rows: int) -> None:
    config = TrainConfig.from_content(settings_for(DataSize(rows, 1000, 900, 10)).content)
    assert 200 <= rows / config.batch_size <= 600


def test_the_model_goes_by_rows_an_id_and_by_pairs() -> None:
    def chosen(size: DataSize) -> str:
        return settings_for(size).content["model"]["name"]

    assert chosen(DataSize(100_000, 5_000, 2_000, 10)) == "deep_afm"
    assert chosen(DataSize(100_000, 25_000, 20_000, 10)) == "afm"  # users are seen five times
    assert chosen(DataSize(20_000, 500, 100, 10)) == "afm"  # few rows
    assert chosen(DataSize(100_000, 5_000, 2_000, 60)) == "afm"  # 1,770 pairs
    assert chosen(DataSize(99_000, 5_000, 2_000, 10)) == "fm"
    assert chosen(DataSize(49_000, 500, 100, 10)) == "afm"
    assert chosen(DataSize(4_000, 500, 400, 60, signals=Signals(pair=6.0))) == "fm"  # pairs say something
    assert chosen(DataSize(4_000, 500, 400, 60, signals=Signals(pair=4.0))) == "afm"


def test_the_penalty_of_an_epoch_does_not_go_by_rows_or_batch() -> None:
    small, large = (settings_for(DataSize(rows, rows // 40, rows // 50, 10)).content for rows in (32_000, 1_024_000))
    assert small["batch_size"] < large["batch_size"]
    for column, expected in (("linear", 0.5 / 10 * 10**1.5), ("vectors", 60.0)):
        for one, rows in ((small, 32_000), (large, 1_024_000)):
            steps = rows / one["batch_size"]
            assert one["row_l2_per"] == "step"
            assert one["row_l2"][column] * steps * one["batch_size"] == pytest.approx(expected, rel=0.05)


def test_epsilon_is_a_share_of_a_row_in_the_mean_of_a_batch() -> None:
    for rows in (100, 32_000, 1_024_000):
        content = settings_for(DataSize(rows, 90, 90, 10)).content
        assert content["optimizer"]["epsilon"] * content["batch_size"] == pytest.approx(0.03, rel=0.05)


def test_weights_are_averaged_over_an_epoch_of_few_rows() -> None:
    few, many = (settings_for(DataSize(rows, 900_000, 900_000, 10)).content for rows in (32_000, 1_024_000))
    assert few["optimizer"]["average"] == pytest.approx(1 - few["batch_size"] / 32_000, rel=1e-3)
    assert "average" not in many["optimizer"]


def test_a_c_that_was_tried_is_taken() -> None:
    def c(slots: int, tried: float | None) -> float:
        content = settings_for(DataSize(20_000, 90, 90, slots, signals=Signals(tried))).content
        return 0.5 / content["row_l2"]["linear"] / 20_000

    assert c(1, None) == pytest.approx(1, rel=0.05)
    assert c(25, None) == pytest.approx(0.08, rel=0.05)
    assert c(4, 10.0) == pytest.approx(10, rel=0.05)
    assert c(4, 0.003) == pytest.approx(0.003, rel=0.05)


def test_few_rows_make_smaller_batches_and_steps_as_long_as_a_weight_needs() -> None:
    content = settings_for(DataSize(400, 90, 90, 30, signals=Signals(0.25))).content
    optimizer, steps = content["optimizer"], -(-400 // content["batch_size"])  # weights of deviation 0.5
    assert content["batch_size"] == 16
    assert optimizer["learning_rate"] * steps * content["epochs"] / 2 == pytest.approx(18 * 0.5, rel=0.05)
    largest = settings_for(DataSize(400, 90, 90, 30, signals=Signals(30.0))).content["optimizer"]["learning_rate"]
    assert largest == pytest.approx(1 / 30, rel=0.05)  # a step of all weights moves a logit by 1
    assert settings_for(DataSize(5_000, 90, 90, 30)).content["batch_size"] == 64


def test_the_more_slots_the_less_each_says_and_the_slower_it_learns() -> None:
    few, many = (settings_for(DataSize(20_000, 900, 900, slots)).content for slots in (4, 36))
    assert many["row_l2"]["linear"] == pytest.approx(21.6 * few["row_l2"]["linear"], rel=0.05)
    assert few["optimizer"]["learning_rate"] == pytest.approx(9 * many["optimizer"]["learning_rate"], rel=0.05)


def test_the_vectors_penalty_of_a_sum_grows_by_slots_and_the_root_of_the_rows() -> None:
    small, large = (
        settings_for(DataSize(rows, 900, 900, slots)).content for rows, slots in ((50_000, 4), (98_000, 8))
    )
    assert small["model"]["name"] == large["model"]["name"] == "fm"
    for content, rows, slots in ((small, 50_000, 4), (large, 98_000, 8)):
        assert content["row_l2"]["vectors"] * rows == pytest.approx(slots * rows**0.5 / 80, rel=0.05)


def test_the_mean_of_a_list_counts_like_one_value() -> None:
    def content(value: str, largest: int) -> dict:
        tags = {"name": "tags", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 100}, "value": value}
        fields = [tags | {"separator": "|", "max_values": largest}]
        schema = FeatureSchema.model_validate({"name": "t", "format": {"kind": "delimited"}, "fields": fields})
        found = settings_for(DataSize.of(schema, 20_000, {})).content
        return {"linear": found["row_l2"]["linear"], "rate": found["optimizer"]["learning_rate"]}

    assert content("mean", 9) == content("mean", 1) == content("one", 1)
    assert content("one", 9)["linear"] == pytest.approx(2.7 * content("one", 1)["linear"], rel=0.05)
    assert content("one", 9)["rate"] == pytest.approx(content("one", 1)["rate"] / 9, rel=0.05)


def test_ids_are_counted_by_the_encoding() -> None:
    fields = [
        {"name": "user", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 100}},
        {"name": "item", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
        {"name": "tags", "kind": "categorical", "space": "tag", "separator": "|", "max_values": 3},
        {"name": "price", "kind": "numeric", "encoding": {"kind": "value"}},
        {"name": "age", "kind": "numeric", "encoding": {"kind": "buckets", "quantiles": 10}},
        {"name": "cost", "kind": "numeric", "encoding": {"kind": "buckets", "boundaries": [1.0, 2.0]}},
        {"name": "hour", "column": "at", "kind": "time", "format": "iso", "part": "hour"},
    ]
    schema = FeatureSchema.model_validate(
        {
            "name": "t",
            "format": {"kind": "delimited"},
            "spaces": {"tag": {"kind": "ids", "size": 7}},
            "fields": fields,
        }
    )
    distinct = {"user": 5000, "item": 40, "tags": 600, "price": 900, "age": 80, "cost": 80, "hour": 9000}
    size = DataSize.of(schema, 1000, distinct)
    assert size.ids == 100 + 40 + 7 + 1 + 10 + 3 + 24
    assert size.largest == 100 and size.rows_per_id == 10
    assert size.slots == 9 and size.pairs == 36


def test_the_reason_counts_one_row_as_one() -> None:
    reasons = settings_for(DataSize(4000, 3469, 3093, 11)).why["model"]
    assert reasons.startswith("4,000 rows; about 3,469 ids, those of the largest field with 1 row;"), reasons


def test_a_prepared_data_set_has_a_size(tmp_path: Path) -> None:
    size = data_size(prepared.write(tmp_path / "data"))
    assert (size.rows, size.slots, size.validated) == (100, prepared.FIELDS, True)
    assert not data_size(prepared.write(tmp_path / "alone", {"train": 80})).validated
    with pytest.raises(UserError, match="not a prepared data set"):
        data_size(tmp_path)


def test_init_and_train_without_a_config_try_penalties_on_the_same_rows(log: Path, tmp_path: Path) -> None:
    log_of = infer_schema([str(log)])
    tried = encoded(log_of.schema, log_of.cells, log_of.positive, 0.8)
    data = tmp_path / "data"
    prepare(PrepareOptions(schema=log_of.schema, inputs=[str(log)], output=str(data), split=log_of.split))
    rows = some_rows(data, 3)  # in another order
    tables = (np.column_stack([found.ids, found.vals, found.labels]) for found in (tried, rows))
    mine, theirs = (table[np.lexsort(table.T)] for table in tables)
    np.testing.assert_array_equal(mine, theirs)


def test_init_sizes_by_the_penalty_that_suits_its_sample(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = infer_schema([str(log)])
    tried = encoded(found.schema, found.cells, found.positive, 0.8)
    assert found.size().signals == signals_of(tried) != Signals()
    assert found.size(tried=False).signals == Signals()
    assert infer_schema([str(log)], labelled=False).size().signals == Signals()


def test_of_many_rows_stretches_all_over_them_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared.write(tmp_path / "data", {"train": 1200})
    monkeypatch.setattr(defaults, "_STRETCH", 10)
    monkeypatch.setattr(penalty, "_ROWS", 40)
    monkeypatch.setattr(penalty, "_FEWEST", 20)
    every = Reader(data, "train", 1200, shuffle=False).batch(0, 0)["feature_ids"]
    parts = [every[first : first + 10] for first in (0, 300, 600, 900)]
    np.testing.assert_array_equal(some_rows(data, 3).ids, np.concatenate(parts))


@pytest.mark.parametrize("command", [True, False])
def test_rows_are_read_when_a_rank_has_its_gpu(
    command: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow, once it has computed anything, holds every GPU of the machine."""
    data, calls = prepared.write(tmp_path / "data"), []

    def begun(what: str, *_: object) -> None:
        calls.append(what)
        if what == "sized":
            raise RuntimeError("enough")

    for module, world in ((loop, None), (training, SimpleNamespace(shutdown=lambda: None))):
        monkeypatch.setattr(module, "default_config", lambda *_: begun("sized"))
        monkeypatch.setattr(loop if module is loop else distributed, "init", lambda w=world: begun("ready") or w)
    if command:
        CliRunner().invoke(app, ["train", "--data", str(data), "--model-dir", str(tmp_path / "run")])
    else:
        with pytest.raises(RuntimeError, match="enough"):
            training.train(data, tmp_path / "run")
    assert calls == ["ready", "sized"]


def test_without_a_config_a_run_keeps_its_own(tmp_path: Path) -> None:
    data = prepared.write(tmp_path / "data")
    lr = default_config(data, tmp_path / "run", overrides=["model={name: lr}"])
    assert lr.model.name == "lr" and list(lr.row_l2) == ["linear"], "no vectors to penalise"
    fresh = default_config(data, tmp_path / "run", overrides=["epochs=2"])
    assert fresh.epochs == 2 and fresh.model.name == settings_for(data_size(data)).content["model"]["name"]
    for folder in ("run", "origin"):
        (tmp_path / folder / "checkpoints" / "step-1").mkdir(parents=True)
        name = {"run": "lr", "origin": "fm"}[folder]
        (tmp_path / folder / "config.yaml").write_text(TrainConfig.from_content({"model": {"name": name}}).to_yaml())
    assert default_config(data, tmp_path / "run", tmp_path / "origin").model.name == "lr"
    assert default_config(data, tmp_path / "new", tmp_path / "origin").model.name == "fm"
    assert default_config(data, tmp_path / "new", tmp_path / "origin" / "checkpoints" / "step-1").model.name == "fm"
    with pytest.raises(UserError, match="unknown key"):
        default_config(data, tmp_path / "run", overrides=["epoch=2"])


def test_what_no_data_would_allow_is_refused_before_they_are_read(tmp_path: Path) -> None:
    """Without NumPy, which takes longer to load than all the rest."""
    for override, said in (
        ("batch_size=0", "batch_size: 0: must be greater"),
        ("model.name=nope", "no model 'nope'"),
        ("model.factros=1", "factros: unknown key"),
    ):
        code = (
            "import sys, pathlib; sys.modules['numpy'] = None; from afm_ctr.training.defaults import default_config\n"
        )
        code += f"default_config('nowhere', pathlib.Path('run'), overrides=[{override!r}])"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and f"UserError: {said}" in done.stderr.replace("--set: ", "").replace(
            "there is ", ""
        ).replace("model 'afm': ", "")
    alone = prepared.write(tmp_path / "alone", {"train": 80})
    assert default_config(alone, tmp_path / "run", overrides=["validation=null"]).validation is None


# -- init -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "it's a log.csv"
    rows = [f"u{i % 37},{i % 5},{'' if i % 9 == 0 else i * 7 % 100 / 4},{int(i % 3 == 0)}" for i in range(900)]
    path.write_text("user,item,price,clicked\n" + "\n".join(rows) + "\n")
    return path


def init(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["init", *map(str, arguments), "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.output.splitlines()[-1])


def test_init_writes_a_schema_a_config_and_six_commands(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a project"
    result = init("--input", log, "--output", folder)
    config = TrainConfig.load(folder / "train.yaml")
    assert config == TrainConfig.from_content(result["settings"])
    assert FeatureSchema.load(folder / "schema.yaml").label is not None
    words = [shlex.split(line.removesuffix(" &")) for line in result["next"]]
    assert [line[1] for line in words] == ["prepare", "train", "evaluate", "export", "serve", "score"]
    prepare, train, _, export, serve, score = words
    assert prepare[prepare.index("--input") + 1] == score[score.index("--input") + 1] == str(log)
    assert train[train.index("--config") + 1] == str(folder / "train.yaml")
    base = export[export.index("--export-base") + 1]
    assert Path(base).is_absolute() and f"--model_base_path={base}" in serve
    assert f"--model_name={score[score.index('--model-name') + 1]}" in serve


def test_init_replaces_nothing_unasked(log: Path, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"train\.yaml is there already"):
        init("--input", log, "--output", tmp_path)
    assert not (tmp_path / "schema.yaml").exists() and (tmp_path / "train.yaml").read_text() == "mine"
    init("--input", log, "--output", tmp_path, "--overwrite")
    assert (tmp_path / "train.yaml").read_text() != "mine"
    with pytest.raises(UserError, match="is a file"):
        init("--input", log, "--output", log)
    (tmp_path / "plain.csv").write_text("a,b\n1,x\n2,y\n")
    with pytest.raises(UserError, match=r"name it with --label COLUMN: a"):
        init("--input", tmp_path / "plain.csv", "--output", tmp_path / "new")
    with pytest.raises(UserError):
        init("--input", tmp_path / "absent.csv", "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()
