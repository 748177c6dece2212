"""Load test: the statistics, and the accounting of both loops, with a server and a clock that are made up."""

from __future__ import annotations

import heapq
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.errors import UserError
from afm_ctr.prediction import PredictSummary
from serving.load import Slo
from serving.load.measurements import NOT_SENT, Result, Tally, quantile
from serving.load.pictures import histogram
from serving.load.requests import Traffic
from serving.load.run import LoadReport, highest_rate, load_test
from serving.load.senders import Bounds, Ended, closed_loop, open_loop
from serving.score import ScoreSummary


class FakeWire:
    """A server with ``places`` at which a request takes ``service`` seconds; no request starts during a stall."""

    def __init__(self, service: float, places: int = 1, stall: tuple[float, float] = (0.0, 0.0), fail: str = ""):
        self.time = 0.0
        self.sent: list[tuple[int, float]] = []
        self._service, self._stall, self._fail = service, stall, fail
        self._free = [0.0] * places
        self._answers: list[tuple[float, int, str, Callable[[Ended], None]]] = []

    def now(self) -> float:
        return self.time

    def send(self, number: int, timeout: float, done: Callable[[Ended], None]) -> None:
        self.sent.append((number, self.time))
        begin = max(self.time, heapq.heappop(self._free))
        if self._stall[0] <= begin < self._stall[1]:
            begin = self._stall[1]
        end = begin + self._service
        heapq.heappush(self._free, end)
        code = self._fail or "OK"
        if end > self.time + timeout:
            end, code = self.time + timeout, "DEADLINE_EXCEEDED"
        heapq.heappush(self._answers, (end, number, code, done))

    def pause(self, until: float) -> None:
        if self._answers and self._answers[0][0] <= until:
            end, _, code, done = heapq.heappop(self._answers)
            self.time = max(self.time, end)
            done(Ended(code, end, "said" if code != "OK" else ""))
        else:
            self.time = max(self.time, until)

    def cancel(self) -> None:
        while self._answers:
            end, _, _, done = heapq.heappop(self._answers)
            done(Ended("CANCELLED", end))


class SilentWire(FakeWire):
    """Never answers, not even at the deadline or when it is given up."""

    def send(self, number: int, timeout: float, done: Callable[[Ended], None]) -> None:
        self.sent.append((number, self.time))

    def cancel(self) -> None:
        pass


def result_of(latencies_ms: list[float], failed: int = 0, mode: str = "open", rows: int = 8) -> Result:
    tally = Tally(
        array("d", [value / 1e3 for value in latencies_ms]), errors=Counter({"X": failed} if failed else {})
    )
    tally.ended = 2.0
    return Result(tally, rows, mode, 100.0)


def test_quantiles_by_hand() -> None:
    values = [float(value) for value in range(1, 1001)]
    assert [quantile(values, q) for q in (50, 90, 95, 99, 99.9, 100)] == [500, 900, 950, 990, 999, 1000]
    assert quantile([7.0], 99.9) == 7.0
    assert math.isnan(quantile([], 50))
    # 98 answers and 2 failures: the 98th of 100 is an answer, the 99th is not.
    assert quantile(values[:98], 98, failed=2) == 98.0
    assert quantile(values[:98], 99, failed=2) == math.inf


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.1, 100))
def test_quantile_is_the_smallest_value_that_covers_enough(values: list[float], percent: float) -> None:
    ascending = sorted(values)
    found = quantile(ascending, percent)
    need = percent / 100 * len(values) - 1e-6
    assert sum(value <= found for value in values) >= need
    below = [value for value in values if value < found]
    assert len(below) < need + 2e-6 or not below


def test_a_picture_has_plain_numbers_on_its_axes() -> None:
    figure = histogram(result_of([3.0, 40.0, 500.0] * 9), (), "model at $target$")
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"10", "100"} <= set(labels) and not any("mathdefault" in label for label in labels)


