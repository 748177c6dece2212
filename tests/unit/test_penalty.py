"""The penalty that is tried on a log's rows: the fits against scikit-learn, and what is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from afm_ctr.penalty import Design, TrialRows, best_c, fit, rows_to_try


def drawn(rows: int, deviation: float, seed: int = 0) -> TrialRows:
    """Two fields of 40 ids each, whose weights have this deviation; a third of the second field is absent."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(1, 41, (rows, 2)) + [0, 40]
    ids[draw.random(rows) < 1 / 3, 1] = 0
    weights = np.r_[0.0, draw.normal(0, deviation, 80)]
    labels = draw.random(rows) < 1 / (1 + np.exp(-weights[ids].sum(axis=1) + 0.5))
    return TrialRows(ids, np.where(ids > 0, 1.0, 9.9).astype(np.float32), labels)


@pytest.mark.parametrize("c", [0.01, 1.0, 30.0])
def test_weights_are_those_of_scikit_learn(c: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    draw = np.random.default_rng(1)
    matrix, weights = draw.normal(size=(300, 5)), draw.random(300)
    labels = (draw.random(300) < 1 / (1 + np.exp(-matrix[:, 0] - 1))).astype(float)
    found = fit(Design(np.tile(np.arange(5), (300, 1)), matrix, 5), labels, weights, c, np.zeros(6))
    model = linear_model.LogisticRegression(C=c, tol=1e-9, max_iter=1000).fit(matrix, labels, sample_weight=weights)
    np.testing.assert_allclose(found, [*model.coef_[0], *model.intercept_], atol=2e-3)


def test_a_design_is_a_sparse_matrix_with_a_column_of_ones() -> None:
    design = Design(np.array([[0, 2], [2, 2], [1, 0]]), np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]]), 3)
    dense = np.array([[1.0, 0, 2, 1], [0, 0, 7, 1], [5, 0, 0, 1]])
    np.testing.assert_array_equal(design.dot(np.array([1.0, 2, 3, 4])), dense @ [1, 2, 3, 4])
    np.testing.assert_array_equal(design.sums(np.array([1.0, 2, 3])), [1, 2, 3] @ dense)
    np.testing.assert_array_equal(design.take(np.array([True, False, True])).sums(np.ones(2)), [6, 0, 2, 2])


def test_c_grows_with_what_weights_say() -> None:
    assert best_c(drawn(3000, 0.0)) <= 0.01
    assert best_c(drawn(3000, 0.5)) in (0.1, 0.3)
    assert best_c(drawn(3000, 2.0)) in (1.0, 3.0, 10.0)


def test_ids_may_be_anywhere_and_absent_slots_say_nothing() -> None:
    rows = drawn(800, 1.0)
    far = TrialRows(np.where(rows.ids > 0, rows.ids * 10**12, 0), np.where(rows.ids > 0, rows.vals, 0), rows.labels)
    assert best_c(far) == best_c(rows)


def test_rows_of_weight_0_do_not_count() -> None:
    rows = drawn(800, 1.5)
    # Each row comes again with the other label, which would leave nothing to learn.
    twice = TrialRows(
        *(np.repeat(part, 2, axis=0) for part in (rows.ids, rows.vals)),
        np.stack([rows.labels, ~rows.labels], 1).ravel(),
        np.tile([5.0, 0.0], 800),
    )
    assert best_c(twice) >= 0.3
    assert best_c(twice._replace(weights=None)) == 0.003


def test_one_label_leaves_nothing_to_try() -> None:
    rows = drawn(400, 1.0)
    assert best_c(rows._replace(labels=np.arange(400) < 1)) is None
    assert best_c(rows._replace(labels=np.zeros(400))) is None
    assert best_c(TrialRows(*(part[:0] for part in rows[:3]))) is None
    assert best_c(rows._replace(weights=np.zeros(400))) is None


def test_the_more_slots_the_fewer_rows() -> None:
    assert [rows_to_try(slots) for slots in (1, 50, 100, 10_000)] == [20_000, 20_000, 10_000, 2_000]
