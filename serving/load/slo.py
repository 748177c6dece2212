"""What was promised: limits on quantiles of the latency."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from afm_ctr.errors import UserError
from serving.load.measurements import Result

_LIMIT = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*=\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Limit(NamedTuple):
    """A quantile, in percent, and the milliseconds that it may take."""

    percent: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percent:g} <= {self.limit_ms:g} ms"


class Verdict(NamedTuple):
    """A limit, and what was measured; None: the quantile falls among failed requests."""

    limit: Limit
    measured_ms: float | None

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return self.measured_ms is not None and self.measured_ms <= self.limit.limit_ms

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"limit": str(self.limit), "measured_ms": self.measured_ms, "holds": self.holds}

    def __str__(self) -> str:
        found = "a failed request" if self.measured_ms is None else f"{self.measured_ms:.2f} ms"
        return f"{self.limit}: {'holds' if self.holds else 'MISSED'} ({found})"


class Slo(NamedTuple):
    """Limits that must all hold. A request that failed counts as slower than every limit."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Slo:
        """Read ``p99=20ms``, ``p99.9=0.1s`` or several, separated by commas. Raises UserError: something else."""
        limits = []
        for text in (piece.strip() for given in texts for piece in given.split(",")):
            found = _LIMIT.fullmatch(text)
            if not found or float(found[1]) <= 0 or float(found[2]) <= 0:
                raise UserError(f"--slo {text!r}: write a quantile and a time (us, ms, s), such as p99=20ms")
            limits.append(Limit(float(found[1]), float(found[2]) * _MILLISECONDS[found[3]]))
        return cls(tuple(limits))

    def judge(self, result: Result) -> list[Verdict]:
        """Every limit against what was measured."""
        return [Verdict(limit, result.quantile_ms(limit.percent)) for limit in self.limits]
