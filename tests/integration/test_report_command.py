"""The page about a run: through the command, and for runs and data that lack what a page shows."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Walk, afm_ctr, last_json

from afm_ctr.distributed import SingleWorld
from afm_ctr.errors import UserError
from afm_ctr.report import report
from afm_ctr.training import TrainConfig, evaluate, train
from tests import prepared
from tests.runs import write_run


class Content(HTMLParser):
    """Headings of sections, rows of tables, all text, and what would be fetched from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.images = 0
        self.foreign: list[str] = []
        self._tag = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.images += tag == "img"
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith(("data:", "#")):
                self.foreign.append(f"{tag} {name}={value}")
        if tag in ("script", "link", "iframe"):
            self.foreign.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._tag == "h2":
            self.sections.append(data)
        if self._tag in ("td", "th"):
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), {"train": 200, "valid": 60, "test": 150})


def is_rounded(shown: str, value: float) -> bool:
    """Whether a cell is a value with some of its decimals."""
    decimals = len(shown.partition(".")[2])
    return 1 <= decimals <= 6 and shown == f"{value:.{decimals}f}"


def test_the_page_has_every_section_and_the_figures_of_evaluate(walked: Walk, tmp_path: Path) -> None:
    target = tmp_path / "pages" / "run.html"
    said = last_json(afm_ctr("report", "--model-dir", walked.run, "--output", target, "--json"))
    assert said["output"] == str(target) and said["split"] == "test"
    page = Content(target)
    assert page.sections == [
        "Metrics", "Learning curves", "Calibration", "AUC by field", "How far the attention weights may be trusted",
        "The strongest pairs", "Throughput", "Data", "Config", "Environment",
    ]  # fmt: skip
    assert not page.foreign
    assert f"Verdict: {said['verdict']}" in page.text and "a constant for all rows" in said["verdict"]
    assert page.images == 6  # curves, calibration, histogram, slices, bars, matrices
    found = last_json(afm_ctr("evaluate", "--model-dir", walked.run, "--data", walked.data, "--json"))
    for name, row in (("auc", "AUC"), ("log_loss", "log loss"), ("rmse", "RMSE")):
        low, high = page.row(row)[2].split(" to ")
        assert float(low) < float(page.row(row)[1]) < float(high)
        assert is_rounded(page.row(row)[1], found[name])
        assert said["metrics"][name]["value"] == found[name]
    for split, counts in walked.prepared["splits"].items():
        assert page.row(split)[1] == f"{counts['rows']:,}"
    assert page.row("model.factors") == ["model.factors", "4", ""]
    assert page.row("epochs") == ["epochs", "1", "3"]
    # After an epoch on few rows the pairs do nothing yet: no figure says how well attention ranks them.
    assert walked.prepared["schema_id"] in page.text and "The pairs hardly move the logit here" in page.text
    assert "rank correlation" not in page.text
    assert not list(target.parent.glob(".tmp-*")) and len(list(target.parent.iterdir())) == 1


def test_mistakes_are_one_line(data: Path, tmp_path: Path) -> None:
    result = afm_ctr("report", "--model-dir", tmp_path, code=2)
    assert "holds no training run" in result.stderr and len(result.stderr.splitlines()) == 1
    write_run(tmp_path / "run", prepared.schema())
    for arguments, words in (
        ({"data_dir": data, "split": "none"}, "split 'none' is not there; splits of this data set: train"),
        ({"slices": ["a", "z"]}, "--slices z: the schema has no such field; it has: a, b, c, d"),
        ({"data_dir": tmp_path}, "not a prepared data set"),
        ({"output": tmp_path}, "is a folder"),
        ({"data_dir": prepared.write(tmp_path / "other", resolved=prepared.schema(ids=7))}, "foreign schema"),
    ):
        with pytest.raises(UserError, match=words):
            report(tmp_path / "run", **arguments)  # type: ignore[arg-type]


def of(run: Path, *arguments: Any, **named: Any) -> Content:
    return Content(Path(report(run, *arguments, **named).output))


