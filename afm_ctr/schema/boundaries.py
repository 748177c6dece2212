"""Lists of float64 bucket boundaries. A number's bucket is the number of boundaries ≤ it."""

from __future__ import annotations

import decimal
import math
from functools import lru_cache

import numpy as np

# The largest integer up to which float64 is exact.
LOG_SQUARE_LIMIT = 2.0**53


@lru_cache(maxsize=1)
def log_square_boundaries() -> tuple[float, ...]:
    """The buckets of the usual Criteo recipe: floor((ln x)²) for x > 2, the integer itself for x ≤ 2.

    In ascending order: one bucket for all numbers below −3; then [−3,−2), [−2,−1), [−1,0), [0,1), [1,2) and {2};
    then numbers above 2 by floor((ln x)²) = 0, 1, 2, … up to 2**53, beyond which all share the last bucket. The
    integers up to 2 keep separate buckets, because Criteo's counts −1, 0, 1, 2 differ in meaning and the logarithm
    does not separate them.

    Every boundary is the smallest float64 not below exp(√k), computed with 60 decimal digits: comparing a float64
    with it decides (ln x)² ≥ k exactly, unlike a logarithm in floating point.

    Returns:
        Strictly increasing numbers.

    Source: the preprocessing of the winners of the 2014 Criteo Display Advertising Challenge (libffm), adopted by
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
    """Boundaries that divide a sample into about ``quantiles`` equal shares.

    Boundary j is the sample's number at position ⌊j·n/quantiles⌋, so every boundary is a number of the sample and
    equal numbers share a bucket: with many ties there are fewer buckets.

    Args:
        sample: float64, ascending.
        quantiles: requested number of buckets, at least 2.

    Returns:
        Strictly increasing numbers above the sample's minimum; empty for an empty sample.
    """
    if not len(sample):
        return ()
    quantiles = min(quantiles, len(sample))  # more would give the same boundaries
    positions = np.arange(1, quantiles, dtype=np.int64) * len(sample) // quantiles
    chosen = np.unique(sample[positions])
    return tuple(float(number) for number in chosen[chosen > sample[0]])
