"""Files by path or URL: plain ``open`` for local ones, ``tf.io.gfile`` (imported only then) for ``gs://`` ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any


def is_remote(path: str) -> bool:
    """True for ``scheme://...`` paths, which go through TensorFlow's file systems."""
    return "://" in path


def join(folder: str | os.PathLike[str], *parts: str) -> str:
    """Join with ``/``, which local POSIX paths and URLs share."""
    return "/".join([os.fspath(folder).rstrip("/") or "/", *parts])


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile


def size_of(path: str) -> int | None:
    """Bytes of a file; None if it is not there."""
    if not is_remote(path):
        return os.path.getsize(path) if os.path.isfile(path) else None
    gfile = _gfile()
    return int(gfile.stat(path).length) if gfile.exists(path) else None


def open_binary(path: str) -> IO[bytes]:
    """Open for reading; the result seeks."""
    if not is_remote(path):
        return open(path, "rb")
    return _gfile().GFile(path, "rb")


def write_aside(path: str, content: bytes) -> None:
    """Write a whole file under another name and rename it, so that a reader meets all of it or none."""
    aside = f"{path}.{os.getpid()}.tmp"
    if not is_remote(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
        return
    gfile = _gfile()
    with gfile.GFile(aside, "wb") as stream:
        stream.write(content)
    gfile.rename(aside, path, overwrite=True)
