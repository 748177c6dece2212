"""Confidence intervals against slow direct formulas, against the bootstrap, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from afm_ctr.metrics import Interval, auc_gain, auc_interval, effective_rows, mean_interval, ratio_interval, wilson

Z = 1.959963984540054


def _rows(seed: int, count: int = 400, levels: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(float)
    scores = np.round((labels + rng.normal(0, 1.2, count)) * levels / 6)  # many ties
    return labels, scores, rng.integers(1, 4, count).astype(float)


def _direct(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """DeLong's AUC and standard error from the whole matrix of comparisons."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    won = np.array([[1.0 if p > n else 0.5 if p == n else 0.0 for n in negative] for p in positive])
    v10, v01 = won.mean(axis=1), won.mean(axis=0)
    return won.mean(), math.sqrt(v10.var(ddof=1) / len(positive) + v01.var(ddof=1) / len(negative))


@pytest.mark.parametrize("seed", [1, 2])
def test_delong_is_the_direct_formula(seed: int) -> None:
    labels, scores, _ = _rows(seed)
    value, error = _direct(labels, scores)
    found = auc_interval(labels, scores)
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.low == pytest.approx(value - Z * error, rel=1e-12)
    assert found.high == pytest.approx(value + Z * error, rel=1e-12)


def test_weighted_delong_has_the_weighted_auc_and_its_bootstrap_spread() -> None:
    labels, scores, weights = _rows(3, count=600)
    found = auc_interval(labels, scores, weights)
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), rel=1e-12)
    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == c) for c in (0, 1)]
    drawn = []
    for _ in range(400):
        chosen = np.concatenate([rng.choice(rows, rows.size) for rows in classes])
        drawn.append(auc_interval(labels[chosen], scores[chosen], weights[chosen]).value)  # type: ignore[union-attr]
    assert (found.high - found.low) / (2 * Z) == pytest.approx(np.std(drawn), rel=0.12)
    unchanged = auc_interval(np.r_[labels, 1], np.r_[scores, -99], np.r_[weights, 0])
    assert unchanged == found, "a row of weight 0 does not count"


def test_the_interval_of_an_auc_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = 0.5 * (1 + math.erf(1 / 2))  # P(X < Y) of N(0, 1) and N(1, 1)
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        scores = np.r_[rng.normal(0, 1, 80), rng.normal(1, 1, 50)]
        found = auc_interval(np.repeat([0, 1], [80, 50]), scores)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.90 < covered / 300 < 0.985


def test_the_difference_of_two_aucs_is_that_of_pairs_of_the_same_rows() -> None:
    labels, scores, weights = _rows(4, count=600)
    others = scores + np.random.default_rng(8).normal(0, 3, scores.size)
    found = auc_gain(labels, scores, others, weights)
    assert found is not None and found.low is not None and found.high is not None
    both = [roc_auc_score(labels, some, sample_weight=weights) for some in (scores, others)]
    assert found.value == pytest.approx(both[0] - both[1], rel=1e-9)
    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == c) for c in (0, 1)]
    drawn = []
    for _ in range(400):
        chosen = np.concatenate([rng.choice(rows, rows.size) for rows in classes])
        drawn.append(auc_gain(labels[chosen], scores[chosen], others[chosen], weights[chosen]).value)  # type: ignore[union-attr]
    half = (found.high - found.low) / 2
    assert half / Z == pytest.approx(np.std(drawn), rel=0.12)
    apart = [auc_interval(labels, some, weights) for some in (scores, others)]
    assert half < max((one.high - one.low) / 2 for one in apart), "rows that both find hard say nothing of either"  # type: ignore[union-attr, operator]
    assert auc_gain(labels, scores, scores) == Interval(0.0, None, None)
    assert auc_gain([1, 1], [0.1, 0.2], [0.2, 0.1]) is None


def test_an_auc_without_both_classes_or_without_spread() -> None:
    assert auc_interval([1, 1], [0.1, 0.2]) is None
    assert auc_interval([], []) is None
    assert auc_interval([0, 0, 1], [1, 3, 2]) == Interval(0.5, None, None), "one positive"
    assert auc_interval([0, 0, 1, 1], [1, 2, 3, 4]) == Interval(1.0, None, None), "apart"
    assert auc_interval([0, 0, 1, 1], [1, 1, 1, 1]) == Interval(0.5, None, None), "all equal"


def test_a_mean_is_the_textbook_interval_and_rows_of_weight_0_do_not_count() -> None:
    values = np.random.default_rng(6).normal(3, 2, 50)
    half = Z * values.std(ddof=1) / math.sqrt(50)
    expected = (values.mean(), values.mean() - half, values.mean() + half)
    assert mean_interval(values) == pytest.approx(expected, rel=1e-12)
    assert mean_interval(np.r_[values, 1e9], np.r_[np.full(50, 2.0), 0.0]) == pytest.approx(expected, rel=1e-12)
    assert mean_interval([4.0]) == Interval(4.0, None, None)
    assert mean_interval([4.0], [0.0]) is None
    assert mean_interval([0.1] * 7) == Interval(pytest.approx(0.1), None, None)


def test_a_ratio_has_its_bootstrap_spread() -> None:
    rng = np.random.default_rng(7)
    p = rng.uniform(0.05, 0.6, 900)
    y = (rng.random(900) < p).astype(float)
    found = ratio_interval(p, y)
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == p.sum() / y.sum()
    drawn = [p[c].sum() / y[c].sum() for c in rng.integers(0, 900, (800, 900))]
    assert (found.high - found.low) / (2 * Z) == pytest.approx(np.std(drawn), rel=0.1)
    assert ratio_interval([0.2, 0.3], [0, 0]) is None


def test_wilson() -> None:
    # The roots of |x - 0.3| = z sqrt(x (1 - x) / 20).
    found = wilson(0.3, 20)
    for end in (found.low, found.high):
        assert end is not None and abs(end - 0.3) == pytest.approx(Z * math.sqrt(end * (1 - end) / 20), rel=1e-12)
    assert wilson(0.0, 10).low == 0.0 and 0.2 < (wilson(0.0, 10).high or 0) < 0.3
    assert wilson(1.0, 10).high == 1.0
    assert wilson(0.5, 0) == Interval(0.5, None, None)


def test_effective_rows() -> None:
    assert effective_rows(np.full(8, 3.0)) == pytest.approx(8)
    assert effective_rows(np.array([1.0, 0.0])) == 1.0
    assert effective_rows(np.array([])) == 0.0
