"""The lines of a run without a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest

from afm_ctr.training import progress
from afm_ctr.visible import counted, fitted


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


def test_an_epoch_is_the_figures_that_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = progress.Reporter(100, 3, lambda: 100, lambda: 1000, "lines")
    logs: dict[str, Any] = {
        "loss": 0.551264,
        "constant_loss": 0.5518,
        "normalised_entropy": 0.999,
        "val_rmse": 0.4225,
    }
    reporter.on_epoch_end(0, logs)
    reporter.on_epoch_end(0, {**logs, "val_auc": 0.52699, "val_log_loss": 0.542244, "val_constant_log_loss": 0.54327})
    legend, without, whole = capsys.readouterr().err.splitlines()
    assert legend.startswith("in brackets: a constant's loss; val, AUC: on validation rows")
    assert without == "epoch 1/3: loss 0.5513 (0.5518), val RMSE 0.4225"
    assert whole == "epoch 1/3: loss 0.5513 (0.5518), val 0.5422 (0.5433), AUC 0.5270"


@pytest.mark.parametrize("more", [{"val_group_auc": 0.61}, {}])
def test_the_lines_of_epochs_fit_a_terminal(more: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    reporter = progress.Reporter(100, 30, lambda: 100, lambda: 1000, "lines")
    reporter.on_epoch_begin(29)
    logs = {"loss": 0.551264, "constant_loss": 0.5518, "val_rmse": 0.4225, "val_auc": 0.52699, "val_log_loss": 0.5422}
    reporter.on_epoch_end(29, {**logs, **more, "val_constant_log_loss": 0.54327, "rows_per_second": 1_234_567.0})
    legend, line = capsys.readouterr().err.splitlines()
    assert len(legend) <= 80 and len(line) <= 80
    assert line.endswith(", AUC 0.5270, group 0.6100" if more else ", AUC 0.5270, 1,234,567/s")


def test_one_is_not_many() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]


def test_a_long_line_breaks_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "30")
    text = "warning: /a/path/that/is/longer/than/the/terminal is well-known; more epochs help"
    assert fitted(text, io.StringIO()) == text and fitted("short", Terminal()) == "short"
    lines = fitted(text, Terminal()).split("\n")
    assert " ".join(lines) == text and len(lines) == 4
    assert [len(line) <= 30 for line in lines] == [True, False, True, True]
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    progress.Reporter(1, 1, int, int, "lines").say(text)
    assert screen.getvalue() == "\n".join(lines) + "\n"
