"""Dropout masks: whose they are, and that they are as good as random."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.interactions import stateless_keep
from afm_ctr.interactions.dropout import drop_threshold


def test_dropout_masks_belong_to_the_row() -> None:
    rows = tf.constant([5, 2**40 + 1, 7, 123456789], tf.int64)
    mask = stateless_keep(rows, 50, 0.3, seed=1, salt=2).numpy()
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.7)}
    order = [3, 0, 2, 1]
    np.testing.assert_array_equal(stateless_keep(tf.gather(rows, order), 50, 0.3, 1, 2).numpy(), mask[order])
    np.testing.assert_array_equal(stateless_keep(rows, np.array([7, 0, 49]), 0.3, 1, 2).numpy(), mask[:, [7, 0, 49]])
    assert np.any(stateless_keep(rows, 50, 0.3, 1, 3).numpy() != mask)
    assert np.any(stateless_keep(rows, 50, 0.3, 2, 2).numpy() != mask)


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [(0.0, 0), (2**-24, 1), (0.003, 50_332), (0.125, 2_097_152), (0.155, 2_600_468), (0.5, 8_388_608)],
)
def test_24_bits_of_a_rate_count(rate: float, threshold: int) -> None:
    assert drop_threshold(rate) == threshold


def test_a_rate_below_one_percent_drops() -> None:
    dropped = stateless_keep(tf.range(5000, dtype=tf.int64), 200, 0.003, seed=11, salt=1).numpy() == 0
    assert abs(dropped.mean() - 0.003) < 4 * np.sqrt(0.003 / dropped.size)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_its_rate_and_no_visible_pattern(rate: float) -> None:
    kept = stateless_keep(tf.range(3000, dtype=tf.int64), 200, rate, seed=11, salt=1).numpy() > 0
    spread = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) < 4 * spread / np.sqrt(kept.size)
    # Row means and column means spread as those of independent draws; neighbours do not correlate.
    assert abs(kept.mean(axis=1).std() * np.sqrt(200) / spread - 1) < 0.08
    assert abs(kept.mean(axis=0).std() * np.sqrt(3000) / spread - 1) < 0.25
    centred = kept - kept.mean()
    for one, other in [
        (centred[1:], centred[:-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[1:, 1:], centred[:-1, :-1]),
    ]:
        assert abs((one * other).mean() / spread**2) < 4 / np.sqrt(one.size)
    other_salt = stateless_keep(tf.range(3000, dtype=tf.int64), 200, rate, seed=11, salt=2).numpy() > 0
    assert abs((centred * (other_salt - other_salt.mean())).mean() / spread**2) < 4 / np.sqrt(kept.size)


def test_the_splitmix_reference_value() -> None:
    # Row r and column c of seed s are decided by mix(mix(s'·…)): recomputed here with Python integers.
    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    base = mix(mix(9) ^ (3 * golden % 2**64))
    bits = [
        [mix((mix((row * golden + base) % 2**64) + (column + 1) * golden) % 2**64) for column in range(6)]
        for row in (0, 1, 2**50)
    ]
    expected = np.array([[(x >> 40) >= round(0.5 * 2**24) for x in line] for line in bits])
    mask = stateless_keep(tf.constant([0, 1, 2**50], tf.int64), 6, 0.5, seed=9, salt=3).numpy() > 0
    np.testing.assert_array_equal(mask, expected)
