"""Paths and URLs: plain ``open`` for local ones, ``tf.io.gfile`` (imported only then) for ``gs://`` ones."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from typing import IO, Any

from afm_ctr.errors import UserError

_FILE_URL = "file://"


def is_remote(path: str) -> bool:
    """True for ``scheme://...`` paths, which go through TensorFlow's or Beam's file systems."""
    return "://" in path


def local_path(path: str) -> str:
    """``file:///a/b`` as ``/a/b``; any other path unchanged."""
    rest = path.removeprefix(_FILE_URL)
    return rest if path.startswith(_FILE_URL) and rest.startswith("/") else path


def join(folder: str | os.PathLike[str], *parts: str) -> str:
    """Join with ``/``, which local POSIX paths and URLs share."""
    return "/".join([os.fspath(folder).rstrip("/"), *parts])


def refuse_text(inputs: object) -> None:
    """Raise UserError for a string where a list of paths is expected: it would be read letter by letter."""
    if isinstance(inputs, str):
        raise UserError(f"inputs must be a list of paths and globs, got the text {inputs!r}")


def expand(pattern: str) -> list[str]:
    """The local paths, sorted, that a path or glob names.

    Literal names take precedence: the file ``log[1].csv``, and the files in the folder ``out[1]`` for
    ``out[1]/*.csv``. ``**`` matches any folders.
    """
    if os.path.lexists(pattern):
        return [pattern]
    return sorted(glob.glob(escape_folders(pattern, os.path.isdir, glob.escape), recursive=True))


def escape_folders(pattern: str, is_folder: Callable[[str], bool], escape: Callable[[str], str]) -> str:
    """A pattern whose leading folders, as far as they exist under their literal names, match only themselves."""
    *folders, last = pattern.split("/")
    literal = 0
    for number, folder in enumerate(folders, 1):
        if not glob.has_magic(folder):
            continue
        if not is_folder("/".join(folders[:number])):
            break
        literal = number
    return "/".join([*map(escape, folders[:literal]), *folders[literal:], last])


def local_files_alone(path: str) -> UserError:
    """The error for a path in an object store where only local files work."""
    copy = {"gs": "gcloud storage rsync -r", "hdfs": "hdfs dfs -get"}.get(path.partition("://")[0], "aws s3 sync")
    return UserError(
        f"{path} is not a local file: only prepare uses object stores; mount it (mount-s3, s3fs, gcsfuse, "
        f"hdfs-fuse) and give the mounted path, or copy it first: {copy} {path} FOLDER"
    )


def _gfile(path: str) -> Any:
    import tensorflow as tf

    if path.partition("://")[0] not in tf.io.gfile.get_registered_schemes():
        raise local_files_alone(path)
    return tf.io.gfile


def size_of(path: str) -> int | None:
    """Bytes of a file; None if it does not exist."""
    if not is_remote(path):
        return os.path.getsize(path) if os.path.isfile(path) else None
    gfile = _gfile(path)
    return int(gfile.stat(path).length) if gfile.exists(path) else None


def open_binary(path: str) -> IO[bytes]:
    """Open for reading; the result is seekable."""
    if not is_remote(path):
        return open(path, "rb")
    return _gfile(path).GFile(path, "rb")
