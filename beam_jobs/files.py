"""Files through Beam: local paths, and every file system that the installed Beam knows (gs://, s3://, …).

All calls of Beam's ``FileSystems`` with paths are in this module. When deleting and listing, Beam treats paths as
patterns that cannot be quoted, so ``[``, ``*`` and ``?`` in a folder's name would also match other folders. Here only
:func:`match` and :func:`local_copies` take patterns. Local files do not go through Beam.
"""

from __future__ import annotations

import copy
import glob
import importlib.util
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, BinaryIO, TypeVar

import numpy as np
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from afm_ctr.errors import UserError
from afm_ctr.io.files import TEMPORARY, remove_folder, replacing, target_name, temporary_name
from afm_ctr.io.inputs import open_input
from afm_ctr.io.paths import escape_folders, expand
from afm_ctr.io.paths import is_remote as is_remote
from afm_ctr.io.paths import join as join
from afm_ctr.rawlog.side import local_files

_T = TypeVar("_T")
_R = TypeVar("_R")

# Patterns that match one literal wildcard character. Beam turns patterns into regular expressions, in which `[[]`
# gives a warning; hence the negated ranges for a bracket.
_LITERAL = {"*": "[*]", "?": "[?]", "[": "[!\0-Z\\-\U0010ffff]"}
_OBJECTS = ("s3://", "gs://")
_LIBRARIES = ("apache_beam.io.", "boto3.", "botocore.", "google.", "hdfs.", "requests.", "urllib3.")
_PATTERNS: dict[type, bool] = {}  # cache of _deletes_patterns


def set_options(options: Any) -> None:
    """Set the options of this process's file systems: Beam has some for hdfs:// and s3://."""
    FileSystems.set_options(options)
    share_client()


def share_client() -> None:
    """Share one boto3 client among all s3:// calls of this process; boto3 is imported with the first one.

    Beam creates a client for every call, which takes longer than most calls.
    """
    boto3_client: Any = importlib.import_module("apache_beam.io.aws.clients.s3.boto3_client")
    if getattr(boto3_client.Client, "shared", False):
        return
    one, lock = boto3_client.Client, threading.Lock()
    made: list[Any] = []

    def client(options: Any) -> Any:
        with lock:
            if boto3_client.boto3 is None and importlib.util.find_spec("boto3"):
                boto3_client.boto3 = importlib.import_module("boto3")
            if not made or made[0] is not options:
                made[:] = [options, one(options)]
            return copy.copy(made[1])  # Beam's client holds the state of one download; boto3's is thread-safe

    client.shared = True  # type: ignore[attr-defined]
    boto3_client.Client = client
    # Errors are raised; do not log them with a traceback as well.
    logging.getLogger().addFilter(lambda record: not record.pathname.endswith("aws/s3io.py"))


def match(pattern: str) -> list[tuple[str, int]]:
    """(path, bytes) of the files that match a path or glob, sorted by path.

    A file with the literal name takes precedence, as in :func:`afm_ctr.io.paths.expand`.

    Raises:
        UserError: no file matches, or the file system is unknown.
    """
    if is_remote(pattern):
        with _said_by(pattern, "cannot be listed", ValueError):
            found = _match(pattern)
    else:
        # Beam's local match walks everything below the first wildcard; glob does not.
        paths = expand(pattern)
        if len(paths) == 1 and os.path.isdir(paths[0]):
            raise UserError(f"{pattern} is a folder; name its files: {join(pattern, '*')}")
        found = [(path, os.path.getsize(path)) for path in paths if os.path.isfile(path)]
    if not found:
        raise UserError(f"no file matches {pattern or repr(pattern)}")
    return sorted(found)


def _match(pattern: str) -> list[tuple[str, int]]:
    if glob.has_magic(pattern):
        if FileSystems.exists(pattern):
            return [item for item in _listed(pattern) if item[0] == pattern]
        pattern = escape_folders(pattern, lambda folder: bool(_listed(f"{folder}/")), _escape)
    items = FileSystems.match([pattern])[0].metadata_list
    return [(item.path, int(item.size_in_bytes)) for item in items]


def _escape(path: str) -> str:
    """A Beam pattern that matches exactly one path."""
    return re.sub(r"[*?[]", lambda found: _LITERAL[found[0]], path)


