"""Exact metrics against scikit-learn and against sums done by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from afm_ctr.errors import UserError
from afm_ctr.metrics import (
    RMSE,
    Calibration,
    Constant,
    Evaluation,
    ExactAUC,
    GroupAUC,
    LogLoss,
    constant_log_loss,
    sigmoid,
    signed,
)


def rows(n: int, seed: int = 0, levels: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores with many ties, weights, groups."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, n) / 4.0 - 1
    labels = (rng.random(n) < sigmoid(scores)).astype(np.float32)
    return (
        labels,
        scores.astype(np.float32),
        rng.random(n).astype(np.float32) + 0.1,
        rng.integers(0, max(1, n // 5), n),
    )


def test_auc_by_hand() -> None:
    auc = ExactAUC()
    # pairs (positive, negative): 0.8>0.3, 0.8=0.8 (a half), 0.5>0.3, 0.5<0.8 -> 2.5 of 4
    auc.update([1, 0, 1, 0], [0.8, 0.8, 0.5, 0.3])
    assert auc.result() == 2.5 / 4


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 10_000), parts=st.integers(1, 4))
def test_auc_with_ties_and_weights_equals_scikit_learn_however_it_is_split(n: int, seed: int, parts: int) -> None:
    labels, scores, weights, _ = rows(n, seed)
    labels[0], labels[1] = 0, 1
    merged = ExactAUC()
    for part in np.array_split(np.arange(n), parts):
        one = ExactAUC()
        for row in np.array_split(part, 2):
            one.update(labels[row], scores[row], weights[row])
        merged.merge(one.state())
    expected = roc_auc_score(labels, scores, sample_weight=weights.astype(np.float64))
    assert merged.result() == pytest.approx(expected, rel=1e-9)


def test_auc_compacts_without_changing_the_result() -> None:
    labels, scores, weights, _ = rows(400_000, 3, levels=1000)
    auc = ExactAUC()
    for start in range(0, labels.size, 50_000):
        part = slice(start, start + 50_000)
        auc.update(labels[part], scores[part], weights[part])
    assert auc.state()["scores"].size == 1000
    assert auc.table.rows == 400_000
    expected = roc_auc_score(labels, scores, sample_weight=weights.astype(np.float64))
    assert auc.result() == pytest.approx(expected, rel=1e-12)


def test_one_class_has_no_auc_and_says_why() -> None:
    auc = ExactAUC()
    assert math.isnan(auc.result()) and auc.reason() == "no rows"
    auc.update([0, 0], [0.1, 0.2])
    assert math.isnan(auc.result()) and auc.reason() == "all rows are negative"
    only = ExactAUC()
    only.update([1], [0.5])
    assert only.reason() == "all rows are positive"
    auc.merge(only.state())
    assert auc.reason() is None and auc.result() == 1.0


def test_padding_does_not_count_whatever_it_holds() -> None:
    auc = ExactAUC()
    auc.update([1, 0, math.nan, 7], [2.0, 1.0, math.nan, 0.0], [1, 1, 0, 0])
    assert auc.result() == 1.0 and auc.table.rows == 2


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "word"),
    [
        ([0, 1], [math.nan, 1], None, "1 of 2 scores are not finite"),
        ([0, 1], [-math.inf, 1], None, "1 of 2 scores are not finite"),
        ([0, math.nan], [0, 1], None, "have no label"),
        ([0, 2], [0, 1], None, "a label is 2"),
        ([0, 1], [0, 1], [1, -1], "weight -1"),
        ([0, 1], [0, 1], [1, math.inf], "weight inf"),
        ([0, 1], [0, 1, 2], None, "2 labels, 3 scores"),
    ],
)
def test_bad_rows_are_named(labels: list[float], scores: list[float], weights: list[float] | None, word: str) -> None:
    with pytest.raises(UserError, match=word):
        ExactAUC().update(labels, scores, weights)


def test_group_auc_by_hand() -> None:
    metric = GroupAUC()
    # group 7: AUC 1, weight 2; group 8: 0.5 over weight 1+1+2; group 9: one class; one row without a group
    metric.update(
        [1, 0, 1, 0, 0, 1, 1],
        [0.9, 0.1, 0.5, 0.5, 0.5, 0.4, 0.3],
        [1, 1, 1, 1, 2, 5, 1],
        [7, 7, 8, 8, 8, 9, 7],
        [True, True, True, True, True, True, False],
    )
    assert metric.result() == pytest.approx((2 * 1.0 + 4 * 0.5) / 6, rel=1e-15)
    assert metric.counts() == {"groups_used": 2, "groups_left_out": 1, "rows_without_group": 1}


def test_group_auc_equals_scikit_learn_group_by_group_after_a_merge() -> None:
    labels, scores, weights, groups = rows(3000, 5)
    groups = groups.astype(np.int64) * -(2**50)
    halves = [GroupAUC(), GroupAUC()]
    for number, half in enumerate(halves):
        half.update(labels[number::2], scores[number::2], weights[number::2], groups[number::2])
    halves[0].merge(halves[1].state())
    total, mass = 0.0, 0.0
    for group in np.unique(groups):
        of = groups == group
        if len(set(labels[of])) == 2:
            weight = weights[of].astype(np.float64)
            total += roc_auc_score(labels[of], scores[of], sample_weight=weight) * weight.sum()
            mass += weight.sum()
    assert halves[0].result() == pytest.approx(total / mass, rel=1e-12)


def test_group_auc_says_why_not() -> None:
    metric = GroupAUC()
    assert metric.reason() == "no rows" and math.isnan(metric.result())
    metric.update([1], [0.0], None, [3], [False])
    assert metric.reason() == "no row has a group"
    metric.update([1], [0.0], None, [3])
    assert metric.reason() == "no group has both classes" and math.isnan(metric.result())


def test_log_loss_from_logits_is_exact_where_probabilities_saturate() -> None:
    labels, logits, weights, _ = rows(500, 1)
    metric = LogLoss()
    metric.update(labels, logits, weights)
    expected = log_loss(labels, sigmoid(logits), sample_weight=weights.astype(np.float64))
    assert metric.result() == pytest.approx(expected, rel=1e-12)
    far = LogLoss()
    far.update([0, 1], [800.0, 800.0])
    assert far.result() == 400.0
    near = LogLoss()
    near.update([1], [40.0])
    assert near.result() == pytest.approx(math.exp(-40), rel=1e-12)


def test_log_loss_from_probabilities() -> None:
    metric = LogLoss()
    metric.update([1, 0, 0], probabilities=[0.5, 0.25, 1.0], weights=[1, 1, 2])
    assert metric.result() == pytest.approx((math.log(2) - math.log(0.75) - 2 * math.log(1e-15)) / 4)
    with pytest.raises(UserError, match="outside"):
        metric.update([1, 0], probabilities=[0.5, 1.5])
    with pytest.raises(UserError, match=r"a probability is -0\.25, outside"):
        metric.update([1, 0], probabilities=[0.5, -0.25])


def test_rmse_on_the_signed_scale() -> None:
    metric = RMSE()
    metric.update(signed([1, 0]), [0.5, -1.0], [3, 1])
    assert metric.result() == pytest.approx(math.sqrt(3 * 0.25 / 4))
    assert math.isnan(RMSE().result()) and RMSE().reason() == "no rows"


def test_calibration_by_hand() -> None:
    metric = Calibration(bins=2)
    metric.update([0, 1, 0, 1], [0.1, 0.3, 0.6, 0.8])
    assert metric.result() == pytest.approx(1.8 / 2)
    low, high = metric.curve()
    assert low == pytest.approx((0.1, 0.3, 2, 0.2, 0.5)) and high == pytest.approx((0.6, 0.8, 2, 0.7, 0.5))
    assert metric.ece() == pytest.approx(0.5 * 0.3 + 0.5 * 0.2)
    with pytest.raises(UserError, match="outside"):
        metric.update([1], [-0.5])


def test_calibration_error_weighs_its_bins() -> None:
    """Two bins: one of weight 6 that is off by 1/2, one of weight 2 that is right. The plain mean would be 1/4."""
    metric = Calibration(bins=2)
    metric.update([1, 0, 1, 1], [0.25, 0.25, 1.0, 1.0], [4.5, 1.5, 1, 1])
    low, high = metric.curve()
    assert (low.weight, low.predicted, low.observed) == (6, 0.25, 0.75)
    assert (high.weight, high.predicted, high.observed) == (2, 1.0, 1.0)
    assert metric.ece() == 0.375


def test_calibration_keeps_equal_predictions_together_and_loses_no_weight() -> None:
    labels, logits, weights, _ = rows(1000, 2)
    metric = Calibration(bins=5)
    metric.update(labels, sigmoid(logits), weights)
    curve = metric.curve()
    assert sum(point.weight for point in curve) == pytest.approx(weights.astype(np.float64).sum())
    assert all(left.high < right.low for left, right in itertools.pairwise(curve))


def halves(**options: object) -> tuple[Evaluation, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One evaluation over all rows, and the states of two over half of them each."""
    labels, logits, weights, groups = rows(800, 9)
    whole, first, second = (Evaluation(**options) for _ in range(3))  # type: ignore[arg-type]
    for evaluation, part in ((whole, slice(None)), (first, slice(0, 300)), (second, slice(300, None))):
        evaluation.update(labels[part], logits[part], weights=weights[part], groups=groups[part])
    return whole, first.state(), second.state()


