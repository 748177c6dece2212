"""Opens a user's input: a file or a pipe, but nothing that may be endless."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable
from typing import BinaryIO

from afm_ctr.errors import UserError
from afm_ctr.io.files import PathLike, as_user_error
from afm_ctr.io.paths import expand, is_remote, local_files_alone

_WRITER_SECONDS = 5.0  # how long to wait for a writer of a pipe
_SETTINGS_BYTES = 64 << 20  # a schema's, config's or certificate's: a pipe may be endless


def check_input(path: PathLike) -> None:
    """Raise OSError, with a reason, for an invalid input: absent, forbidden, a folder, a device.

    A terminal is a device. Nothing is opened, so a pipe is not consumed.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not os.path.samefile(path, os.devnull)):
        kind = "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(errno.ENODEV, f"it is {kind}, not a file or a pipe", str(path))
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def input_files(patterns: Iterable[str]) -> list[str]:
    """The local files and pipes that paths and globs name, those of a glob sorted.

    Raises:
        UserError: there is none, or one is invalid; see :func:`check_input`.
    """
    found: list[str] = []
    for pattern in patterns:
        paths = expand(pattern)
        if not paths:
            raise local_files_alone(pattern) if is_remote(pattern) else UserError(f"--input {pattern}: no such file")
        for path in paths:
            with as_user_error(f"{path}: cannot read it"):
                check_input(path)
        found += paths
    return found


def open_input(path: PathLike) -> BinaryIO:
    """Open a file, or a pipe with a writer, for reading.

    Raises:
        OSError: see :func:`check_input`; or no process has opened the pipe for writing within 5 seconds.
    """
    check_input(path)
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return open(path, "rb")
    # Opening a pipe blocks until there is a writer, and only a separate thread can be left waiting.
    opened: list[BinaryIO] = []
    waiting = threading.Thread(target=lambda: opened.append(open(path, "rb")), daemon=True)  # noqa: SIM115
    waiting.start()
    waiting.join(_WRITER_SECONDS)
    if not opened:
        raise OSError(errno.ENXIO, "it is a pipe that nobody writes to", str(path))
    return opened[0]


def read_settings(path: PathLike) -> bytes:
    """The whole of a small file or pipe. Raises OSError: see :func:`open_input`; or if it holds more than 64 MB."""
    with open_input(path) as stream:
        content = stream.read(_SETTINGS_BYTES + 1)
    if len(content) > _SETTINGS_BYTES:
        raise OSError(errno.EFBIG, f"it holds more than {_SETTINGS_BYTES >> 20} MB", str(path))
    return content
