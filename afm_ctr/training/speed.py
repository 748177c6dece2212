"""How fast a run trains."""

from __future__ import annotations

import time
from typing import Any


class Speed:
    """Seconds and rows of the steps alone: validation, checkpoints and a call's first step are left out.

    Attributes:
        seconds: of training in this call.
        epoch_seconds: of the epoch under way, over all calls.
    """

    def __init__(self) -> None:
        self.seconds, self.epoch_seconds = 0.0, 0.0
        self._rows = self._epoch_rows = 0
        self._since: float | None = None

    def begin(self, counts: bool) -> None:
        """A fit begins; ``counts`` is False where its first step traces."""
        self._since = time.monotonic() if counts else None

    def step(self, rows: int) -> None:
        """A step over so many rows has just ended."""
        if self._since is None:
            return
        seconds = time.monotonic() - self._since
        self.epoch_seconds += seconds
        self.seconds += seconds
        self._epoch_rows += rows
        self._rows += rows

    def go_on(self) -> None:
        """What lies between two steps is done."""
        self._since = time.monotonic()

    def end_epoch(self) -> None:
        """The next epoch starts from nothing."""
        self.epoch_seconds, self._epoch_rows = 0.0, 0

    @property
    def rows_per_second(self) -> float | None:
        """Of this call, over all ranks; None where no step was timed."""
        return _rate(self._rows, self.seconds)

    @property
    def epoch_rows_per_second(self) -> float | None:
        """Of the epoch under way."""
        return _rate(self._epoch_rows, self.epoch_seconds)

    def get_state(self) -> dict[str, Any]:
        """The epoch's part, for a checkpoint."""
        return {"seconds": self.epoch_seconds, "rows": self._epoch_rows}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`get_state` left off."""
        self.epoch_seconds, self._epoch_rows = state["seconds"], state["rows"]


def _rate(rows: int, seconds: float) -> float | None:
    return round(rows / seconds, 1) if seconds else None
