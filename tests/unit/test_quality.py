"""The comparison of accuracy: figures, differences, what is asked, rows for the peer, results that are kept."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "quality")]

import jobs  # noqa: E402
import results as outcome  # noqa: E402
import rows as of_rows  # noqa: E402
import run  # noqa: E402
from datasets import CONFIGS, DATASETS, Check, Dataset  # noqa: E402

from afm_ctr.analysis import Analysis  # noqa: E402
from afm_ctr.schema import FeatureSchema, resolve  # noqa: E402
from afm_ctr.training import TrainConfig  # noqa: E402

HASH = {"kind": "hash", "buckets": 9}
SCHEMA = {
    "name": "toy",
    "format": {"kind": "delimited", "delimiter": "\t", "header": False, "columns": ["label", "a", "b", "c"]},
    "label": {"column": "label", "kind": "binary", "positive": ["1"]},
    "fields": [
        {"name": "a", "kind": "categorical", "encoding": HASH},
        {"name": "b", "kind": "categorical", "separator": "|", "max_values": 2, "encoding": HASH},
        {"name": "c", "kind": "numeric", "encoding": {"kind": "value"}},
    ],
}


def result(**metrics: float) -> dict[str, Any]:
    return {"metrics": {"test": metrics}, "epochs": 4, "best_epoch": 3, "seconds": 1.5}


def test_figures_are_those_of_the_scores() -> None:
    labels, logits = np.array([1, 0, 1, 0]), np.array([2.0, -1.0, -0.5, 0.25])
    found = outcome.figures(labels, logits)
    losses = [math.log1p(math.exp(-2.0)), math.log1p(math.exp(-1.0)), math.log1p(math.exp(0.5))]
    assert found["log_loss"] == pytest.approx((sum(losses) + math.log1p(math.exp(0.25))) / 4)
    assert (found["auc"], found["accuracy"], found["recall"]) == (0.75, 0.5, 0.5)


def test_a_difference_has_the_error_of_welch() -> None:
    apart, error = outcome.difference([1.0, 2.0, 3.0], [1.0, 3.0])
    assert apart == 0.0 and error == pytest.approx(math.sqrt(1 / 3 + 2 / 2))
    assert math.isnan(outcome.difference([1.0], [2.0, 3.0])[1])
    assert str(outcome.Spread.of([0.5])) == "0.5000"
    assert str(outcome.Spread.of([0.5, 0.6])) == "0.5500 ± 0.0707"


def test_what_is_asked_is_met_or_not() -> None:
    found = {
        "mine": [result(auc=0.70, log_loss=0.4), result(auc=0.72, log_loss=0.4)],
        "theirs": [result(auc=0.72), result(auc=0.74)],
        "once": [result(auc=0.9)],
    }

    def passed(*arguments: Any, **more: Any) -> bool | None:
        return outcome.verdict(Check("mine", *arguments, **more), found, "test")[2]

    assert passed("auc", ">=", 0.71) is True and passed("auc", ">=", 0.7101) is False
    assert passed("log_loss", "<=", 0.4) is True and passed("log_loss", "<=", 0.39) is False
    assert passed("auc", ">=", other="theirs") is True  # 0.02 less, and two standard errors are 0.0283
    assert passed("auc", ">=", other="theirs", margin=0.019) is False
    assert passed("auc", ">=", other="theirs", margin=0.021) is True
    assert passed("auc", ">=", other="once") is None and passed("auc", ">=", other="nobody") is None
    assert outcome.verdict(Check("mine", "auc", ">=", other="theirs"), found, "test")[1] == (
        "-0.0200 (standard error 0.0141)"
    )


def test_tables_show_every_model_that_has_results() -> None:
    found = {
        "fm": [result(auc=0.7, log_loss=0.5), result(auc=0.8, log_loss=0.6)],
        "afm": [result(auc=0.9, log_loss=0.4)],
    }
    dataset = Dataset(
        (), "", lambda *_: [], "test", 2, checks=(Check("afm", "auc", ">=", 0.8), Check("x", "auc", ">=", 0))
    )
    table = outcome.table_of_models("toy", dataset, found, {"fm": "fm", "afm": "ours", "x": "x"}, "test")
    assert table.rows == [
        ["fm", "2", "0.7500 ± 0.0707", "0.5500 ± 0.0707", "4", "3", "2"],
        ["ours", "1", "0.9000", "0.4000", "4", "3", "2"],
    ]
    assert outcome.table_of_differences([("afm", "fm"), ("afm", "x")], found, "test").rows == [
        ["afm − fm", "+0.15000", "–", "–"]
    ]
    checks, met = outcome.table_of_checks(dataset, found, "test")
    assert [row[2] for row in checks.rows] == ["met", "not known"] and not met


def test_the_peer_gets_the_same_rows() -> None:
    schema = resolve(FeatureSchema.model_validate(SCHEMA), Analysis.empty())
    a, b, c = (schema.global_id(space, 0) for space in ("a", "b", "c"))
    train = of_rows.Rows(
        np.array([[a + 4, b + 1, b + 3, c], [a + 2, b + 3, 0, c], [0, 0, 0, c]]),
        np.array([[1, 0.5, 0.5, 2.5], [1, 1, 0, -1.0], [0, 0, 0, 0.0]], np.float32),
        np.array([1, 0, 1], np.float32),
    )
    fields = of_rows.PeerFields(schema, [train])
    assert [(f["name"], f["type"], f["size"], f["padded"]) for f in fields.fields] == [
        ("a", "categorical", 4, True),
        ("b", "sequence", 4, True),
        ("c", "numeric", 3, False),
    ]
    columns = fields.columns(train)
    assert columns["a"].tolist() == [2, 1, 0]
    assert columns["b"].tolist() == [[1, 2], [2, 0], [0, 0]]
    assert columns["c"].tolist() == [2.5, -1.0, 0.0] and columns["label"].tolist() == [1, 0, 1]
    unseen = train._replace(ids=np.where(train.ids == a + 4, a + 8, train.ids))
    assert fields.columns(unseen)["a"].tolist() == [3, 1, 0]
    with pytest.raises(ValueError, match="field a is neither"):
        of_rows.PeerFields(schema, [train._replace(vals=train.vals * 2)])


def test_what_is_done_is_kept(tmp_path: Path) -> None:
    rows = of_rows.PreparedRows(tmp_path, {"test": ""}, {}, [], "digest", {"test": np.array([1, 0])})
    [job, other] = run.jobs_of("telco", ["afm"], [1, 2], rows, tmp_path)
    assert job.folder != other.folder and job.versions == jobs.versions_of("afm")
    assert len(job.versions) == 4 and job.versions[-1].startswith("code ")
    assert run.jobs_of("telco", ["afm"], [1], rows._replace(digest="others"), tmp_path)[0].folder != job.folder
    assert run.missing(job, "telco", rows, ["test"])
    job.folder.mkdir(parents=True)
    (job.folder / "run.json").write_text(json.dumps({"epochs": 2, "best_epoch": 1, "seconds": 3.0, "versions": "v"}))
    assert run.missing(job, "telco", rows, ["test"])  # trained, not scored
    np.savez(job.folder / "scores-test.npz", logits=np.array([0.5, 1.0]))
    assert not run.missing(job, "telco", rows, ["test"])
    for file in job.folder.iterdir():
        file.unlink()
    kept = run.collect(job, "telco", rows)
    assert kept is not None and kept["metrics"]["test"]["auc"] == 0.0 and kept["seed"] == 1
    assert run.missing(job, "telco", rows, ["test", "file-1"])


@pytest.mark.parametrize("name", DATASETS)
def test_configs_are_ones_of_training(name: str) -> None:
    models = run.models_of(name)
    assert {"lr", "fm", "afm", "fuxictr-fm", "fuxictr-afm"} <= set(models)
    for model in models:
        if not model.startswith(jobs.PEER):
            config = TrainConfig.load(CONFIGS / f"{name}-{model}.yaml")
            assert (config.validation is None) == (name == "telco")
    for check in DATASETS[name].checks:
        assert check.metric in DATASETS[name].metrics


def test_other_code_is_another_result(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "afm.py").write_text("a = 1\n")
    (tmp_path / "table.py").write_text("b = 1\n")
    paths = tmp_path / "models", tmp_path / "table.py"
    first = jobs.code_digest(*paths)
    (tmp_path / "models" / "afm.pyc").write_text("compiled")
    assert jobs.code_digest(*paths) == first
    (tmp_path / "models" / "afm.py").write_text("a = 2\n")
    assert jobs.code_digest(*paths) != first
