"""The exceptions that the command prints as one line, and how they are found behind other exceptions."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_MARK = "[afm-ctr] "
# Horovod's message when its background thread has stopped, and Gloo's when a connection has broken.
_LOST_RANK = ("Horovod has been shut down", "gloo/transport/tcp", "Connection closed by peer")


class UserError(Exception):
    """A user's mistake. The text is one line: what is wrong, where, how to fix it. The command exits with 2."""


class RunError(RuntimeError):
    """A run that cannot continue for a known reason, not the user's mistake. Its text is one line; exits with 1."""


class Stopped(Exception):
    """A run that a signal ended in order. Exits with ``code``, 128 + the signal's number."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def in_graph(message: str) -> str:
    """Mark a message raised inside a TensorFlow graph, so that :func:`find_user_error` recognises it.

    TensorFlow wraps what a graph raises in its own error with many lines around it.
    """
    return f"{_MARK}{message}"


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes and contexts, each once: the chain may be circular."""
    met: set[int] = set()
    seen: BaseException | None = error
    while seen is not None and id(seen) not in met:
        met.add(id(seen))
        yield seen
        seen = seen.__cause__ or seen.__context__


def release(error: BaseException) -> None:
    """Free what the frames of an exception and of its causes still hold.

    Call it once an exception has been reported. An iterator of ``tf.data`` in such a frame lives until Python exits,
    and its threads, which run Python code to read ahead, can then block the exit forever.
    """
    for seen in chain_of(error):
        traceback.clear_frames(seen.__traceback__)
        seen.__traceback__ = None  # Keras removes its own frames; the remaining ones still lead to them
    gc.collect()


def find_user_error(error: BaseException) -> UserError | None:
    """The UserError behind an exception: itself, one of its causes, or a marked message in its text."""
    for seen in chain_of(error):
        found = re.search(r"(\[?)" + re.escape(_MARK) + r"(.*)", str(seen))
        if found:
            text = found.group(2).strip()
            return UserError(text.removesuffix("]") if found.group(1) else text)  # Assert adds brackets
        if isinstance(seen, UserError):
            return seen
    return None


@contextmanager
def explained() -> Iterator[None]:
    """Raise the UserError behind an exception in its place, and free what the exception's frames hold."""
    try:
        yield
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is None or mistake is error:
            raise
        release(error)
        raise mistake from error


def find_lost_rank(error: BaseException) -> RunError | None:
    """The error for an exchange that failed because another rank has ended; None for any other exception.

    The rank that ended prints the reason; the others get a page of Horovod's internals.
    """
    for seen in chain_of(error):
        if any(sign in str(seen) for sign in _LOST_RANK):
            return RunError("another rank of the job has ended: its own message says why")
    return None
