"""What ended a run, in one line."""

from __future__ import annotations

import re
from pathlib import Path

import tensorflow as tf

from afm_ctr.distributed.peer_monitor import PeerMonitor
from afm_ctr.errors import RunError, UserError, chain_of, find_lost_rank
from afm_ctr.records import Reader


def explain_failure(
    error: Exception, folder: Path, reader: Reader, roll: PeerMonitor | None
) -> UserError | RunError | None:
    """The one-line error of an exception that ended a run; None for one that was not foreseen.

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
            f"out of memory ({_what_was_wanted(error)}): lower batch_size or the number of ranks a machine; the same "
            f"command resumes from the last checkpoint in {folder}"
        )
    lost = find_lost_rank(error)
    if lost is None:
        return None
    missing = roll.explain() if roll is not None else None
    return lost if missing is None else RunError(missing)


def _out_of_memory(error: BaseException) -> bool:
    return any(
        # What a function of ours raises inside a graph arrives as text.
        isinstance(seen, (MemoryError, tf.errors.ResourceExhaustedError)) or "MemoryError" in str(seen)
        for seen in chain_of(error)
    )


def _what_was_wanted(error: BaseException) -> str:
    """TensorFlow says it in the midst of many lines."""
    wanted = re.search(r"OOM when allocating tensor[^\n]*?(?= by allocator|\n|$)", str(error))
    return wanted[0] if wanted else type(error).__name__


def unwritable(run: str | Path, error: OSError) -> UserError:
    """What to say of a run's folder that does not take a file."""
    return UserError(
        f"cannot write the run in {run}: {error}; every checkpoint there is whole, so the same command resumes once "
        "that is fixed"
    )
