"""Lists of bucket boundaries."""

from __future__ import annotations

import decimal
import itertools
import math

import numpy as np
import pytest

from afm_ctr.schema import log_square_boundaries, quantile_boundaries


def bucket(x: float) -> int:
    return int(np.searchsorted(np.array(log_square_boundaries()), x, side="right"))


def exact_log_square(x: float) -> int:
    with decimal.localcontext() as context:
        context.prec = 50
        return int(decimal.Decimal(x).ln() ** 2)


def test_integers_up_to_two_have_buckets_of_their_own():
    assert [bucket(x) for x in (-100, -3, -2, -1, 0, 1, 2, 3)] == [0, 1, 2, 3, 4, 5, 6, 8]
    assert bucket(-0.5) == bucket(-1)
    assert bucket(1.5) == bucket(1)
    assert bucket(2.5) == bucket(math.nextafter(2, 3)) == 7  # (ln 2.5)² = 0.84


def test_above_two_the_bucket_is_the_floor_of_the_squared_logarithm():
    rng = np.random.default_rng(0)
    numbers = [3.0, 4.0, 5.0, 2.0**53, *map(float, rng.integers(3, 10**6, 300)), *np.exp(rng.uniform(1, 36, 300))]
    for boundary in log_square_boundaries()[7::40]:
        # The float64 on either side, and the integers: where a rounded logarithm goes wrong.
        numbers += [boundary, math.nextafter(boundary, 0), float(math.floor(boundary)), float(math.ceil(boundary))]
    for x in numbers:
        if x > 2:
            assert bucket(x) == 7 + exact_log_square(x), x


def test_the_list_ends_where_float64_stops_counting():
    boundaries = log_square_boundaries()
    assert len(boundaries) == 7 + exact_log_square(2.0**53)
    assert all(a < b for a, b in itertools.pairwise(boundaries))
    assert bucket(1e300) == bucket(2.0**53)


@pytest.mark.parametrize(
    ("numbers", "quantiles", "boundaries"),
    [
        ([1, 2, 3, 4], 2, (3.0,)),
        ([1, 2, 3, 4, 5, 6], 3, (3.0, 5.0)),
        ([0, 0, 0, 0, 7, 9], 3, (7.0,)),  # ties are not divided
        ([5, 5, 5], 4, ()),
        ([5], 2, ()),
        ([], 3, ()),
        ([1, 2], 10, (2.0,)),
        ([1, 2, 2, 5, 9], 10**18, (2.0, 5.0, 9.0)),  # as many buckets as there are numbers
    ],
)
def test_quantiles(numbers, quantiles, boundaries):
    assert quantile_boundaries(np.array(numbers, np.float64), quantiles) == boundaries
