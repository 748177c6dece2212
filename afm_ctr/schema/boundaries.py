"""Lists of float64 bucket boundaries. A number's bucket is how many boundaries are ≤ it."""

from __future__ import annotations

import decimal
import math
from functools import lru_cache

import numpy as np

# The last integer up to which float64 counts without gaps.
LOG_SQUARE_LIMIT = 2.0**53


@lru_cache(maxsize=1)
def log_square_boundaries() -> tuple[float, ...]:
    """The buckets of the usual Criteo recipe: floor((ln x)²) for x > 2, the integer itself for x ≤ 2.

    From the bottom: one bucket for all numbers below −3; then [−3,−2), [−2,−1), [−1,0), [0,1), [1,2) and {2}; then
    numbers above 2 by floor((ln x)²) = 0, 1, 2, … up to 2**53, beyond which all share the last one. The integers up
    to 2 keep rows of their own, since Criteo's counts −1, 0, 1, 2 mean different things and the logarithm does not
    tell them apart.

    Every boundary is the least float64 that is not below exp(√k), found with 60 decimal digits: comparing a float64
    with it decides (ln x)² ≥ k exactly, where computing the logarithm in floating point does not.

    Returns:
        Strictly increasing numbers.

    Source: the preprocessing of the 2014 Criteo Display Advertising Challenge's winners (libffm), since adopted by
    public benchmarks of the data set.
    """
    numbers = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, math.nextafter(2.0, math.inf)]
    with decimal.localcontext() as context:
        context.prec = 60
        k = 1
        while True:
            exact = decimal.Decimal(k).sqrt().exp()
            boundary = float(exact)
            if decimal.Decimal(boundary) < exact:
                boundary = math.nextafter(boundary, math.inf)
            if boundary > LOG_SQUARE_LIMIT:
                return tuple(numbers)
            numbers.append(boundary)
            k += 1


def quantile_boundaries(sample: np.ndarray, quantiles: int) -> tuple[float, ...]:
    """Boundaries that cut a sample into about ``quantiles`` equal shares.

    Boundary j is the sample's number at position ⌊j·n/quantiles⌋, so every boundary is a number that occurred, and
    equal numbers are never divided: with many ties there are fewer buckets.

    Args:
        sample: float64, ascending.
        quantiles: buckets asked for, at least 2.

    Returns:
        Strictly increasing numbers, none of which is the least of the sample; empty for an empty sample.
    """
    if not len(sample):
        return ()
    quantiles = min(quantiles, len(sample))  # more of them cut at every number, as these do
    positions = np.arange(1, quantiles, dtype=np.int64) * len(sample) // quantiles
    chosen = np.unique(sample[positions])
    return tuple(float(number) for number in chosen[chosen > sample[0]])