def test_a_trained_run_with_groups_and_weights(data: Path, tmp_path: Path) -> None:
    settings = TrainConfig.load(None, ["model={name: fm, factors: 2}", "batch_size=64", "epochs=3"])
    summary = train(data, tmp_path / "run", settings, SingleWorld(), progress="none")
    page = of(tmp_path / "run", data, slices=["a"])
    assert summary.last is not None
    found = evaluate(data, "test", tmp_path / "run", SingleWorld())
    assert is_rounded(page.row("group AUC")[1], found["group_auc"])
    assert "150 rows, weighted" in page.text
    constant = page.row("log loss of a constant: the split's share of positives")[1]
    assert is_rounded(constant, found["constant_log_loss"])
    assert f"{summary.last['val_constant_log_loss']:.6f} in validation" in page.text
    assert f"{found['groups_used']} groups with both classes" in page.text
    assert [row[0] for row in page.rows if row and row[0] in "123" and len(row) == 11] == ["1", "2", "3"]
    assert "has no attention" in page.text
    again = (tmp_path / "run/report.html").read_bytes()
    assert report(tmp_path / "run", data, slices=["a"]).split == "test"
    assert (tmp_path / "run/report.html").read_bytes() == again, "equal runs, equal pages"


def test_a_baseline_on_the_same_rows(data: Path, tmp_path: Path) -> None:
    own, other = tmp_path / "run", tmp_path / "lr"
    write_run(own, prepared.schema())
    write_run(other, prepared.schema(), {"name": "lr"})
    summary = report(own, data, baseline=other)
    page = Content(Path(summary.output))
    figures = [evaluate(data, "test", run, SingleWorld()) for run in (own, other)]
    assert summary.baseline is not None and summary.baseline["model"] == "lr"
    gains = summary.baseline["better_by"]
    assert gains["log_loss"]["value"] == pytest.approx(figures[1]["log_loss"] - figures[0]["log_loss"])
    assert gains["auc"]["value"] == pytest.approx(figures[0]["auc"] - figures[1]["auc"])
    assert f" {other} (model lr), " in summary.verdict and f"Compared with {other}" in page.text
    write_run(tmp_path / "squared", prepared.schema(), loss="squared")
    write_run(tmp_path / "foreign", prepared.schema(ids=7))
    bare = prepared.write(tmp_path / "bare", {"test": 40}, labelled=False, labels=None)
    for name, folder, words in (
        ("squared", data, "trained on squared loss, this run on log loss"),
        ("foreign", data, "--baseline .*foreign: foreign schema"),
        ("nowhere", data, "holds no training run"),
        ("lr", bare, "no labels to compare by"),
        ("lr", None, "no rows to compare on"),
    ):
        with pytest.raises(UserError, match=words):
            report(own, folder, baseline=tmp_path / name)


def test_a_model_without_pairs_validation_or_history(data: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", prepared.schema(), {"name": "lr"})
    page = of(tmp_path / "run", data)
    assert "Explanations" in page.sections and "has no pairs to explain" in page.text
    assert "No epoch has ended yet" in page.text and "no epoch was validated" in page.text
    page = of(tmp_path / "run")
    assert page.sections == ["Metrics", "Learning curves", "Throughput", "Data", "Config", "Environment"]
    assert "There is no figure of the model" in page.text and "AUC" not in page.text


def test_squared_loss_and_real_labels(data: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "squared", prepared.schema(), loss="squared")
    page = of(tmp_path / "squared", data)
    assert page.row("AUC") and "RMSE is on the scale of -1 and 1" in page.text
    assert "nothing to calibrate" in page.text and "log loss" not in [row[0] for row in page.rows if row]
    real = prepared.schema(label={"column": "label", "kind": "real"})
    folder = prepared.write(tmp_path / "real-data", {"train": 50, "valid": 40}, real)
    write_run(tmp_path / "real", real, loss="squared")
    page = of(tmp_path / "real", folder)
    assert "RMSE by field" in page.sections and not [row for row in page.rows if row and row[0] == "AUC"]
    assert re.search("judged on split valid", page.text), "there is no test split"


def test_unlabelled_rows_one_class_and_no_split(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, prepared.schema())
    folder = prepared.write(tmp_path / "bare", {"test": 40}, labelled=False, labels=None)
    page = of(run, folder)
    assert "The split has no labels: 40 rows were scored" in page.text and "The strongest pairs" in page.sections
    folder = prepared.write(tmp_path / "negative", {"test": 40}, labels=np.zeros(40, np.float32))
    page = of(run, folder)
    assert "AUC is not defined: all rows are negative." in page.text
    assert page.row("log loss")[1] and "all negative" in page.text
    folder = prepared.write(tmp_path / "train-only", {"train": 40})
    page = of(run, folder)
    assert "no rows in a split test or valid; its splits: train (40 rows)" in page.text
    assert of(run, folder, "train").row("AUC")
