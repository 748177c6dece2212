"""The parts of a report that need no model: slices, intervals of a split, the folder of a run, sections."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from afm_ctr.errors import UserError
from afm_ctr.metrics import Evaluation, Interval, auc_gain, gain_on_constant, mean_interval
from afm_ctr.report import about, figures, quality, slices
from afm_ctr.report.baseline import Baseline
from afm_ctr.report.conclusion import compared, conclusion
from afm_ctr.report.record import Judged, RunRecord
from afm_ctr.report.scored import ScoredSplit
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training import TrainConfig
from afm_ctr.training.incremental import check_origin
from afm_ctr.training.verdict import how_trained
from afm_ctr.webpage import Page
from tests.runs import every_kind

ROWS = 500


def scored(loss: str = "log", kind: str = "binary", labelled: bool = True, **changes: Any) -> ScoredSplit:
    """Rows with scores that know a little of their labels, and cells of the schema with fields of every kind."""
    rng, schema = np.random.default_rng(4), every_kind()
    labels = (rng.random(ROWS) < 0.3).astype(np.float32)
    scores = (labels + rng.normal(-1, 1, ROWS)).astype(np.float32)
    weights = rng.integers(1, 4, ROWS).astype(np.float32)
    if kind == "real":
        labels = (3 * scores + rng.normal(0, 1, ROWS)).astype(np.float32)
    evaluation = Evaluation(loss, kind)  # type: ignore[arg-type]
    evaluation.update(labels, scores, weights=weights)
    known: dict[str, Any] = {
        "labels": labels if labelled else None,
        "scores": scores,
        "weights": weights,
        "figures": evaluation.result() if labelled else None,
        "sampled": np.arange(ROWS),
        "slots": tuple(range(schema.num_slots)),
        "ids": _ids(rng, schema),
        "values": rng.normal(0, 1, (ROWS, schema.num_slots)).astype(np.float32),
    }
    return ScoredSplit(loss, kind, group_interval=None, **{**known, **changes})


def _ids(rng: np.random.Generator, schema: ResolvedSchema) -> np.ndarray:
    """Random cells: each space's first local ids; some absent, or missing where the field has an id for that."""
    columns = []
    for slot in schema.slots:
        field = next(field for field in schema.spec.fields if field.name == slot.field)
        space = schema.spec.space_of(field).name
        size = min(sum(r.size for r in schema.ranges_of(space)), 15)
        ids = np.asarray(schema.global_id(space, np.minimum(rng.geometric(0.2, ROWS) - 1, size - 1)))
        own = [r.start for r in schema.ranges_of(f"{slot.field}.missing")]
        columns.append(np.where(rng.random(ROWS) < 0.1, own[0] if own else 0, ids))
    return np.stack(columns, axis=1).astype(np.int32)


def test_the_slices_of_a_field_with_one_slot_are_its_rows_each_once() -> None:
    split, schema = scored(), every_kind()
    names = slices.chosen_fields(schema, None)
    found = slices.slices_of(split, schema, names)
    assert list(found) == names == [field.name for field in schema.spec.fields]
    for name in names:
        total = sum(one.rows for one in found[name])
        assert total == ROWS if name != "tags" else total > ROWS, name
        assert len(found[name]) <= slices.MOST + 3
    assert [one.name for one in found["price"]] == ["[-inf, 0.5)", "[0.5, 1.5)", "[1.5, 10)", "[10, inf)", "absent"]
    assert [one.name for one in found["weekday"]][:2] == ["Monday", "Tuesday"]
    words = [one.name for one in found["pair"]]
    assert {"unknown word", "news", "café", "a.com & h1", "missing"} <= set(words) and words.count(
        "unknown word"
    ) == 1
    assert found["site"][-1].name == "missing" and found["Age"][-1].name == "absent"
    hashes = [one for one in found["site"] if one.name.startswith("hash ")]
    assert len(hashes) == slices.MOST and [o.rows for o in hashes] == sorted([o.rows for o in hashes], reverse=True)
    assert found["site"][slices.MOST].name == "others (5 ids)"


def test_a_slice_is_judged_by_its_own_rows() -> None:
    split, schema = scored(), every_kind()
    ordered = slices.slices_of(split, schema, ["price"])["price"]
    place = next(slot.index for slot in schema.slots if slot.field == "price")
    first = split.ids[:, place] == schema.global_id("price", 0)
    one = ordered[0]
    assert one.rows == first.sum() and one.positives == split.labels[first].sum()  # type: ignore[index]
    assert one.quality is not None
    labels, weights = split.labels[first], split.weights[first]  # type: ignore[index]
    assert one.quality.value == pytest.approx(roc_auc_score(labels, split.scores[first], sample_weight=weights))
    assert one.predicted == pytest.approx(np.average(split.predictions[first], weights=weights))
    assert one.observed == pytest.approx(np.average(labels, weights=weights))


