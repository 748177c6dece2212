"""Files that are either whole or not there: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from afm_ctr.errors import UserError

_BLOCK = 1 << 20


class HashingWriter:
    """A binary file that knows what went into it; leaving the ``with`` flushes it to the disk.

    Attributes:
        content: ``{"sha256", "bytes"}``, once it is closed.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one go: a reader sees the old one or the new one."""
    aside = path.with_name(f".tmp-{path.name}")
    with HashingWriter(aside) as writer:
        writer.write(text.encode("utf-8"))
    os.replace(aside, path)
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """:func:`write_text` of an object as JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # not every file system can; the files themselves are flushed
        pass
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no half of it can be taken for the whole: renamed first."""
    aside = path.with_name(f".tmp-gone-{path.name}")
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(path, aside)
    shutil.rmtree(aside)


def unwritable(run: str | Path, error: OSError) -> UserError:
    """What to tell of a run's folder that does not take a file."""
    return UserError(
        f"cannot write the run in {run}: {error}; every checkpoint there is whole, so the same command goes on once "
        "that is mended"
    )
