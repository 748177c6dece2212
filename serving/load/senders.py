"""Open loop (requests at a fixed rate) and closed loop (a fixed number of callers)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from serving.load.measurements import NOT_SENT, Tally

_GRACE = 5.0
_BETWEEN_REPORTS = 0.2


class Ended(NamedTuple):
    """A finished call: gRPC status, time, and details."""

    code: str
    at: float
    said: str = ""


class Wire(Protocol):
    """Transport to the server, with its clock. Used by one thread; answers may arrive on others."""

    def now(self) -> float:
        """Seconds of a monotonic clock."""

    def pause(self, until: float) -> None:
        """Wait until a time or until a call ends; may return earlier."""

    def send(self, number: int, timeout: float, done: Callable[[Ended], None]) -> None:
        """Send request ``number`` and return; ``done`` is called once, within ``timeout`` seconds."""

    def cancel(self) -> None:
        """Cancel all calls in flight."""


@dataclass(frozen=True)
class Bounds:
    """Limits of a run."""

    duration: float  # seconds in which requests are started
    timeout: float = 10.0  # seconds per request; a longer one counts as failed
    max_requests: int = 1_000_000
    max_in_flight: int = 1000  # concurrent requests of an open loop; waiting counts in the latency of the others


Report = Callable[[int, int], None]  # requests finished; requests in all, 0 if that is not known


def open_loop(wire: Wire, rate: float, bounds: Bounds, report: Report = lambda done, total: None) -> Tally:
    """Request i is due at i / rate seconds, independent of earlier requests.

    Latency counts from when a request was due, not from when it was sent: a server that stalls for a second is
    charged for all requests due in that second, and so is a client that cannot keep up. A request that finds no
    free place among ``max_in_flight`` within ``timeout`` is counted as NOT_SENT.
    """
    total = max(1, min(int(rate * bounds.duration), bounds.max_requests))
    run = _Run(wire, lambda done: report(done, total))
    number = 0
    while number < total:
        due = run.began + number / rate
        now = wire.now()
        if now >= due + bounds.timeout:
            run.tally.add(NOT_SENT, 0.0, now, f"{bounds.max_in_flight} requests were in flight")
        elif now < due:
            run.wait(due)
            continue
        elif run.in_flight >= bounds.max_in_flight:
            run.wait(due + bounds.timeout)
            continue
        else:
            run.send(number, due, due + bounds.timeout - now)
        number += 1
    return run.finish(bounds.timeout)


def closed_loop(wire: Wire, concurrency: int, bounds: Bounds, report: Report = lambda done, total: None) -> Tally:
    """Callers that each send again as soon as they have their answer. Latency counts from sending."""
    run = _Run(wire, lambda done: report(done, 0))
    end = run.began + bounds.duration
    number = 0
    while number < bounds.max_requests and (now := wire.now()) < end:
        if run.in_flight >= concurrency:
            run.wait(end)
            continue
        run.send(number, now, bounds.timeout)
        number += 1
    return run.finish(bounds.timeout)


class _Run:
    """Requests in flight, and the tally of the finished ones."""

    def __init__(self, wire: Wire, report: Callable[[int], None]):
        self.tally = Tally()
        self.in_flight = 0
        self.began = self.tally.began = self.tally.ended = wire.now()
        self._wire = wire
        self._report = report
        self._reported = self.began
        self._ended: deque[tuple[float, Ended]] = deque()  # filled by other threads; a deque's ends are safe

    def send(self, number: int, due: float, timeout: float) -> None:
        self.tally.lags.append(max(self._wire.now() - due, 0.0))
        self.in_flight += 1
        self._wire.send(number, timeout, lambda ended: self._ended.append((due, ended)))
        self._collect()

    def wait(self, until: float) -> None:
        """Wait until a call ends or until a time, and report progress at intervals."""
        if not self._collect():
            self._wire.pause(min(until, self._reported + _BETWEEN_REPORTS))
            self._collect()
        now = self._wire.now()
        if now >= self._reported + _BETWEEN_REPORTS:
            self._reported = now
            self._report(self.tally.requests)

    def finish(self, timeout: float) -> Tally:
        """Wait for the last answers; calls that outlive their deadline are cancelled."""
        for ending in (timeout + _GRACE, _GRACE):
            end = self._wire.now() + ending
            while self.in_flight and self._wire.now() < end:
                self.wait(end)
            if self.in_flight:
                self._wire.cancel()
        for _ in range(self.in_flight):
            self.tally.add("DEADLINE_EXCEEDED", 0.0, self._wire.now(), "the call never ended")
        self._report(self.tally.requests)
        return self.tally

    def _collect(self) -> bool:
        found = bool(self._ended)
        while self._ended:
            due, ended = self._ended.popleft()
            self.in_flight -= 1
            self.tally.add(ended.code, ended.at - due, ended.at, ended.said)
        return found