def test_numbers_are_shown_in_the_unit_of_the_log() -> None:
    split, schema = scored(), every_kind()
    facts = schema.statistics["Age"]
    raw = np.linspace(0, 80, ROWS)
    values = split.values.copy()
    values[:, 0] = (np.log1p(raw) - facts.mean) / facts.std
    ids = split.ids.copy()
    ids[:, 0] = schema.global_id("Age", 0)
    found = slices.slices_of(scored(ids=ids, values=values), schema, ["Age"])["Age"]
    assert len(found) == slices.MOST and {one.rows for one in found} == {ROWS // slices.MOST}
    low, _, high = found[-1].name.partition(" to ")
    assert float(low) == pytest.approx(72.14, abs=0.1) and float(high) == pytest.approx(80, abs=0.01)


def test_a_slice_of_one_class_and_a_field_that_is_not_there_say_so() -> None:
    split = scored(labels=np.zeros(ROWS, np.float32))
    found = slices.slices_of(split, every_kind(), ["price"])["price"]
    assert all(one.quality is None and one.why_not == "all negative" for one in found)
    with pytest.raises(UserError, match=r"--slices nobody: the schema has no such field; it has: Age, site"):
        slices.chosen_fields(every_kind(), ["Age", "nobody"])


def test_intervals_stand_around_the_figures_of_evaluate() -> None:
    split = scored()
    found, evaluated = quality.intervals_of(split), split.figures
    assert evaluated is not None
    beside = ["constant_log_loss", "normalised_entropy"]
    assert list(found) == ["auc", "log_loss", *beside, "rmse", "accuracy", "calibration", "ece", "positive_rate"]
    for name in ("auc", "log_loss", *beside, "rmse", "calibration", "ece", "positive_rate"):
        assert found[name].value == evaluated[name]
    for name in set(found) - {"ece", *beside}:
        low, high = found[name].low, found[name].high
        assert low is not None and high is not None and low < found[name].value < high, name
    right = (split.predictions >= 0.5) == (split.labels == 1)
    assert found["accuracy"].value == pytest.approx(np.average(right, weights=split.weights))
    expected = log_loss(split.labels, split.predictions, sample_weight=split.weights)
    assert found["log_loss"].value == pytest.approx(expected)
    middle = quality.mean_interval(np.logaddexp(0, np.where(split.labels == 1, -1, 1) * split.scores), split.weights)
    assert middle is not None and middle.value == pytest.approx(expected), "ends are around the figure itself"


@pytest.mark.parametrize(
    ("loss", "kind", "names"),
    [
        ("squared", "binary", ["auc", "rmse", "constant_rmse", "accuracy", "positive_rate"]),
        ("squared", "real", ["rmse", "constant_rmse"]),
    ],
)
def test_only_what_loss_and_label_define_is_told(loss: str, kind: str, names: list[str]) -> None:
    assert list(quality.intervals_of(scored(loss, kind))) == names


@pytest.mark.parametrize(
    ("interval", "decimals", "said"),
    [
        (Interval(0.786123, 0.765, 0.807), 3, "0.786 ± 0.021"),
        (Interval(0.78612345, 0.786, 0.78624), 5, "0.78612 ± 0.00012"),
        (Interval(12.3456, 2.0, 22.0), 1, "12.3 ± 10.0"),
        (Interval(0.5, 0.5, 0.5), 4, "0.5000 ± 0.0000"),
        (Interval(0.5, None, None), 4, "0.5000"),
    ],
)
def test_a_figure_has_the_digits_that_its_interval_leaves(interval: Interval, decimals: int, said: str) -> None:
    assert (interval.decimals, interval.around()) == (decimals, said)


@pytest.mark.parametrize("loss", ["log", "squared"])
def test_the_gain_on_the_constant_is_that_of_the_same_rows(loss: str) -> None:
    split = scored(loss)
    gain = gain_on_constant(loss, split.targets, split.scores, split.weights)
    assert gain is not None and gain.low is not None and split.figures is not None
    figures_ = split.figures
    wanted = (
        figures_["constant_log_loss"] - figures_["log_loss"]
        if loss == "log"
        else figures_["constant_rmse"] ** 2 - figures_["rmse"] ** 2
    )
    assert gain.value == pytest.approx(wanted, rel=1e-6)
    assert gain.low < gain.value < gain.high


def test_scores_that_differ_in_their_last_bit_have_a_histogram() -> None:
    sure = np.array([1 - 2.0**-52, 1 - 2.0**-53])
    assert figures.histogram(sure, None, "probability", np.ones(2)).axes


def test_the_verdict_says_better_worse_or_neither() -> None:
    split, config = scored(), TrainConfig()
    rate = np.average(split.labels, weights=split.weights)
    flat = np.full(ROWS, np.log(rate / (1 - rate)), np.float32)
    noise = np.random.default_rng(1).normal(0, 1, ROWS).astype(np.float32)
    for scores, words in (
        (flat + 2 * (split.labels - 0.3), "Better than a constant"),
        (flat + 0.1 * noise, "No better than a constant for all rows, as far as these rows can tell"),
        (flat - 2 * (split.labels - 0.3), "Worse than a constant"),
    ):
        one = scored(scores=scores.astype(np.float32))
        said = conclusion(one, quality.intervals_of(one), config, [])
        assert words in said and said.startswith("AUC 0.") and f"on {ROWS} rows." in said
    assert conclusion(scored(labelled=False), {}, config, []) == ""
    assert gain_on_constant("log", np.ones(3), np.ones(3)) is None and gain_on_constant("log", [], []) is None
    assert gain_on_constant("log", [1, 1, 0], [0.0, 1, 2], [1, 1, 1e-20]) is None
    assert conclusion(None, {}, config, []) == ""


def _baseline(own: ScoredSplit, scores: np.ndarray) -> Baseline:
    other = scored(scores=scores.astype(np.float32))
    assert own.labels is not None
    loss_gain = mean_interval(other.losses - own.losses, own.weights)
    auc = auc_gain(own.labels, own.scores, other.scores, own.weights)
    return Baseline("runs/lr", "lr", "step-000009", other, loss_gain, auc)


def test_a_baseline_is_compared_row_by_row() -> None:
    split = scored()
    noise = np.random.default_rng(2).normal(0, 1, ROWS)
    found = _baseline(split, 0.9 * split.scores + 0.02 * noise)
    gain = found.loss_gain
    assert gain is not None and gain.low is not None and gain.high is not None and split.figures is not None
    other = log_loss(split.labels, found.scored.predictions, sample_weight=split.weights)
    assert gain.value == pytest.approx(other - split.figures["log_loss"])
    alone = mean_interval(split.losses, split.weights)
    assert alone is not None and gain.high - gain.low < (alone.high - alone.low) / 5  # type: ignore[operator]
    metrics = quality.intervals_of(split)
    said = conclusion(split, metrics, TrainConfig(), [], found)
    assert re.search(r"(Better than|Worse than|No better than) runs/lr \(model lr\),", said)
    page = Page("x")
    quality.add_baseline(page, split, found)
    cells = re.findall("<td[^>]*>([^<]*)</td>", page.html())
    assert cells[0] == "AUC" and cells[5] == "log loss" and len(cells) == 10
    assert float(cells[8]) == pytest.approx(-gain.value, abs=10**-gain.decimals), (
        "a difference of figures has its sign"
    )
    assert float(cells[9].partition(" to ")[0]) < float(cells[8]) < float(cells[9].partition(" to ")[2])
    better = found.to_json()["better_by"]
    assert better["log_loss"]["value"] == gain.value and set(better) == {"auc", "log_loss"}
    same = _baseline(split, split.scores)
    assert compared(same.loss_gain, "log", "lr") == "The same log loss as lr on every row."
    assert compared(None, "log", "lr") == "" and compared(Interval(0.1, None, None), "log", "lr") == ""


@pytest.mark.parametrize(
    ("values", "losses", "words"),
    [
        ([0.6, 0.7, 0.8], [0.5, 0.4, 0.3], "Under-trained: val_auc was still improving in the last of 3 epochs."),
        ([0.6, 0.8, 0.7], [0.5, 0.4, 0.3], "Over-trained after epoch 2 of 3: the training loss fell further, 0.4000"),
        ([0.6, 0.8, 0.7], [0.5, 0.4, 0.4], "Trained long enough: val_auc was best in epoch 2 of 3."),
        ([0.6], [0.5], ""),
        ([None, 0.6], [0.5, 0.4], ""),
    ],
)
def test_more_epochs_or_fewer(values: list[float | None], losses: list[float], words: str) -> None:
    config = TrainConfig.model_validate({"validation": {"split": "valid", "metric": "auc"}})
    history = [{"val_auc": value, "loss": loss} for value, loss in zip(values, losses, strict=True)]
    said = how_trained(history, config)
    assert said.startswith(words) and bool(said) == bool(words)


def test_calibration_points_count_every_row_once() -> None:
    split = scored()
    points = quality.calibration_points(split)
    assert len(points) == 10
    assert sum(point.weight for point, _, _ in points) == split.weights.sum()
    assert sum(rows for _, _, rows in points) == split.weights.size
    for point, interval, rows in points:
        inside = (split.predictions >= point.low) & (split.predictions <= point.high)
        assert rows == inside.sum()
        effective = split.weights[inside].sum() ** 2 / np.square(split.weights[inside]).sum()
        assert interval.value == point.observed
        assert interval == pytest.approx(quality.wilson(point.observed, float(effective)))


def test_sections_without_labels_or_probabilities_say_so() -> None:
    page = Page("x")
    split = scored(labelled=False)
    quality.add_metrics(page, split, {})
    quality.add_calibration(page, split)
    quality.add_slices(page, split, slices.slices_of(split, every_kind(), ["price"]), named=True)
    text = page.html()
    assert "The split has no labels: 500 rows were scored" in text
    assert "predictions cannot be compared" in text and "the slices show the mean prediction only" in text
    page = Page("x")
    quality.add_calibration(page, scored("squared", "real"))
    assert "nothing to calibrate" in page.html()


def _run(folder: Path, **run: Any) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(TrainConfig().to_yaml())
    (folder / "run.json").write_text(json.dumps({"data": str(folder / "gone"), **run}))
    return folder


def test_the_record_of_a_run_under_way_has_no_history(tmp_path: Path) -> None:
    record = RunRecord.load(_run(tmp_path / "run"))
    assert record.history == [] and record.sessions == [record.run]
    judged = Judged.find(record, every_kind(), None, None)
    assert judged.split is None and "not a prepared data set" in judged.why_not and "--data" in judged.why_not
    with pytest.raises(UserError, match="not a prepared data set"):
        Judged.find(record, every_kind(), tmp_path / "gone", None)
    page = Page("x")
    about.add_data(page, record, judged)
    about.add_curves(page, record, None)
    about.add_speed(page, record)
    about.add_surroundings(page, record)
    text = page.html()
    assert "No epoch has ended yet" in text and "the speed is not known" in text and "not recorded" in text


def test_no_run_and_a_damaged_one_are_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training run"):
        RunRecord.load(tmp_path)
    folder = _run(tmp_path / "run")
    (folder / "history.jsonl").write_text('{"epoch": 0}\n')
    for name, read in (("history.jsonl", RunRecord.load), ("run.json", RunRecord.load), ("run.json", _taken_up)):
        kept = (folder / name).read_bytes()
        for damage in (
            b'{"epoch": 0}\nnonsense\n',
            kept[: len(kept) // 2],
            b"[1]\n",
            b"null",
            b"\xff",
            b"[" * 100_000,
        ):
            (folder / name).write_bytes(damage)
            with pytest.raises(UserError, match=f"{name} is damaged"):
                read(folder)
        (folder / name).write_bytes(kept)


def _taken_up(folder: Path) -> None:
    check_origin(folder, None, begun=True)


def test_what_differs_from_the_default_stands_out() -> None:
    page = Page("x")
    about.add_config(page, TrainConfig(epochs=7, early_stopping={"patience": 4}))  # type: ignore[arg-type]
    marked = [line for line in page.html().splitlines() if 'class="marked"' in line]
    keys = [line.split("<td>")[1].partition("<")[0] for line in marked]
    assert keys == ["epochs", "early_stopping.patience", "early_stopping.min_delta"]


def test_curves_have_a_panel_for_what_the_history_holds() -> None:
    history = [
        {"epoch": 0, "step": 5, "loss": 0.7, "learning_rate": 0.1, "rows_per_second": None, "val_auc": None},
        {"epoch": 1, "step": 9, "loss": 0.6, "learning_rate": 0.1, "rows_per_second": 9.0, "val_auc": 0.6},
    ]
    figure = figures.curves(history, 1)
    titles = [axis.get_title() for axis in figure.axes if axis.axison]
    assert titles == ["loss", "AUC, validation", "learning rate", "training speed"]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[2.0, 0.6]]
