"""Keeps a run from hanging: watchdog, stop signals, rank 0's errors on all ranks; and one line on what ended it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import tensorflow as tf

from afm_ctr.distributed import Watchdog, World
from afm_ctr.distributed.elastic import Result
from afm_ctr.distributed.peer_monitor import PeerMonitor
from afm_ctr.distributed.watchdog import main_thread_place
from afm_ctr.errors import RunError, Stopped, UserError, chain_of, find_lost_rank
from afm_ctr.io.files import refusal
from afm_ctr.records import Reader
from afm_ctr.training.config import TrainConfig

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_REQUEST_SECONDS = 1.0
_EVERY_STEPS = 10  # several ranks must agree on the step, which costs a small exchange


class Supervisor:
    """Watchdog, peer monitor and signals of one run on one set of ranks.

    Attributes:
        watchdog: for ``fit``; None if the config has none.
        signals: to be entered around the run.
    """

    def __init__(self, config: TrainConfig, world: World, folder: Path, reader: Reader) -> None:
        self._world, self._folder, self._reader = world, folder, reader
        self._roll: PeerMonitor | None = None
        self.signals = StopSignals()
        self.watchdog: Watchdog | None = None
        if config.watchdog is not None:
            self.watchdog = Watchdog(
                world,
                config.watchdog.timeout_seconds,
                explain=lambda: None if self._roll is None else self._roll.explain(stuck=True),
            )

    def begin(self) -> None:
        """Start monitoring the other ranks; all ranks must call it."""
        self._roll = PeerMonitor(self._world, main_thread_place)

    def beat(self) -> None:
        """Report progress."""
        if self.watchdog is not None:
            self.watchdog.beat()

    def wait_for_chief(self, work: Callable[[], None]) -> None:
        """Let rank 0 do something that may take longer than a step, such as waiting for its disk.

        The other ranks' watchdogs pause: rank 0's watchdog ends the job if nothing moves there.

        Raises:
            UserError: raised by the work, on rank 0.
        """
        waits = self.watchdog is not None and not self._world.is_chief
        with self.watchdog.paused() if self.watchdog is not None and waits else contextlib.nullcontext():
            try:
                on_chief(self._world, work)
            except UserError as error:
                if self._world.is_chief:
                    raise
                raise UserError(f"rank 0: {error}") from error

    def explain(self, error: Exception) -> Exception | None:
        """The error to show to the user and the other ranks in place of an exception; see :func:`explain_failure`.

        None if the exception is clear already, or was not foreseen.
        """
        cause = explain_failure(error, self._folder, self._reader, self._roll)
        if self._roll is not None:
            self._roll.close(str(cause or f"{type(error).__name__}, see its traceback"))
        return None if cause is error else cause

    def close(self) -> None:
        """Stop watching."""
        if self._roll is not None:
            self._roll.close("stopped")
        if self.watchdog is not None:
            self.watchdog.stop()


def on_chief(world: World, work: Callable[[], Result]) -> Result:
    """Run something on rank 0 only and give every rank its result, or raise its :class:`UserError` on every rank."""
    if world.size == 1:
        return work()
    result: Result | None = None
    mistake: str | None = None
    if world.is_chief:
        try:
            result = work()
        except UserError as error:
            mistake = str(error)
    result, mistake = world.broadcast_object((result, mistake))
    if mistake is not None:
        raise UserError(mistake)
    return result


def on_every(world: World, work: Callable[[], Result]) -> list[Result]:
    """Run something on every rank and give all of them the results by rank, or raise the first :class:`UserError`."""
    result: Result | None = None
    mistake: UserError | None = None
    try:
        result = work()
    except UserError as error:
        mistake = error
    everyone = world.allgather_object((result, mistake))
    for rank, (_, found) in enumerate(everyone):
        if found is not None:
            raise found if world.size == 1 else type(found)(f"rank {rank}: {found}")
    return [result for result, _ in everyone]


def check_same(world: World, mine: Mapping[str, Any]) -> None:
    """Refuse ranks that were given different options: they would train a mixture, or wait for each other.

    Args:
        mine: this rank's options, by name.

    Raises:
        UserError: on all ranks; names a rank, its value, and rank 0's.
    """
    first, *others = world.allgather_object(dict(mine))
    for rank, theirs in enumerate(others, 1):
        for what in first | theirs:
            if (found := theirs.get(what)) != (wanted := first.get(what)):
                raise UserError(
                    f"rank {rank} has another {what} than rank 0: {found!r}, not {wanted!r}; all ranks need the same "
                    "data, config and packages"
                )


class StopSignals:
    """While it is entered, SIGTERM and SIGINT let the current step finish and the state be saved.

    A second signal, a second or more after the first, has its usual effect. A sooner one counts as the same request
    by another way: Slurm, systemd and terminals signal every process of a group, and a launcher in that group passes
    its own on. Outside the main thread, and in an elastic job, whose launcher ends ranks by SIGTERM one by one,
    signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._first_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread() and os.environ.get("HOROVOD_ELASTIC") != "1":
            self._before = {one: signal.signal(one, self._receive) for one in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}

    def agreed(self, world: World, step: int) -> bool:
        """Whether the run ends after this step; all ranks call it at the same step and get the same answer."""
        if world.size == 1:
            return self.received is not None
        if step % _EVERY_STEPS:
            return False
        number = world.agree(self.received or 0)
        if number:
            self.received = signal.Signals(number)
        return bool(number)

    def stopped(self, step: int, folder: object) -> Stopped:
        """The exception that then ends the run."""
        assert self.received is not None
        return Stopped(
            f"stopped by {self.received.name} after step {step:,}: the state is saved in {folder}, the same command "
            "resumes from there",
            128 + self.received,
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._first_at == 0.0:
            self.received, self._first_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._first_at >= _SAME_REQUEST_SECONDS:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)


