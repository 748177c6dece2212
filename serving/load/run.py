"""A whole load test: requests, one rate or a sweep, figures and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from afm_ctr.errors import UserError
from afm_ctr.io.files import as_user_error, write_bytes, write_text
from afm_ctr.visible import counted
from serving.client import Client
from serving.errors import ServingError
from serving.load.measurements import QUANTILES, Result, Slo, Verdict
from serving.load.requests import GrpcWire, Traffic, prepare
from serving.load.senders import Bounds, closed_loop, open_loop

Progress = Callable[[str, int, int], None]  # current step, rows answered, rows in all (0: not known)

_WARM_UP = Bounds(duration=0.5, max_requests=50)
_GUESS_CALLERS, _GUESS_SECONDS = 4, 2.0
_LATE_MS = 5.0
_LOWEST = 0.5
_PRECISION = 1.1  # the true highest rate may be up to this factor above the one found


@dataclass
class LoadReport:
    """Result of a load test."""

    target: str
    model_name: str
    traffic: Traffic
    result: Result  # of a sweep, at the highest rate that keeps the SLO, or else at the lowest rate tried
    slo: Slo  # may be empty
    tried: list[tuple[Result, bool]] = field(default_factory=list)  # of a sweep: each rate, and whether the SLO held
    highest: float | None = None  # of a sweep, the highest rate that keeps the SLO; None if none does
    files: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> list[Verdict]:
        """The result of each limit."""
        return self.slo.judge(self.result)

    @property
    def holds(self) -> bool:
        """Whether every limit holds; without limits, whether any request was answered."""
        return self.result.answered > 0 and all(verdict.holds for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        found: dict[str, Any] = {
            "target": self.target,
            "model_name": self.model_name,
            "distinct_rows": self.traffic.rows,
            "lines_left_out": self.traffic.rejected,
            **self.result.to_json(),
            "slo": [verdict.to_json() for verdict in self.verdicts],
            "holds": self.holds,
        }
        if self.tried:
            found["highest_rate"] = self.highest
            found["sweep"] = [{**result.to_json(), "holds": holds} for result, holds in self.tried]
        return {**found, "files": self.files}

    def __str__(self) -> str:
        figures, result = self.result.to_json(), self.result
        how = f"{result.asked:g} requests/s" if result.mode == "open" else f"{result.asked:g} callers"
        latency = ", ".join(f"p{q:g} {_ms(figures['latency_ms'][f'p{q:g}'])}" for q in QUANTILES)
        lines = [
            f"{self.target} {self.model_name}, {result.mode} loop, {how}, "
            f"{counted(result.rows_per_request, 'row')} per request, {result.seconds:.1f} s",
            f"answered {result.answered:,} of {result.answered + result.failed:,} requests: "
            f"{result.request_rate:,.1f} requests/s, {result.row_rate:,.0f} rows/s",
            f"latency, ms: {latency}, max {_ms(figures['latency_ms']['max'])}",
        ]
        lines += [f"{code}: {count:,} ({result.examples[code]})" for code, count in result.errors.items()]
        if result.mode == "open" and result.lag_ms > _LATE_MS:
            lines.append(
                f"1 % of the requests were sent {result.lag_ms:.0f} ms late or more (counted in their latency): "
                "the sending machine is part of the limit"
            )
        lines += [str(verdict) for verdict in self.verdicts]
        if self.tried:
            rate = "none that was tried" if self.highest is None else f"{self.highest:,.1f} requests/s"
            lines.append(f"highest rate that keeps it: {rate} ({len(self.tried)} rates tried)")
        return "\n".join(lines + self.files)


def load_test(
    target: str,
    model_name: str,
    schema_path: str | Path,
    input_path: str | Path,
    *,
    rate: float | None = None,
    concurrency: int | None = None,
    sweep: bool = False,
    slo: Slo = Slo(()),
    batch_size: int = 1,
    bounds: Bounds = Bounds(duration=10.0),
    version: int | None = None,
    label: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    output: str | Path | None = None,
    progress: Progress = lambda what, rows, total: None,
) -> LoadReport:
    """Load-test a model server with raw rows (gRPC, signature ``raw``).

    Nothing is retried. All requests are built beforehand; only the first answer is checked, of others the status.

    Args:
        input_path: a log; its first 20,000 rows are sent over and over.
        rate: open loop: requests/s, independent of the answers; in a sweep, the first rate to try.
        concurrency: closed loop: number of callers, each of which waits for its answer before it sends again.
        sweep: find the highest rate that keeps ``slo``; each rate takes ``bounds.duration``.
        output: folder for ``load.json``, ``histogram.png`` and, after a sweep, ``latency-by-rate.png``.

    Raises:
        UserError: settings exclude each other, or schema, log or server are missing or do not match.
    """
    _check_settings(rate, concurrency, sweep, slo)
    folder = None if output is None else _folder(Path(output))
    try:
        with Client(
            target, model_name, version, label, bounds.timeout, credentials=credentials, allow_bad_cells=True
        ) as client:
            traffic = prepare(client, schema_path, input_path, batch_size)
    except (ServingError, ValueError) as error:
        raise UserError(f"load-test: {error}") from error
    wire = GrpcWire(target, traffic.requests, credentials)
    try:
        closed_loop(wire, 2, _WARM_UP)
        load = _Load(wire, traffic, bounds, progress)
        if sweep:
            report = _sweep(load, slo, rate, target, model_name)
        else:
            result = load.open(rate) if rate is not None else load.closed(concurrency or 1, bounds)
            report = LoadReport(target, model_name, traffic, result, slo)
    finally:
        wire.close()
    if folder is not None:
        _write(report, folder)
    return report


class _Load:
    """Runs one load after another on one server."""

    def __init__(self, wire: GrpcWire, traffic: Traffic, bounds: Bounds, progress: Progress):
        self.traffic = traffic
        self.bounds = bounds
        self._wire = wire
        self._progress = progress

    def open(self, rate: float) -> Result:
        tally = open_loop(self._wire, rate, self.bounds, self._report(f"{rate:,.1f} requests/s"))
        return Result(tally, self.traffic.rows_per_request, "open", rate)

    def closed(self, callers: int, bounds: Bounds) -> Result:
        tally = closed_loop(self._wire, callers, bounds, self._report(f"{callers} callers"))
        return Result(tally, self.traffic.rows_per_request, "closed", callers)

    def _report(self, what: str) -> Callable[[int, int], None]:
        rows = self.traffic.rows_per_request
        return lambda done, total: self._progress(what, done * rows, total * rows)


def _sweep(load: _Load, slo: Slo, start: float | None, target: str, model_name: str) -> LoadReport:
    tried: list[tuple[Result, bool]] = []

    def holds(rate: float) -> bool:
        result = load.open(rate)
        kept = all(verdict.holds for verdict in slo.judge(result))
        tried.append((result, kept))
        return kept

    if start is None:
        guess = load.closed(_GUESS_CALLERS, Bounds(min(_GUESS_SECONDS, load.bounds.duration), load.bounds.timeout))
        start = max(guess.request_rate / 2, 1.0)
    highest = highest_rate(holds, start)
    if highest is None:
        best = min((result for result, _ in tried), key=lambda result: result.asked)
    else:
        best = next(result for result, kept in reversed(tried) if kept and result.asked == highest)
    return LoadReport(target, model_name, load.traffic, best, slo, tried, highest)


def highest_rate(holds: Callable[[float], bool], start: float, *, max_steps: int = 14) -> float | None:
    """Find the highest rate at which a condition holds, assuming that it holds at every lower rate.

    Doubles (or halves) the rate until the answer changes, then bisects on a logarithmic scale until the two rates
    are within 10 % of each other.

    Args:
        max_steps: maximum number of rates to try.

    Returns:
        The highest rate that held; None if none did, down to one request in two seconds.
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
        elif high <= low * _PRECISION:
            break
        else:
            rate = math.sqrt(low * high)
    return low


