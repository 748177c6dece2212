"""Mean and standard deviation from exact sums: the same bits for any division into chunks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_SCALE = 1074 + 53  # every float64, as split by frexp, is a multiple of 2^-_SCALE
_HALF = 27  # bits of a mantissa's lower half
_LOW = (1 << _HALF) - 1


class Moments(NamedTuple):
    """Sums over numbers, as integers, which add without rounding."""

    n: int = 0  # count
    total: int = 0  # sum, in units of 2^-1127
    squares: int = 0  # sum of squares, in units of 2^-2254

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Sums of finite float64 ``[n]``, n < 2^36."""
        if not len(values):
            return cls()
        fractions, exponents = np.frexp(np.asarray(values, np.float64))
        order = np.argsort(exponents, kind="stable")
        exponents = exponents[order]
        mantissas = np.ldexp(fractions[order], 53).astype(np.int64)
        high, low = mantissas >> _HALF, mantissas & _LOW
        starts = np.flatnonzero(np.diff(exponents, prepend=exponents[0] - 1))
        shifts = exponents[starts].tolist()  # numbers with the same exponent are summed as integers
        halves = [_sums(part, starts) for part in (high, low)]
        products = [_sums(part, starts) for part in (high * high, high * low, low * low)]
        total = squares = 0
        for at, exponent in enumerate(shifts):
            shift = exponent - 53 + _SCALE
            total += ((halves[0][at] << _HALF) + halves[1][at]) << shift
            both, mixed, least = (product[at] for product in products)
            squares += ((both << 2 * _HALF) + (mixed << _HALF + 1) + least) << 2 * shift
        return cls(len(values), total, squares)

    def plus(self, other: Moments) -> Moments:
        """The sums of both."""
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and population standard deviation; both nan if the variance overflows float64."""
        if not self.n:
            return 0.0, 0.0
        spread = self.n * self.squares - self.total**2
        try:  # the quotient of two integers is rounded once
            return self.total / (self.n << _SCALE), math.sqrt(spread / (self.n**2 << 2 * _SCALE))
        except OverflowError:
            return math.nan, math.nan


def _sums(parts: np.ndarray, starts: np.ndarray) -> list[int]:
    """The sums of int64 ``[n]`` from each start to the next one, exactly."""
    high, low = np.add.reduceat(parts >> _HALF, starts), np.add.reduceat(parts & _LOW, starts)
    return [(int(h) << _HALF) + int(s) for h, s in zip(high, low, strict=True)]
