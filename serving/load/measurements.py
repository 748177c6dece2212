"""Measurements of a load test, figures derived from them, and service level objectives."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from afm_ctr.errors import UserError

QUANTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

OK = "OK"
# The request timed out while it waited for a free place among the requests in flight.
NOT_SENT = "NOT_SENT"

_BINS_PER_DECADE = 20


def quantile(ascending: Sequence[float] | np.ndarray[Any, Any], percent: float, failed: int = 0) -> float:
    """The nearest-rank quantile: the smallest value that at least ``percent`` of all values do not exceed.

    Args:
        percent: above 0, at most 100.
        failed: number of additional values that count as larger than all others.

    Returns:
        One of the values; infinity if the rank falls among the failed ones; NaN without any values.
    """
    count = len(ascending) + failed
    if count == 0:
        return math.nan
    # Rounded first: 99.9 * 1000 / 100 may be 999.0000000000001 in floating point, which would be rank 1000.
    rank = max(math.ceil(round(percent * count / 100, 9)), 1)
    return float(ascending[rank - 1]) if rank <= len(ascending) else math.inf


@dataclass
class Tally:
    """Measurements of one run; all times in seconds."""

    latencies: array[float] = field(default_factory=lambda: array("d"))  # of the answered requests
    lags: array[float] = field(default_factory=lambda: array("d"))  # delay of each request past its due time
    errors: Counter[str] = field(default_factory=Counter)  # failed requests by gRPC status, or NOT_SENT
    examples: dict[str, str] = field(default_factory=dict)  # the first message of each error
    began: float = 0.0  # when the first request was due
    ended: float = 0.0  # when the last request was answered or cancelled

    def add(self, code: str, latency: float, at: float, said: str = "") -> None:
        """Count a finished request."""
        self.ended = max(self.ended, at)
        if code == OK:
            self.latencies.append(latency)
            return
        self.errors[code] += 1
        self.examples.setdefault(code, " ".join(said.split())[:300])

    @property
    def requests(self) -> int:
        """Number of finished requests."""
        return len(self.latencies) + self.errors.total()


class Result:
    """The figures of one run.

    Args:
        rows_per_request: rows in each request.
        mode: ``open`` or ``closed``.
        asked: requests/s of an open loop, the number of callers of a closed one.
    """

    def __init__(self, tally: Tally, rows_per_request: int, mode: str, asked: float):
        self.mode = mode
        self.asked = asked
        self.rows_per_request = rows_per_request
        self.latencies_ms = np.sort(np.frombuffer(tally.latencies, np.float64)) * 1e3
        self.errors = dict(sorted(tally.errors.items()))
        self.examples = dict(tally.examples)
        self.failed = tally.errors.total()
        self.seconds = max(tally.ended - tally.began, 1e-9)
        lag = quantile(np.sort(np.frombuffer(tally.lags, np.float64)), 99.0)
        self.lag_ms = 0.0 if math.isnan(lag) else lag * 1e3

    @property
    def answered(self) -> int:
        """Number of answered requests."""
        return len(self.latencies_ms)

    @property
    def request_rate(self) -> float:
        """Answered requests per second."""
        return self.answered / self.seconds

    @property
    def row_rate(self) -> float:
        """Answered rows per second."""
        return self.request_rate * self.rows_per_request

    def quantile_ms(self, percent: float) -> float | None:
        """The quantile over all requests, failed ones as infinite; None if it falls among those."""
        value = quantile(self.latencies_ms, percent, self.failed)
        return value if math.isfinite(value) else None

    def histogram(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Bin edges in ms, 20 per decade on a grid that all runs share, and the count in each bin."""
        if not self.answered:
            return np.array([1.0, 10.0]), np.zeros(1, np.int64)
        low, high = (math.log10(max(value, 1e-6)) for value in (self.latencies_ms[0], self.latencies_ms[-1]))
        first, last = math.floor(low * _BINS_PER_DECADE), math.floor(high * _BINS_PER_DECADE) + 1
        edges = 10.0 ** (np.arange(first, last + 1) / _BINS_PER_DECADE)
        counts, _ = np.histogram(np.clip(self.latencies_ms, edges[0], edges[-1]), edges)
        return edges, counts

    def to_json(self) -> dict[str, Any]:
        """As plain data: milliseconds, and rates per second."""
        edges, counts = self.histogram()
        latency: dict[str, float | None] = {
            f"p{percent:g}": _finite(quantile(self.latencies_ms, percent)) for percent in QUANTILES
        }
        latency["mean"] = float(self.latencies_ms.mean()) if self.answered else None
        latency["max"] = float(self.latencies_ms[-1]) if self.answered else None
        return {
            "mode": self.mode,
            "rate" if self.mode == "open" else "concurrency": self.asked,
            "rows_per_request": self.rows_per_request,
            "seconds": self.seconds,
            "requests": self.answered + self.failed,
            "answered": self.answered,
            "errors": self.errors,
            "error_examples": self.examples,
            "requests_per_second": self.request_rate,
            "rows_per_second": self.row_rate,
            "latency_ms": latency,
            "sent_late_ms_p99": self.lag_ms,
            "histogram": {"edges_ms": [round(float(edge), 6) for edge in edges], "counts": counts.tolist()},
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_LIMIT = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*=\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Limit(NamedTuple):
    """The milliseconds that a quantile, in percent, may take."""

    percent: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percent:g} <= {self.limit_ms:g} ms"


class Verdict(NamedTuple):
    """A limit and the measured value; None: the quantile falls among failed requests."""

    limit: Limit
    measured_ms: float | None

    @property
    def holds(self) -> bool:
        """Whether the limit was kept."""
        return self.measured_ms is not None and self.measured_ms <= self.limit.limit_ms

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"limit": str(self.limit), "measured_ms": self.measured_ms, "holds": self.holds}

    def __str__(self) -> str:
        found = "a failed request" if self.measured_ms is None else f"{self.measured_ms:.2f} ms"
        return f"{self.limit}: {'holds' if self.holds else 'MISSED'} ({found})"


class Slo(NamedTuple):
    """Service level objective: limits that must all hold. Failed requests count as slower than every limit."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Slo:
        """Parse ``p99=20ms``, ``p99.9=0.1s`` or several, separated by commas. Raises UserError."""
        limits = []
        for text in (piece.strip() for given in texts for piece in given.split(",")):
            found = _LIMIT.fullmatch(text)
            if not found or float(found[1]) <= 0 or float(found[2]) <= 0:
                raise UserError(f"--slo {text!r}: write a quantile and a time (us, ms, s), such as p99=20ms")
            limits.append(Limit(float(found[1]), float(found[2]) * _MILLISECONDS[found[3]]))
        return cls(tuple(limits))

    def judge(self, result: Result) -> list[Verdict]:
        """Compare every limit with the measured quantile."""
        return [Verdict(limit, result.quantile_ms(limit.percent)) for limit in self.limits]
