"""Runs of prepare that die by SIGKILL in the middle of a write, and whole ones, in forked children of one process.

Reads a JSON object a line: ``options`` of prepare and ``dies``: a part of the path of the file in whose writing the
run is to end, and how many such files are written before; null = it is not to end. Answers with the exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

# Loaded before the forks, and not used by this process, so that it has no threads.
import tensorflow  # noqa: F401

import beam_jobs.convert  # noqa: F401
from afm_ctr.io import files as local_files
from beam_jobs import PrepareOptions, files, prepare


def die_in(part: str, before: int) -> None:
    """End this process when the next file but so many is half written whose path holds ``part``."""
    creating, write_bytes, left = files.creating, local_files.write_bytes, before

    def hit(path: str) -> bool:
        nonlocal left
        left -= part in path
        return part in path and left < 0

    @contextmanager
    def dying_creating(path: str, **options: Any) -> Iterator[BinaryIO]:
        with creating(path, **options) as stream:
            yield stream
            if hit(path):
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(path: str | os.PathLike[str], content: bytes) -> None:
        if hit(f"{path}?"):
            os.kill(os.getpid(), signal.SIGKILL)
        write_bytes(path, content)
        if hit(f"{path}!"):
            os.kill(os.getpid(), signal.SIGKILL)

    files.creating = dying_creating
    local_files.write_bytes = dying_write


def run(task: dict[str, Any]) -> None:
    if task["dies"]:
        die_in(*task["dies"])
    prepare(PrepareOptions(**task["options"]))


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run(json.loads(line))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