@pytest.mark.parametrize("loss", ["log", "squared"])
def test_evaluation_merges_exactly(loss: str) -> None:
    whole, first, second = halves(loss=loss)

    class TwoRanks:
        def allgather_object(self, obj: object) -> list[object]:
            return [first, second]

    merged = Evaluation(loss=loss).over(TwoRanks()).result()  # type: ignore[arg-type]
    expected = whole.result()
    assert merged.keys() == expected.keys() and merged["rows"] == 800 and not merged["reasons"]
    for name in ("auc", "group_auc", "rmse", "weight", "positive_rate"):
        assert merged[name] == pytest.approx(expected[name], rel=1e-12)
    assert merged["groups_used"] == expected["groups_used"]
    assert ("log_loss" in merged) == (loss == "log")
    if loss == "log":
        assert merged["ece"] == pytest.approx(expected["ece"], rel=1e-12)
        assert merged["calibration_curve"][0]["weight"] == pytest.approx(expected["calibration_curve"][0]["weight"])


def test_evaluation_of_one_class_reports_none_with_reasons() -> None:
    evaluation = Evaluation()
    evaluation.update([0, 0], [0.5, -0.5], groups=[1, 1])
    result = evaluation.result()
    assert result["auc"] is None and result["group_auc"] is None and result["calibration"] is None
    assert result["reasons"]["auc"] == "all rows are negative"
    assert result["log_loss"] > 0 and result["positive_rate"] == 0


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_one_class_whatever_the_weights_add_up_to(label: int) -> None:
    for seed in range(20):  # of some the parts of all rows' weight add up to more than the whole
        rng, evaluation = np.random.default_rng(seed), Evaluation()
        for _ in range(5):
            evaluation.update(np.full(50, label), rng.normal(size=50), weights=rng.random(50))
        result = evaluation.result()
        assert (result["positive_rate"], result["constant_log_loss"]) == (label, 0.0)
        assert result["normalised_entropy"] is None
        assert result["reasons"]["normalised_entropy"] == "all rows are of one class"