def test_histogram_counts_every_answer_once() -> None:
    rng = np.random.default_rng(0)
    latencies = [*rng.lognormal(1, 1, 500), 1.0, 10.0, 100.0]
    edges, counts = result_of(latencies).histogram()
    assert counts.sum() == 503 and len(edges) == len(counts) + 1
    assert edges[0] <= min(latencies) and edges[-1] >= max(latencies)
    np.testing.assert_allclose(edges[1:] / edges[:-1], 10 ** (1 / 20))
    assert result_of([]).histogram()[1].sum() == 0
    assert result_of([10.0] * 4).histogram()[1].tolist() == [4]


def test_figures_are_plain_json_even_without_an_answer() -> None:
    told = json.loads(json.dumps(result_of([1.0, 3.0], failed=1).to_json(), allow_nan=False))
    assert (told["requests"], told["answered"], told["errors"]) == (3, 2, {"X": 1})
    assert told["requests_per_second"] == pytest.approx(1.0) and told["rows_per_second"] == pytest.approx(8.0)
    assert told["latency_ms"]["p50"] == pytest.approx(1.0) and told["latency_ms"]["mean"] == pytest.approx(2.0)
    nothing = json.loads(json.dumps(result_of([], failed=2).to_json(), allow_nan=False))
    assert nothing["latency_ms"]["p99"] is None and nothing["latency_ms"]["max"] is None


def test_one_row_and_one_error_are_no_plurals() -> None:
    result = result_of([1.0], mode="closed", rows=1)
    report = LoadReport("localhost:1", "m", Traffic([b""], 1, 1, 0), result, Slo(()))
    first, *_ = str(report).splitlines()
    assert first == "localhost:1 m, closed loop, 100 callers, 1 row per request, 2.0 s"
    for summary in (ScoreSummary("o", 1, 1, 0, [3], 0.5), PredictSummary("o", 1, 1, 0.5)):
        assert str(summary).startswith("o: 1 row, 1 of them an error, 2 rows/s")


def test_promises_are_read_and_judged() -> None:
    slo = Slo.parse(["p99=20ms, p50 = 0.5s", "p99.9=800us"])
    assert [(limit.percent, limit.limit_ms) for limit in slo.limits] == [(99, 20), (50, 500), (99.9, 0.8)]
    for wrong in ("p99", "20ms", "p99=20", "p0=1ms", "p99=0ms", "q99=1ms", "p100=1ms", "p99=1min", ""):
        with pytest.raises(UserError, match="p99=20ms"):
            Slo.parse([wrong])
    verdicts = Slo.parse(["p50=2ms,p99=2ms"]).judge(result_of([1.0, 2.0, 3.0]))
    assert [verdict.holds for verdict in verdicts] == [True, False]
    assert verdicts[1].measured_ms == pytest.approx(3.0) and "MISSED" in str(verdicts[1])
    few, many = (Slo.parse(["p99=2ms"]).judge(result_of([1.0] * 99, failed))[0] for failed in (1, 2))
    assert few.holds and not many.holds and "a failed request" in str(many)


def test_open_loop_sends_at_the_rate_and_measures_from_the_due_time() -> None:
    wire = FakeWire(service=0.004, places=2)
    tally = open_loop(wire, 100.0, Bounds(duration=2.0))
    assert [number for number, _ in wire.sent] == list(range(200))
    np.testing.assert_allclose([at for _, at in wire.sent], np.arange(200) / 100.0, atol=1e-9)
    np.testing.assert_allclose(tally.latencies, 0.004, atol=1e-9)
    assert not tally.errors and max(tally.lags) < 1e-9
    assert Result(tally, 1, "open", 100.0).request_rate == pytest.approx(100, rel=0.01)


def test_open_loop_does_not_hide_a_stall() -> None:
    """One second of stall at 100/s: the hundred requests due in it waited half a second on average."""
    wire = FakeWire(service=0.001, places=100, stall=(1.0, 2.0))
    tally = open_loop(wire, 100.0, Bounds(duration=4.0))
    waited = [value for value in tally.latencies if value > 0.0015]
    assert len(tally.latencies) == 400 and not tally.errors
    assert len(waited) == pytest.approx(100, abs=2)
    assert np.mean(waited) == pytest.approx(0.5, abs=0.02)
    assert max(waited) == pytest.approx(1.0, abs=0.02)


