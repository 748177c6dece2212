"""What keeps a run from hanging, lets it be stopped, and says what ended it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from afm_ctr.distributed import Watchdog, World
from afm_ctr.distributed.peer_monitor import PeerMonitor
from afm_ctr.distributed.watchdog import main_thread_place
from afm_ctr.errors import UserError
from afm_ctr.records import Reader
from afm_ctr.training.config import TrainConfig
from afm_ctr.training.failures import told
from afm_ctr.training.ranks import on_chief
from afm_ctr.training.stopping import StopSignals


class Guard:
    """Watchdog, roll call and signals of one run on one set of ranks.

    Args:
        config: of the run.
        world: the ranks.
        folder: of the run.
        reader: of the train split.

    Attributes:
        watchdog: for ``fit``; None if the config wants none.
        signals: to be entered around the run.
    """

    def __init__(self, config: TrainConfig, world: World, folder: Path, reader: Reader) -> None:
        self._world, self._folder, self._reader = world, folder, reader
        self._roll: PeerMonitor | None = None
        self.signals = StopSignals()
        self.watchdog: Watchdog | None = None
        if config.watchdog is not None:
            self.watchdog = Watchdog(world, config.watchdog.timeout_seconds, explain=self._who_is_stuck)

    def begin(self) -> None:
        """Get to know the other ranks; all of them must call it."""
        self._roll = PeerMonitor(self._world, main_thread_place)

    def beat(self) -> None:
        """Something was done."""
        if self.watchdog is not None:
            self.watchdog.beat()

    def wait_for_chief(self, work: Callable[[], None]) -> None:
        """Let rank 0 do something that may take longer than a step, such as waiting for its disk.

        The others' watchdogs stand still: rank 0's own ends the job if nothing moves there.

        Raises:
            UserError: the work did, on rank 0.
        """
        waits = self.watchdog is not None and not self._world.is_chief
        with self.watchdog.paused() if self.watchdog is not None and waits else contextlib.nullcontext():
            try:
                on_chief(self._world, work)
            except UserError as error:
                if self._world.is_chief:
                    raise
                raise UserError(f"rank 0: {error}") from error

    def tell(self, error: Exception) -> Exception | None:
        """What to say of an exception that ends the run, to the user and to the other ranks; see :func:`told`.

        None if the exception itself is what to say, or nobody foresaw it.
        """
        cause = told(error, self._folder, self._reader, self._roll)
        if self._roll is not None:
            self._roll.close(str(cause or f"{type(error).__name__}, see its traceback"))
        return None if cause is error else cause

    def close(self) -> None:
        """Watch no longer."""
        if self._roll is not None:
            self._roll.close("stopped")
        if self.watchdog is not None:
            self.watchdog.stop()

    def _who_is_stuck(self) -> str | None:
        return None if self._roll is None else self._roll.explain(stuck=True)