def test_evaluation_without_rows() -> None:
    result = Evaluation().result()
    assert result["rows"] == 0 and result["log_loss"] is None and result["reasons"]["rmse"] == "no rows"


def test_evaluation_of_real_labels_is_rmse_alone() -> None:
    evaluation = Evaluation(loss="squared", label="real")
    evaluation.update([3.0, 5.0], [3.0, 4.0])
    result = evaluation.result()
    assert result["rmse"] == pytest.approx(math.sqrt(0.5)) and "auc" not in result
    with pytest.raises(ValueError, match="binary"):
        Evaluation(loss="log", label="real")


def test_log_loss_of_a_constant_is_the_entropy() -> None:
    assert constant_log_loss(0.5) == pytest.approx(math.log(2), rel=1e-15)
    assert constant_log_loss(0.2) == pytest.approx(-0.2 * math.log(0.2) - 0.8 * math.log(0.8), rel=1e-15)
    assert constant_log_loss(1e-12) == pytest.approx(1e-12 * (1 - math.log(1e-12)), rel=1e-9)
    assert constant_log_loss(0.0) == constant_log_loss(1.0) == 0.0


def test_a_constant_is_corrected_as_a_model_is() -> None:
    # Half of the negatives are not there: a share of 1/4, odds of 1/3, stands for odds of 1/6, a probability of 1/7.
    found = constant_log_loss(0.25, math.log(0.5))
    assert found == pytest.approx(-0.25 * math.log(1 / 7) - 0.75 * math.log(6 / 7), rel=1e-15)


