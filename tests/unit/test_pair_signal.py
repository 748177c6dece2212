"""Whether pairs say something: exact on a small case, silent on sums, loud on pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from afm_ctr.pair_signal import _agreement, signals_of, strongest_pair
from afm_ctr.penalty import TrialRows
from afm_ctr.sizing import Signals


def log(rows: int, pair: float, bias: float = 0.0, seed: int = 0) -> TrialRows:
    """A field of 30 ids, one of 20, one of 5; a sum of weights, and ``pair`` by the first two."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, [30, 20, 5], (rows, 3)) + [1, 31, 51]
    weights, signs = draw.normal(0, 0.5, 56), draw.choice([-1, 1], 56)
    logits = bias + weights[ids].sum(axis=1) + pair * signs[ids[:, 0]] * signs[ids[:, 1]]
    return TrialRows(ids, np.ones(ids.shape, np.float32), draw.random(rows) < 1 / (1 + np.exp(-logits)))


def test_agreement_is_the_sum_over_pairs_of_rows_of_a_cell() -> None:
    draw = np.random.default_rng(0)
    residuals, variances, cells = draw.normal(size=40), draw.random(40), draw.integers(0, 7, 40)
    two = [(i, j) for i, j in itertools.permutations(range(40), 2) if cells[i] == cells[j]]
    total = sum(residuals[i] * residuals[j] for i, j in two)
    by_chances = 2 * sum(variances[i] * variances[j] for i, j in two)
    by_residuals = 2 * sum(residuals[i] ** 2 * residuals[j] ** 2 for i, j in two)
    assert by_residuals > by_chances
    assert _agreement(residuals, variances, cells) == pytest.approx(total / by_residuals**0.5)
    assert _agreement(residuals, 9 * variances, cells) == pytest.approx(total / (81 * by_chances) ** 0.5)
    assert _agreement(residuals, variances, np.arange(40)) == 0.0


def test_pairs_are_found_and_sums_are_none() -> None:
    assert strongest_pair(log(3000, 0.0), 0.3) < 3
    assert strongest_pair(log(3000, 1.2), 0.3) > 10
    assert signals_of(log(3000, 1.2)).pair > 10


def test_a_few_coincidences_of_rare_positives_are_no_proof() -> None:
    rows = log(4000, 0.0, bias=-7.0)
    same = np.flatnonzero((rows.ids == rows.ids[0]).all(axis=1))[:2]
    labels = rows.labels.copy()
    labels[same] = True
    assert 0 < labels.sum() < 20 and len(same) == 2
    assert strongest_pair(rows._replace(labels=labels), 0.3) < 5


def test_slots_of_numbers_and_rows_of_weight_0_say_nothing() -> None:
    rows = log(3000, 1.0)
    numbers = rows.vals.copy()
    numbers[:, 0] = 0.5
    assert strongest_pair(rows._replace(vals=numbers), 0.3) < 3
    half = np.arange(3000) < 1500
    mixed = rows._replace(labels=np.where(half, rows.labels, log(3000, 0.0, seed=0).labels), weights=1.0 * ~half)
    assert strongest_pair(mixed, 0.3) < 3 < strongest_pair(mixed._replace(weights=1.0 * half), 0.3)


def test_without_both_labels_nothing_is_known() -> None:
    assert signals_of(log(300, 1.0)._replace(labels=np.zeros(300))) == Signals()
