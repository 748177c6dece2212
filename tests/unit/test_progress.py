"""The lines of a run without a terminal."""

from __future__ import annotations

import pytest

from afm_ctr.training import progress
from afm_ctr.visible import counted


def test_the_time_left_does_not_go_by_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, done = [0.0], [0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    reporter = progress.Reporter(100, 1, lambda: done[0], lambda: 10 * done[0], "lines")
    reporter.on_epoch_begin(0)
    for seconds in (50.0, 1.0, *[1.0] * 10):  # the first step builds the graph
        clock[0] += seconds
        done[0] += 1
        reporter.on_train_batch_end(0)
    first, second = capsys.readouterr().err.splitlines()
    assert "step 1 of 100" in first and "left" not in first
    assert "step 11 of 100" in second and second.endswith(", 89 s left")


def test_one_is_not_many() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