def test_log_loss_comes_with_the_constants() -> None:
    labels, scores, weights, _ = rows(300)
    evaluation = Evaluation()
    evaluation.update(labels, scores, weights=weights)
    result = evaluation.result()
    rate = float(np.dot(labels, weights.astype(float)) / weights.astype(float).sum())
    expected = log_loss(labels, np.full(300, rate), sample_weight=weights.astype(float))
    assert result["constant_log_loss"] == pytest.approx(expected, rel=1e-12)
    assert result["normalised_entropy"] == pytest.approx(result["log_loss"] / expected, rel=1e-12)
    constant = Evaluation()
    constant.update(labels, np.full(300, math.log(rate / (1 - rate))), weights=weights)
    assert constant.result()["normalised_entropy"] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_normalised_entropy_needs_both_classes(label: int) -> None:
    evaluation = Evaluation()
    evaluation.update(np.full(3, label), np.zeros(3))
    result = evaluation.result()
    assert (result["constant_log_loss"], result["normalised_entropy"]) == (0.0, None)
    assert result["reasons"]["normalised_entropy"] == "all rows are of one class"


def test_squared_loss_comes_with_the_constants_rmse() -> None:
    binary = Evaluation(loss="squared")
    binary.update([1, 0, 0, 0], np.zeros(4))
    assert binary.result()["constant_rmse"] == pytest.approx(math.sqrt(0.75), rel=1e-15)  # mean of the targets: -1/2
    real = Evaluation(loss="squared", label="real")
    real.update([1.0, 4.0, 99.0], np.zeros(3), weights=[2.0, 1.0, 0.0])
    assert real.result()["constant_rmse"] == pytest.approx(math.sqrt(2.0), rel=1e-15)
    assert "constant_log_loss" not in real.result()


def test_a_constant_merges_without_loss() -> None:
    rng = np.random.default_rng(3)
    targets, weights = 1e8 + rng.normal(0, 1, 400), rng.random(400)
    merged = Constant()
    for part in np.split(np.arange(400), [1, 150]):
        one = Constant()
        one.update(targets[part], weights[part])
        merged.merge(one.state())
    merged.merge(Constant().state())
    mean = math.fsum(targets * weights) / math.fsum(weights)
    assert merged.mean == pytest.approx(mean, rel=1e-15)
    assert merged.rmse() == pytest.approx(math.sqrt(np.average((targets - mean) ** 2, weights=weights)), rel=1e-6)
    assert math.isnan(Constant().rmse())
