"""When requests are sent: at a stated rate whatever comes back, or whenever one of the callers is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from serving.load.measurements import NOT_SENT, Tally

_GRACE = 5.0
_BETWEEN_REPORTS = 0.2


class Ended(NamedTuple):
    """A call that ended: gRPC's name of how, when, and what was said."""

    code: str
    at: float
    said: str = ""


class Wire(Protocol):
    """The way to the server, and the clock that goes with it. One thread uses it; answers may come on others."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""

    def pause(self, until: float) -> None:
        """Wait until a time, or until a call ends, whichever is first; it may return earlier."""

    def send(self, number: int, timeout: float, done: Callable[[Ended], None]) -> None:
        """Send request ``number`` and return; ``done`` is called once, within ``timeout`` seconds."""

    def cancel(self) -> None:
        """Give up all calls on their way."""


@dataclass(frozen=True)
class Bounds:
    """Where a run ends, whatever happens."""

    duration: float  # seconds in which requests are started
    timeout: float = 10.0  # seconds that a request may take; it counts as failed then
    max_requests: int = 1_000_000  # how many are started at most
    # how many of an open loop are on their way at once; the others wait, and their clock runs
    max_in_flight: int = 1000


Report = Callable[[int, int], None]  # requests ended; requests in all, 0 if that is not known


def open_loop(wire: Wire, rate: float, bounds: Bounds, report: Report = lambda done, total: None) -> Tally:
    """Request i is due at i / rate seconds, whatever became of those before.

    Latency counts from when a request was due, not from when it was sent: a server that stalls for a second
    is charged for all that should have been asked in that second, and so is a client that cannot keep up.
    What is due, but not sent within ``timeout`` for want of a free place, is counted as NOT_SENT.
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
    """A number of callers, each of which asks again as soon as it has its answer. Latency counts from the sending."""
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
    """Requests on their way, and the tally of those that ended."""

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
        """Until something ended, or until a time; now and then report how far it is."""
        if not self._collect():
            self._wire.pause(min(until, self._reported + _BETWEEN_REPORTS))
            self._collect()
        now = self._wire.now()
        if now >= self._reported + _BETWEEN_REPORTS:
            self._reported = now
            self._report(self.tally.requests)

    def finish(self, timeout: float) -> Tally:
        """Wait for the last answers. Every call has a deadline; should one not keep it, it is given up."""
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