def explain_failure(
    error: Exception, folder: Path, reader: Reader, roll: PeerMonitor | None
) -> UserError | RunError | None:
    """The one-line error for an exception that ended a run; None if it was not foreseen.

    Args:
        roll: knows which rank is missing; None before the first step.
    """
    mistake = reader.mistake_behind(error)
    if mistake is not None:
        return mistake
    if isinstance(error, OSError):
        return unwritable(folder, error)
    if isinstance(error, RunError):
        return error
    if _out_of_memory(error):
        return RunError(
            f"out of memory ({_failed_allocation(error)}): lower batch_size or the number of ranks per machine; the "
            f"same command resumes from the last checkpoint in {folder}"
        )
    lost = find_lost_rank(error)
    if lost is None:
        return None
    missing = roll.explain() if roll is not None else None
    return lost if missing is None else RunError(missing)


def _out_of_memory(error: BaseException) -> bool:
    return any(
        # An exception of our functions inside a graph arrives as text.
        isinstance(seen, (MemoryError, tf.errors.ResourceExhaustedError)) or "MemoryError" in str(seen)
        for seen in chain_of(error)
    )


def _failed_allocation(error: BaseException) -> str:
    """TensorFlow's line about the allocation, out of a long message."""
    wanted = re.search(r"OOM when allocating tensor[^\n]*?(?= by allocator|\n|$)", str(error))
    return wanted[0] if wanted else type(error).__name__


def unwritable(run: str | Path, error: OSError) -> UserError:
    """The error for a run's folder that cannot be written."""
    remedy = "every checkpoint there is whole, so the same command resumes once that is fixed"
    if not os.path.isdir(run):
        remedy = "name another --model-dir"
    return UserError(f"cannot write the run in {run}: {refusal(error)}; {remedy}")


@contextlib.contextmanager
def writing(run: Path) -> Iterator[None]:
    """Within it a failure to write a run's folder is a :class:`UserError`; also a decorator."""
    try:
        yield
    except OSError as error:
        raise unwritable(run, error) from error
