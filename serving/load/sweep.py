"""The highest rate that keeps the promise."""

from __future__ import annotations

import math
from collections.abc import Callable

MAX_STEPS = 14
PRECISION = 1.1
_LOWEST = 0.5


def highest_rate(
    holds: Callable[[float], bool], start: float, *, precision: float = PRECISION, max_steps: int = MAX_STEPS
) -> float | None:
    """Search for the highest rate at which something holds, taking it that it holds at every lower one.

    Doubles (or halves) the rate until one is known that holds and one that does not, then halves the gap on a
    logarithmic scale until the two are within ``precision`` of each other.

    Args:
        holds: tries a rate, requests/s.
        precision: the highest rate may be up to this factor above the one that is returned.
        max_steps: how many rates are tried at most.

    Returns:
        The highest rate that was seen to hold; None if none did, down to one request in two seconds.
    """
    low: float | None = None
    high = math.inf
    rate = start
    for _ in range(max_steps):
        if holds(rate):
            low = max(rate, low or 0.0)
        else:
            high = min(rate, high)
        if low is None:
            rate = high / 2
            if rate < _LOWEST:
                break
        elif math.isinf(high):
            rate = low * 2
        elif high <= low * precision:
            break
        else:
            rate = math.sqrt(low * high)
    return low
