"""Checkpoints written beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from afm_ctr.training.failures import unwritable
from afm_ctr.training.shelf import CheckpointShelf
from afm_ctr.training.snapshot import Snapshot

_SECONDS_BETWEEN_LOOKS = 0.5


class Saver:
    """Writes checkpoints in a thread of its own, one at a time. Rank 0 has the only one that is used.

    A failure to write is told by the next call, or by :meth:`settle` at the run's end: the training goes on until
    then, and the checkpoint before it stays.

    Args:
        shelf: where they go.
        beat: called while somebody waits for a writer that makes progress, for a watchdog.
    """

    def __init__(self, shelf: CheckpointShelf, beat: Callable[[], None] = lambda: None) -> None:
        self._shelf = shelf
        self._beat = beat
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._files = 0

    def save(self, take: Callable[[], Snapshot], best: dict[str, Any] | None) -> None:
        """Take a snapshot and see to it that it is written; returns as soon as it is taken.

        Waits for the one before it first, so that there is never more than one copy of the state in memory.

        Args:
            take: makes the snapshot.
            best: see :meth:`~afm_ctr.training.shelf.CheckpointShelf.save`.

        Raises:
            UserError: of the one before: it cannot be written, or its values are not finite.
        """
        self.settle()
        self._thread = threading.Thread(
            target=self._write, args=(take(), best), name="afm-ctr-checkpoint", daemon=True
        )
        self._thread.start()

    def settle(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            UserError: see :meth:`save`.
        """
        self._wait()
        failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            raise unwritable(self._shelf.folder.parent, failure) from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait likewise and say nothing: the run ends for a reason of its own."""
        self._wait()

    def _wait(self) -> None:
        files = self._files
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(_SECONDS_BETWEEN_LOOKS)
            if files != self._files:  # a disk that hangs is the watchdog's to end
                files = self._files
                self._beat()
        self._thread = None

    def _write(self, snapshot: Snapshot, best: dict[str, Any] | None) -> None:
        try:
            self._shelf.save(snapshot, best, self._count)
        except Exception as error:
            self._failure = error

    def _count(self) -> None:
        self._files += 1
