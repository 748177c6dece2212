"""Files that are either whole or not there: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


class HashingWriter:
    """A binary file that knows the SHA-256 and the length of what went into it; closing flushes it to the disk."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes."""
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def close(self) -> dict[str, Any]:
        """Flush, close, and return ``{"sha256", "bytes"}``."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"sha256": self._hash.hexdigest(), "bytes": self.size}


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
    writer = HashingWriter(aside)
    writer.write(text.encode("utf-8"))
    writer.close()
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
