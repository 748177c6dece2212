"""Progress of a run: a bar on a terminal, a line now and then elsewhere, curves in TensorBoard."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from afm_ctr.visible import fitted, visible

Mode = Literal["auto", "bar", "lines", "none"]
Say = Callable[[str], None]
"""Called with a line for the user."""

_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_BARS, _STEPS_BETWEEN_CURVES = 10.0, 0.25, 50
# Figures in an epoch's line: key, name, and for a loss the key of the constant's. The line fits 80 columns.
_SHOWN = {
    "loss": ("loss", "constant_loss"),
    "val_log_loss": ("val", "val_constant_log_loss"),
    "val_rmse": ("val RMSE", ""),
    "val_auc": ("AUC", ""),
    "val_group_auc": ("group", ""),
}


class Reporter(keras.callbacks.Callback):
    """Loss, rows per second and time left, to stderr.

    Args:
        done_in_epoch: returns the number of steps done in the current epoch (a resumed epoch begins in its middle).
        mode: ``"auto"`` shows a bar on a terminal and lines elsewhere.
    """

    def __init__(
        self,
        steps: int,
        epochs: int,
        done_in_epoch: Callable[[], int],
        rows_done: Callable[[], int],
        mode: Mode = "auto",
    ) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False)
        self.mode: Mode = ("bar" if self._console.is_terminal else "lines") if mode == "auto" else mode
        self._steps, self._epochs, self._done, self._rows = steps, epochs, done_in_epoch, rows_done
        self._bar: Progress | None = None
        self._epoch, self._explained = 0, False
        self._began = self._first_step = self._last_line = time.monotonic()
        self._steps_here = self._rows_before = 0

    def say(self, text: str) -> None:
        """Print one line, in every mode except ``"none"``."""
        if self.mode == "none":
            return
        text = visible(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            print(fitted(text, sys.stderr), file=sys.stderr, flush=True)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._began = self._last_line = time.monotonic()
        self._first_step = self._began
        self._steps_here, self._rows_before = 0, self._rows()
        if self.mode == "bar":
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(), console=self._console, transient=True,
            )  # fmt: skip
            self._bar.add_task(self._title(), total=self._steps, completed=self._done(), figures="")
            self._bar.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps_here += 1
        now = time.monotonic()
        if self._steps_here == 1:
            self._first_step = now  # it builds the graph, so its time is not typical
        if self._bar is not None and now - self._last_line >= _SECONDS_BETWEEN_BARS:
            self._last_line = now  # an update shows the loss, and so waits for the step
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._done(), figures=self._figures(now, logs))
        elif self.mode == "lines" and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            done = f"step {self._done():,} of {self._steps:,}"
            self.say(f"{self._title()}, {done}: {self._figures(now, logs)}{self._left(now)}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.close()
        logs = logs or {}
        there = [name for name in _SHOWN if isinstance(logs.get(name), float)]
        if "val_log_loss" in there:
            there.remove("val_rmse")
        figures = [f"{_SHOWN[name][0]} {logs[name]:.4f}{_against_constant(name, logs)}" for name in there]
        if logs.get("rows_per_second") and "val_group_auc" not in there:
            figures.append(f"{logs['rows_per_second']:,.0f}/s")
        if not self._explained:
            self._explained = True
            self.say("in brackets: a constant's loss; val, AUC: on validation rows; /s: rows/second")
        self.say(f"{self._title()}: {', '.join(figures)}")

    def _title(self) -> str:
        return f"epoch {self._epoch + 1}/{self._epochs}"

    def _left(self, now: float) -> str:
        """The epoch's time left, by the steps after the first."""
        timed = self._steps_here - 1
        return f", {(self._steps - self._done()) * (now - self._first_step) / timed:.0f} s left" if timed else ""

    def _figures(self, now: float, logs: dict[str, Any] | None) -> str:
        rate = (self._rows() - self._rows_before) / max(now - self._began, 1e-9)
        loss = (logs or {}).get("loss")
        return f"{'' if loss is None else f'loss {float(loss):.4f}, '}{rate:,.0f} rows/s"


def _against_constant(name: str, logs: dict[str, Any]) -> str:
    """The constant's loss, to compare a log loss with."""
    constant = logs.get(_SHOWN[name][1])
    return "" if constant is None else f" ({constant:.4f})"


class TensorBoardScalars(keras.callbacks.Callback):
    """Scalars against the run's step: running loss, learning rate and speed within an epoch, metrics at its end."""

    def __init__(self, folder: Path, step: Callable[[], int], rows_done: Callable[[], int]) -> None:
        super().__init__()
        self._folder = folder
        self._writer: Any = None  # created with the first figure: before that the folder may belong to another run
        self._step, self._rows = step, rows_done
        self._since: tuple[int, float] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._since = (self._rows(), time.monotonic())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = self._step()
        if step % _STEPS_BETWEEN_CURVES:
            return
        figures = {"train/learning_rate": float(self.model.optimizer.learning_rate)}
        if (logs or {}).get("loss") is not None:
            figures["train/loss"] = float((logs or {})["loss"])
        rows = self._rows()
        if self._since is not None:
            seconds = time.monotonic() - self._since[1]
            figures["train/rows_per_second"] = (rows - self._since[0]) / max(seconds, 1e-9)
        self._since = (rows, time.monotonic())
        self._write(figures)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if "step" not in (logs or {}):
            return  # an incomplete epoch
        numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, (int, float)) and k != "step"}
        self._write({f"epoch/{name}": float(value) for name, value in numbers.items()})
        self._writer.flush()

    def _write(self, figures: dict[str, float]) -> None:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
        with self._writer.as_default(step=self._step()):
            for name, value in figures.items():
                tf.summary.scalar(name, value)

    def close(self) -> None:
        """Flush the event file."""
        if self._writer is not None:
            self._writer.close()