def _check_settings(rate: float | None, concurrency: int | None, sweep: bool, slo: Slo) -> None:
    if sweep and (concurrency is not None or not slo.limits):
        raise UserError(
            "load-test: --sweep finds the highest rate that keeps --slo: give --slo, and no --concurrency"
        )
    if not sweep and (rate is None) == (concurrency is None):
        raise UserError("load-test: give either --rate (open loop) or --concurrency (closed loop), or --sweep")


def _folder(folder: Path) -> Path:
    """Create the output folder, and check that matplotlib is installed, before the load test runs."""
    import matplotlib  # noqa: F401

    with as_user_error(f"load-test: cannot write below {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(report: LoadReport, folder: Path) -> None:
    from afm_ctr.plots import png
    from serving.load import pictures

    result, limits = report.result, report.slo.limits
    title = f"{report.model_name} at {report.target}, {counted(result.rows_per_request, 'row')} per request"
    how = f"{result.asked:g} {'requests/s' if result.mode == 'open' else 'callers'}"
    files = [folder / "load.json", folder / "histogram.png"]
    with as_user_error(f"load-test: cannot write below {folder}"):
        write_bytes(files[1], png(pictures.histogram(result, limits, f"{title}, {how}")))
        if report.tried:
            files.append(folder / "latency-by-rate.png")
            write_bytes(files[2], png(pictures.latency_by_rate(report.tried, limits, title)))
        report.files = [str(file) for file in files]
        write_text(files[0], json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
