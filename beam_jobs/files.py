"""Files through Beam: local paths, and every file system that the installed Beam knows (gs://, s3://, …)."""

from __future__ import annotations

import glob
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

import numpy as np
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from afm_ctr.errors import UserError
from afm_ctr.rawlog.side import local_files

_T = TypeVar("_T")
_R = TypeVar("_R")
_ASIDE = ".tmp-"


def is_remote(path: str) -> bool:
    """Whether a path names a file system other than the local one."""
    return "://" in path


def join(folder: str, *parts: str) -> str:
    """A path below a folder."""
    return "/".join([folder.rstrip("/"), *parts])


def match(pattern: str) -> list[tuple[str, int]]:
    """(path, bytes) of the files that a glob matches, sorted by path.

    Raises:
        UserError: none does, or the file system is not known.
    """
    if is_remote(pattern):
        try:
            found = [(item.path, int(item.size_in_bytes)) for item in FileSystems.match([pattern])[0].metadata_list]
        except (BeamIOError, ValueError) as error:
            raise UserError(f"{pattern}: cannot be listed: {error}") from error
    else:
        # Beam's local match walks everything below the first wildcard; glob looks where it must.
        paths = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        if len(paths) == 1 and os.path.isdir(paths[0]):
            raise UserError(f"{pattern} is a folder; name its files: {join(pattern, '*')}")
        found = [(path, os.path.getsize(path)) for path in paths if os.path.isfile(path)]
    if not found:
        raise UserError(f"no file matches {pattern}")
    return sorted(found)


@contextmanager
def local_copies(pattern: str) -> Iterator[Sequence[str]]:
    """Files of a path or glob as local ones: themselves, or copies for as long as the block lasts."""
    if not is_remote(pattern):
        with local_files(pattern) as paths:
            yield paths
        return
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for number, (path, _) in enumerate(match(pattern)):
            copies.append(join(folder, f"{number:05d}", path.rsplit("/", 1)[-1]))
            os.makedirs(os.path.dirname(copies[-1]))
            with open(copies[-1], "wb") as stream:
                stream.write(read(path))
        yield copies


def exists(path: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        UserError: the file system is not known or does not answer.
    """
    try:
        return bool(FileSystems.exists(path))
    except (BeamIOError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def open_raw(path: str) -> BinaryIO:
    """A file's bytes as they are; seekable. Compression is not undone.

    Raises:
        UserError: the file is not there or may not be read.
    """
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (BeamIOError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {_said(error)}") from error


def read(path: str) -> bytes:
    """The whole of a small file."""
    with open_raw(path) as stream:
        return stream.read()


@contextmanager
def aside(path: str) -> Iterator[BinaryIO]:
    """A stream to a file that gets its name when it is complete: a reader meets all of it or nothing.

    Raises:
        UserError: the file cannot be written: no permission, no space left, ...
    """
    temporary = f"{path}{_ASIDE}{uuid.uuid4().hex}"
    try:
        with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            yield stream
        if is_remote(path) and FileSystems.exists(path):
            FileSystems.delete([path])
        FileSystems.rename([temporary], [path])
    except (BeamIOError, OSError) as error:
        remove(temporary)
        raise UserError(f"{path}: cannot be written: {_said(error)}") from error
    except BaseException:
        remove(temporary)
        raise


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write(path: str, content: bytes) -> None:
    """A whole file, by way of :func:`aside`."""
    with aside(path) as stream:
        stream.write(content)


def joined(items: Sequence[bytes]) -> bytes:
    """Byte strings as the content of one file, of which :func:`item` reads any without the others."""
    ends = np.cumsum([8 * (len(items) + 1), *map(len, items)]).astype("<u8")
    return b"".join([ends.tobytes(), *items])


def item(path: str, number: int) -> bytes:
    """One of the byte strings in a file of :func:`joined`."""
    with open_raw(path) as stream:
        stream.seek(8 * number)
        start, end = np.frombuffer(stream.read(16), "<u8").tolist()
        stream.seek(start)
        return stream.read(end - start)


def names(folder: str) -> list[str]:
    """Names of the complete files in a folder, sorted; none if it is not there."""
    if not is_remote(folder):
        found = os.listdir(folder) if os.path.isdir(folder) else []
    else:
        try:
            items = FileSystems.match([join(folder, "*")])[0].metadata_list
        except BeamIOError:
            items = []
        found = [item.path.rsplit("/", 1)[-1] for item in items]
    return sorted(name for name in found if _ASIDE not in name)


def half_written(folder: str) -> list[str]:
    """Paths of the files in a folder that :func:`aside` had not completed when its process ended."""
    if is_remote(folder):
        try:
            return [item.path for item in FileSystems.match([join(folder, f"*{_ASIDE}*")])[0].metadata_list]
        except BeamIOError:
            return []
    found = os.listdir(folder) if os.path.isdir(folder) else []
    return [join(folder, name) for name in sorted(found) if _ASIDE in name]


def folders(folder: str, prefix: str) -> list[str]:
    """Names of the folders in a folder that begin with ``prefix``, sorted."""
    if not is_remote(folder):
        found = {name for name in names(folder) if os.path.isdir(join(folder, name))}
    else:
        # An object store has no folders: they show in the names of the objects.
        items = FileSystems.match([join(folder, f"{prefix}**")])[0].metadata_list
        start = len(folder.rstrip("/")) + 1
        found = {item.path[start:].split("/", 1)[0] for item in items}
    return sorted(name for name in found if name.startswith(prefix))


def sizes(folder: str) -> dict[str, int]:
    """Bytes of every file below a folder, by its path from there."""
    if not is_remote(folder):
        paths = [os.path.join(place, name) for place, _, found in os.walk(folder) for name in found]
        return {os.path.relpath(path, folder): os.path.getsize(path) for path in paths}
    start = len(folder.rstrip("/")) + 1
    items = FileSystems.match([join(folder, "**")])[0].metadata_list
    return {item.path[start:]: int(item.size_in_bytes) for item in items}


def remove(path: str) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    try:
        if not is_remote(path):
            if os.path.lexists(path):
                FileSystems.delete([path])
            return
        items = FileSystems.match([path, join(path, "**")])
        found = [item.path for result in items for item in result.metadata_list]
        if found:
            FileSystems.delete(found)
    except BeamIOError as error:
        if exists(path):
            raise UserError(f"{path}: cannot be removed: {error}") from error


def in_threads(do: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """``do`` for each item, in order: many small reads, each of which waits for its file system."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(do, items))
