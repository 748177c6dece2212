"""How a user's mistake travels from where it is found to the one line that the command prints."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_MARK = "[afm-ctr] "
# Horovod's words when its background thread has stopped, and Gloo's when a connection has broken.
_LOST_RANK = ("Horovod has been shut down", "gloo/transport/tcp", "Connection closed by peer")


class UserError(Exception):
    """The user's mistake. The text is one line: what is wrong, where, how to fix it. The command exits with 2."""


class RunError(RuntimeError):
    """A run that cannot continue, for a known reason that one line names, not the user's mistake. Exits with 1."""


class Stopped(Exception):
    """A run that a signal ended, in order. Exits with ``code``, 128 + the signal's number."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def in_graph(message: str) -> str:
    """Mark a message raised inside a TensorFlow graph, so that :func:`find_user_error` knows it again.

    TensorFlow wraps what a graph raises in an error of its own with many lines around it.
    """
    return f"{_MARK}{message}"


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it came from, each once: a chain may lead back to its start."""
    met: set[int] = set()
    seen: BaseException | None = error
    while seen is not None and id(seen) not in met:
        met.add(id(seen))
        yield seen
        seen = seen.__cause__ or seen.__context__


def release(error: BaseException) -> None:
    """Free what the frames of an exception and of its causes still hold.

    To be called once an exception has been reported. An iterator of ``tf.data`` in such a frame lives until Python
    ends, and its threads, which run our Python to read ahead, can then block the end of the process for ever.
    """
    for seen in chain_of(error):
        traceback.clear_frames(seen.__traceback__)
        seen.__traceback__ = None  # Keras cuts its own frames out; those left lead to them all the same
    gc.collect()


def find_user_error(error: BaseException) -> UserError | None:
    """The user's mistake behind an exception: itself, one of its causes, or a marked message in its text."""
    for seen in chain_of(error):
        found = re.search(r"(\[?)" + re.escape(_MARK) + r"(.*)", str(seen))
        if found:
            text = found.group(2).strip()
            return UserError(text.removesuffix("]") if found.group(1) else text)  # of an Assert, in brackets
        if isinstance(seen, UserError):
            return seen
    return None


@contextmanager
def explained() -> Iterator[None]:
    """Raise the user's mistake behind an exception in its place; what the exception's frames hold is freed."""
    try:
        yield
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is None or mistake is error:
            raise
        release(error)
        raise mistake from error


def find_lost_rank(error: BaseException) -> RunError | None:
    """What to say of an exchange that failed because another rank has ended; None for any other exception.

    The rank that ended says why; what the others get of Horovod is a page of its own workings.
    """
    for seen in chain_of(error):
        if any(sign in str(seen) for sign in _LOST_RANK):
            return RunError("another rank of the job has ended: its own message says why")
    return None
