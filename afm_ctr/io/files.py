"""Local files and folders that are either complete or absent: written to a temporary one, synced, then renamed.

Temporary files are next to their target as ``.tmp-<hex>-<name>``. They are created exclusively and never through a
symbolic link, so that no other user can put one there first; their mode follows the umask.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from afm_ctr.errors import UserError
from afm_ctr.io import paths

TEMPORARY = ".tmp-"
_BLOCK = 1 << 20
_NAME_BYTES = 200  # of the target's name in its temporary file's: file systems allow 255 in total

PathLike = str | os.PathLike[str]


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Within it an OSError becomes one line for the user: what cannot be done, and why."""
    try:
        yield
    except Exception as error:
        why = refusal(error)
        if why is None:
            raise
        raise UserError(f"{what}: {why}") from error


def refusal(error: BaseException) -> str | None:
    """The system's reason why a file cannot be written or read, also from TensorFlow; None for another error."""
    if isinstance(error, OSError):
        in_the_way = None
        if isinstance(error, NotADirectoryError | FileExistsError) and isinstance(error.filename, str):
            path = Path(error.filename)
            way = [*path.parents[::-1], path]
            in_the_way = next((one for one in way if os.path.lexists(one) and not os.path.isdir(one)), None)
        if in_the_way is not None:
            kind = "a file" if os.path.exists(in_the_way) else "a link to nothing"
            return f"{os.strerror(errno.ENOTDIR)}: {in_the_way} is {kind}"
        return error.strerror or str(error)
    if not type(error).__module__.startswith("tensorflow."):
        return None
    # The error of a TensorFlow op ends with "<path>; <why> [Op:<name>]".
    why = str(error).rpartition("; ")[2].partition(" [Op:")[0]
    return why if why in map(os.strerror, errno.errorcode) else None


def temporary_name(name: str) -> str:
    """A new temporary name for a file or folder with this name."""
    kept = os.fsencode(name)[:_NAME_BYTES].decode("utf-8", "ignore")
    return f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{kept}"


def target_name(name: str) -> str | None:
    """The target's name of a temporary file, at most 200 bytes of it; None for a file that is not temporary."""
    return name.removeprefix(TEMPORARY).partition("-")[2] if name.startswith(TEMPORARY) else None


def create(path: PathLike) -> BinaryIO:
    """Create a new file for writing. Its mode follows the umask.

    Raises:
        FileExistsError: something exists there, even a dangling symbolic link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


@contextmanager
def replacing(path: PathLike, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream to a file that is renamed when the block ends: a reader sees the old file or the new one.

    Missing folders are created. A device or pipe (``/dev/stdout``) is written to directly.

    Args:
        path: of the file; an existing one is replaced.
        durable: whether it must survive a crash of the machine; False for files that only this run reads.

    Raises:
        OSError: it cannot be written; then the temporary file is removed and the old one is unchanged. If a folder
            has that name, it is raised before the block is entered.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if _is_special(target):
        with open(target, "wb") as stream:
            yield cast(BinaryIO, stream)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(temporary_name(target.name))
    try:
        with create(temporary) as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(target.parent)


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def write_bytes(path: PathLike, content: bytes) -> None:
    """Write a whole file, local or remote, through a temporary one."""
    text = os.fspath(path)
    if not paths.is_remote(text):
        with replacing(text) as stream:
            stream.write(content)
        return
    import tensorflow as tf

    folder, _, name = text.rpartition("/")
    temporary = paths.join(folder, temporary_name(name))
    with tf.io.gfile.GFile(temporary, "wb") as stream:
        stream.write(content)
    tf.io.gfile.rename(temporary, text, overwrite=True)


def write_text(path: PathLike, text: str) -> None:
    """:func:`write_bytes` of a text as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, content: Any) -> None:
    """:func:`write_text` of an object as JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: PathLike) -> dict[str, Any]:
    """The object in a small JSON file. Raises UserError: it cannot be read, or is damaged."""
    with as_user_error(f"cannot read {path}"):
        content = Path(path).read_bytes()
    return _object(path, content)


def read_json_lines(path: PathLike) -> list[dict[str, Any]]:
    """The objects in a small JSON Lines file. Raises UserError: it cannot be read, or is damaged."""
    with as_user_error(f"cannot read {path}"):
        content = Path(path).read_bytes()
    return [_object(path, line) for line in content.splitlines()]


def _object(path: PathLike, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: an object is due, not {text[:40].decode('utf-8', 'replace')}")
    return content


def refuse_input(output: PathLike, inputs: Iterable[PathLike]) -> None:
    """Raise UserError if the output file is one of the inputs: it would be lost."""
    if any(os.path.isfile(output) and os.path.exists(path) and os.path.samefile(path, output) for path in inputs):
        raise UserError(
            f"--output {os.fspath(output)} is a file that is read: it would be replaced; name another one"
        )


def write_json_lines(path: PathLike, lines: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Write one object per line; the file appears when it is complete.

    Returns:
        The number of lines, and of those with the key ``error``.

    Raises:
        OSError: it cannot be written; exceptions of ``lines`` pass through.
        OSError: it cannot be written; what ``lines`` raises passes through.
    """
    rows = errors = 0
    with replacing(path) as file:
        for line in lines:
            rows += 1
            errors += "error" in line
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return rows, errors


class HashingWriter:
    """A new binary file that computes its digest; leaving the ``with`` syncs it.

    Attributes:
        content: ``{"sha256", "bytes"}``, once it is closed.
    """

    def __init__(self, path: PathLike) -> None:
        self._file = create(path)
        self._hash = hashlib.sha256()
        self._size = 0
        self.content: dict[str, Any] = {}

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes."""
        self._hash.update(data)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        self.content = {"sha256": self._hash.hexdigest(), "bytes": self._size}


def sha256_of(path: PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_folder(path: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to fill; when the block ends it is synced and renamed.

    Args:
        path: of the final folder. Its parents are created.
        overwrite: whether an existing folder is replaced.

    Raises:
        OSError: it cannot be written, or a folder that is not empty exists there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(temporary_name(target.name))
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        if overwrite and target.exists():
            old = target.with_name(temporary_name(target.name))
            os.rename(target, old)  # removed last: that may take long, and a kill meanwhile would leave neither
            os.rename(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # frees the space on a full disk
        raise
    sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(place)


def sync_folder(path: PathLike) -> None:
    """Make a folder's entries durable, if the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # not every file system can; the files themselves are synced
        pass
    finally:
        os.close(descriptor)


def remove_folder(path: PathLike) -> None:
    """Remove a folder by renaming it first, so that a partly removed one is never taken for the whole."""
    target = Path(path)
    temporary = target.with_name(temporary_name(target.name))
    os.rename(target, temporary)
    shutil.rmtree(temporary)


def remove_temporaries(folder: PathLike) -> None:
    """Remove the temporary files and folders that killed processes left in a folder."""
    for entry in os.scandir(folder):
        if not entry.name.startswith(TEMPORARY):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


@contextmanager
def exclusive_lock(folder: str | os.PathLike[str], taken: str) -> Iterator[None]:
    """Hold a lock on an existing folder. The system releases it however the process ends.

    Args:
        folder: local; on a file system without locks nothing is held.
        taken: the error if another process holds it.

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
            pass  # a file system without locks
        yield
    finally:
        os.close(lock)