def _listed(start: str) -> list[tuple[str, int]]:
    """(path, bytes) of all files in a remote folder (``start`` ends with /) or with a prefix.

    Raises:
        BeamIOError: it cannot be listed; some file systems also raise this for a missing folder.
    """
    # FileSystem.match would treat it as a pattern; it is built on this method, which every file system has.
    items = FileSystems.get_filesystem(start)._list(start)
    return [(item.path, int(item.size_in_bytes)) for item in items if item.path.startswith(start)]


def _below(folder: str) -> dict[str, int]:
    """Sizes in bytes of all files below a remote folder, by relative path; empty if there is no such folder.

    Raises:
        UserError: it cannot be listed.
    """
    start = join(folder, "")
    try:
        return {path[len(start) :]: size for path, size in _listed(start)}
    except BeamIOError as error:
        # Object stores have no folders that could be missing; other file systems raise this for a missing folder.
        if start.startswith(_OBJECTS) or exists(folder):
            raise UserError(f"{folder}: cannot be listed: {_said(error)}") from error
        return {}


def absolute(path: str) -> str:
    """An absolute local path; remote paths are unchanged."""
    return path if is_remote(path) else os.path.abspath(path)


@contextmanager
def local_copies(pattern: str) -> Iterator[Sequence[str]]:
    """The files of a path or glob as local files: remote ones are copied, and removed when the block ends."""
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
    """Whether a file or folder exists. Raises UserError: the file system is unknown or does not answer."""
    if not is_remote(path):
        return os.path.exists(path)
    with _said_by(path, "cannot be looked at", ValueError):
        return bool(FileSystems.exists(path))


def open_raw(path: str) -> BinaryIO:
    """Open a file for reading without decompression; seekable.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    with _said_by(path, "cannot be read"):
        if not is_remote(path):
            return open_input(path)
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


@contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
    """:func:`open_raw` as a context; errors while the block reads become UserErrors too."""
    with _said_by(path, "cannot be read"), open_raw(path) as stream:
        yield stream


def read(path: str) -> bytes:
    """Read a small file."""
    with reading(path) as stream:
        return stream.read()


@contextmanager
def creating(path: str, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file atomically through a stream: readers see the complete file or none.

    Raises:
        UserError: the file cannot be written: no permission, no space left, ...
    """
    with _said_by(path, "cannot be written"):
        opened = _creating(path) if is_remote(path) else replacing(path, durable=durable)
        with opened as stream:
            yield stream


@contextmanager
def _creating(path: str) -> Iterator[BinaryIO]:
    folder, _, name = path.rpartition("/")
    temporary = join(folder, temporary_name(name))
    try:
        with _stream_to(temporary) as stream:
            yield stream
        if FileSystems.exists(path):
            _delete([path])
        FileSystems.rename([temporary], [path])
    except BaseException:
        remove(temporary)
        raise


