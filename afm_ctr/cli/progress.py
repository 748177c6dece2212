"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from afm_ctr.cli.app import console

RowProgress = Callable[[str, int, int], None]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def row_progress(title: str) -> Iterator[RowProgress]:
    """Yield a function of (stage, rows done, total rows; 0 = not known yet)."""
    if not console.is_terminal:
        yield _lines(title)
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as bar:
        task = bar.add_task(title, total=None)

        def update(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}: {stage}", completed=done, total=total or None)

        yield update


def _lines(title: str) -> RowProgress:
    last_stage, last_time = "", time.monotonic()

    def update(stage: str, done: int, total: int) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if stage == last_stage and now - last_time < _SECONDS_BETWEEN_LINES:
            return
        last_stage, last_time = stage, now
        count = f" {done:,} of {total:,} rows" if total else f" {done:,}" if done else ""
        console.print(f"{title}: {stage}{count}")

    return update
