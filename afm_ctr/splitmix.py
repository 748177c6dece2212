"""Well-mixed bits from counters, in NumPy, for sampling, shuffling and initial values."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # the step of the counter: 2^64 divided by the golden ratio, made odd


def finalise(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: 64 bits to 64 well-mixed bits, one to one. uint64 [n] to uint64 [n].

    Integer arithmetic only, so the same on every machine and under every NumPy. Source: Steele, Lea, Flood, Fast
    splittable pseudorandom number generators, OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