@contextmanager
def _said_by(path: str, what: str, *also: type[Exception]) -> Iterator[None]:
    """Turn errors of file systems into a one-line UserError; Beam's file systems raise many classes."""
    try:
        yield
    except Exception as error:
        stores = is_remote(path) and f"{type(error).__module__}.".startswith(_LIBRARIES)
        if not stores and not isinstance(error, (BeamIOError, OSError, *also)):
            raise
        raise UserError(f"{path}: {what}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    details = getattr(error, "exception_details", None)  # Beam's: an error per path
    if isinstance(details, dict):
        error = next((found for found in details.values() if isinstance(found, Exception)), error)
    text = getattr(error, "strerror", None) or (str(error.args[0]) if error.args else "") or type(error).__name__
    return " ".join(text.split())


@contextmanager
def _stream_to(path: str) -> Iterator[BinaryIO]:
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        yield stream


def write(path: str, content: bytes, *, durable: bool = True) -> None:
    """Write a file atomically, as :func:`creating`."""
    if not path.startswith(_OBJECTS):
        with creating(path, durable=durable) as stream:
            stream.write(content)
        return
    # An object appears only once its upload is complete, which a failed write prevents.
    with _said_by(path, "cannot be written"):
        if path.startswith("s3://") and not content:
            _empty_object(path)
            return
        with _stream_to(path) as stream:
            stream.write(content)


def _empty_object(path: str) -> None:
    """Create an empty object: Beam uploads to s3:// in parts, and an upload without parts is refused."""
    s3io: Any = importlib.import_module("apache_beam.io.aws.s3io")
    bucket, name = s3io.parse_s3_path(path)
    options = vars(FileSystems.get_filesystem(path))["_options"]
    s3io.S3IO(options=options).client.client.put_object(Bucket=bucket, Key=name, Body=b"")


def joined(items: Sequence[bytes]) -> bytes:
    """Pack byte strings into the content of one file; :func:`item` reads a single one."""
    ends = np.cumsum([8 * (len(items) + 1), *map(len, items)]).astype("<u8")
    return b"".join([ends.tobytes(), *items])


def item(path: str, number: int) -> bytes:
    """One of the byte strings in a file of :func:`joined`."""
    with open_raw(path) as stream:
        stream.seek(8 * number)
        start, end = np.frombuffer(stream.read(16), "<u8").tolist()
        stream.seek(start)
        return stream.read(end - start)


def items(path: str) -> Iterator[bytes]:
    """All byte strings in a file of :func:`joined`, in order. Raises ValueError for any other file."""
    content = read(path)
    ends = np.frombuffer(content[: int.from_bytes(content[:8], "little")], "<u8").tolist()
    if not ends or ends[-1] != len(content):
        raise ValueError("no file of byte strings")
    yield from (content[start:end] for start, end in pairwise(ends))


def names(folder: str) -> list[str]:
    """Names of the complete files in a folder, sorted; empty if there is no such folder."""
    return [name for name in _entries(folder) if not name.startswith(TEMPORARY)]


def _entries(folder: str) -> list[str]:
    if is_remote(folder):
        return sorted(name for name in _below(folder) if "/" not in name)
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def half_written(folder: str) -> dict[str, str]:
    """Temporary files left in a folder by dead processes: path to intended name."""
    targets = {join(folder, name): target_name(name) for name in _entries(folder)}
    return {path: target for path, target in targets.items() if target is not None}


def folders(folder: str, prefix: str) -> list[str]:
    """Names of the subfolders of a folder that begin with ``prefix``, sorted."""
    if not is_remote(folder):
        found = {name for name in names(folder) if os.path.isdir(join(folder, name))}
    else:
        # Object stores have no folders, only names of objects with slashes.
        found = {name.split("/", 1)[0] for name in _below(folder)}
    return sorted(name for name in found if name.startswith(prefix))


def sizes(folder: str) -> dict[str, int]:
    """Sizes in bytes of all files below a folder, by relative path."""
    if is_remote(folder):
        return _below(folder)
    paths = [os.path.join(place, name) for place, _, found in os.walk(folder) for name in found]
    return {os.path.relpath(path, folder): os.path.getsize(path) for path in paths}


def remove(path: str) -> None:
    """Remove a file, or a folder with its content, if it exists. Raises UserError: it cannot be removed."""
    try:
        if is_remote(path):
            _delete([join(path, name) for name in _below(path)])
            if FileSystems.exists(path):
                _delete([path])
        elif os.path.isdir(path) and not os.path.islink(path):
            remove_folder(path)  # renamed first: workers of a killed submitter may still write there
        elif os.path.lexists(path):
            os.unlink(path)
    except (BeamIOError, OSError) as error:
        if exists(path) or isinstance(error, PermissionError):
            raise UserError(f"{path}: cannot be removed: {_said(error)}") from error


def _delete(paths: Sequence[str]) -> None:
    """Delete remote files. Raises BeamIOError: one cannot be deleted."""
    plain = [path for path in paths if not glob.has_magic(path)]
    if plain:
        FileSystems.delete(plain)
    for path in paths:
        if glob.has_magic(path):
            FileSystems.delete([_escape(path) if _deletes_patterns(path) else path])


def _deletes_patterns(path: str) -> bool:
    """Whether the path's file system treats paths as patterns when deleting: some of Beam's do, others do not.

    Tested once per file system, with a file of a unique name.
    """
    kind = type(FileSystems.get_filesystem(path))
    if kind not in _PATTERNS:
        probe = join(path.rpartition("/")[0], temporary_name("probe"))
        with _stream_to(probe) as stream:
            stream.write(b"probe")
        with suppress(BeamIOError):
            FileSystems.delete([f"{_escape(probe[:-1])}[{probe[-1]}]"])
        _PATTERNS[kind] = not FileSystems.exists(probe)
        if not _PATTERNS[kind]:
            FileSystems.delete([probe])
    return _PATTERNS[kind]


def in_threads(do: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Call ``do`` on each item in threads, and return the results in order; for many small reads."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(do, items))
