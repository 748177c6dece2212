"""Exact sums of float64: against fractions, and in every division of the numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_ctr.schema.moments import Moments

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1000, 1000),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 1.7976931348623157e308, 1.5e9, 1e-160]),
)


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.data())
def test_the_sums_are_exact_however_numbers_are_divided(numbers: list[float], data: st.DataObject) -> None:
    exact = [Fraction(number) for number in numbers]
    whole = Moments.of(np.array(numbers))
    assert Fraction(whole.total, 2**1127) == sum(exact)
    assert Fraction(whole.squares, 2**2254) == sum(number**2 for number in exact)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(numbers)), max_size=5)))
    order = data.draw(st.permutations(numbers))
    parts = [np.array(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    assert reduce(Moments.plus, map(Moments.of, parts)) == whole
    mean, std = whole.mean_and_std()
    variance = sum(number**2 for number in exact) / len(exact) - (sum(exact) / len(exact)) ** 2
    try:
        assert std == math.sqrt(float(variance)) and mean == float(sum(exact) / len(exact))
    except OverflowError:
        assert math.isnan(mean) and math.isnan(std)


def test_a_deviation_that_is_small_beside_the_mean() -> None:
    """Epoch milliseconds within a second: in float64 their squares leave no digit of the variance."""
    times = 1.7e12 + np.array([0.0, 250.0, 500.0, 750.0])
    assert Moments.of(times).mean_and_std() == (1.7e12 + 375, math.sqrt(78125.0))
    assert Moments.of(np.full(7, 0.1)).mean_and_std() == (0.1, 0.0)


@pytest.mark.parametrize("count", [100_000, 200_001])
def test_many_numbers_of_one_exponent(count: int) -> None:
    numbers = np.random.default_rng(count).uniform(1, 2, count)
    found = Moments.of(numbers)
    integers = [int(number * 2**52) for number in numbers.tolist()]
    assert found.total == sum(integers) << 1127 - 52
    assert found.squares == sum(i * i for i in integers) << 2254 - 104


def test_nothing() -> None:
    assert Moments.of(np.zeros(0)).plus(Moments()) == Moments() and Moments().mean_and_std() == (0.0, 0.0)