def test_open_loop_counts_from_the_due_time_when_places_are_scarce() -> None:
    """Two in flight at most, 0.1 s each: 20/s leave, 40/s are due. The wait for a place is part of the latency."""
    wire = FakeWire(service=0.1, places=2)
    tally = open_loop(wire, 40.0, Bounds(duration=1.0, max_in_flight=2))
    assert len(tally.latencies) == 40
    assert max(tally.latencies) == pytest.approx(0.1 + 1.0, abs=0.06)
    assert max(tally.lags) == pytest.approx(1.0, abs=0.06)


def test_what_cannot_be_sent_in_time_is_counted_and_the_end_is_bounded() -> None:
    slow, silent = FakeWire(service=100.0), SilentWire(0.0)
    bounds = Bounds(duration=3.0, timeout=1.0, max_in_flight=2)
    assert open_loop(slow, 10.0, bounds).errors == {"DEADLINE_EXCEEDED": 30}
    assert slow.now() <= 3.0 + 1.0 + 0.01
    tally = open_loop(silent, 10.0, bounds)
    assert tally.errors == {NOT_SENT: 28, "DEADLINE_EXCEEDED": 2}
    assert "2 requests were in flight" in tally.examples[NOT_SENT]
    assert silent.now() <= 3.0 + 1.0 + 11.1


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_wire_that_never_answers_ends_too(loop: str) -> None:
    wire, bounds = SilentWire(0.0), Bounds(duration=1.0, timeout=2.0)
    tally = open_loop(wire, 5.0, bounds) if loop == "open" else closed_loop(wire, 3, bounds)
    assert tally.errors == {"DEADLINE_EXCEEDED": 5 if loop == "open" else 3}
    assert wire.now() <= 1.0 + 2.0 + 10.1


def test_errors_are_counted_by_code() -> None:
    reports: list[tuple[int, int]] = []
    tally = open_loop(
        FakeWire(0.001, fail="UNAVAILABLE"), 10.0, Bounds(2.0), lambda done, total: reports.append((done, total))
    )
    assert tally.errors == {"UNAVAILABLE": 20} and tally.examples == {"UNAVAILABLE": "said"}
    assert reports[-1] == (20, 20) and [done for done, _ in reports] == sorted(done for done, _ in reports)


def test_closed_loop_keeps_so_many_callers_busy() -> None:
    wire = FakeWire(service=0.01, places=4)
    tally = closed_loop(wire, 4, Bounds(duration=1.0))
    np.testing.assert_allclose(tally.latencies, 0.01, atol=1e-9)
    assert len(tally.latencies) == pytest.approx(400, abs=4)
    assert len(closed_loop(FakeWire(0.01), 4, Bounds(1.0, max_requests=7)).latencies) == 7


def test_at_most_so_many_requests() -> None:
    assert open_loop(FakeWire(0.001), 1000.0, Bounds(10.0, max_requests=25)).requests == 25
    assert open_loop(FakeWire(0.001), 0.01, Bounds(0.5)).requests == 1


@pytest.mark.parametrize(("limit", "start"), [(137.0, 10.0), (137.0, 1000.0), (3.0, 800.0), (5000.0, 80.0)])
def test_sweep_finds_the_highest_rate(limit: float, start: float) -> None:
    tried: list[float] = []
    found = highest_rate(lambda rate: tried.append(rate) or rate <= limit, start)
    assert found is not None and found <= limit < found * 1.1
    assert len(tried) <= 14 and found in tried


def test_sweep_ends_where_nothing_or_everything_holds() -> None:
    tried: list[float] = []
    assert highest_rate(lambda rate: bool(tried.append(rate)), 100.0) is None
    assert min(tried) >= 0.5 and len(tried) <= 14
    assert highest_rate(lambda rate: True, 1.0, max_steps=5) == 16.0


@pytest.mark.parametrize(
    ("given_settings", "says"),
    [
        ({}, "either --rate"),
        ({"rate": 1.0, "concurrency": 1}, "either --rate"),
        ({"sweep": True}, "give --slo"),
        ({"sweep": True, "concurrency": 1, "slo": Slo.parse(["p50=1s"])}, "no --concurrency"),
    ],
)
def test_settings_that_exclude_each_other(given_settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_test("nowhere:1", "afm", "s.yaml", "in.csv", **given_settings)  # type: ignore[arg-type]
