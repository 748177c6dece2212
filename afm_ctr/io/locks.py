"""One process at a time in a local folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from afm_ctr.errors import UserError


@contextmanager
def exclusive_lock(folder: str | os.PathLike[str], taken: str) -> Iterator[None]:
    """Hold a lock on a folder that is there. The system lets go of it however the process ends.

    Args:
        folder: local; on a file system that knows no locks nothing is held.
        taken: what to tell the user if another process holds it.

    Raises:
        UserError: another process is in the folder.
        OSError: the folder cannot be opened.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(taken) from None
        except OSError:
            pass  # a file system that knows no locks
        yield
    finally:
        os.close(lock)
