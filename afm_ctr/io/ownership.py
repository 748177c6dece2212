"""Whether another user could have written a file that is executed as code."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from afm_ctr.io.files import sha256_of

DIGEST_SUFFIX = ".sha256"


def why_not_ours(path: str | os.PathLike[str], trusted: Iterable[int] = ()) -> str | None:
    """Why a file must not be loaded or installed; ``None``: it is ours, and its digest is the recorded one.

    The file and its folder must belong to this user, root or one of ``trusted``, and be writable by no other user.
    The digest must be in the file's name plus ``.sha256``, see :func:`record_digest`.

    Args:
        path: of the file; symbolic links are resolved.
        trusted: further user ids, such as the owner of the calling code.

    Raises:
        OSError: it cannot be read.
    """
    file = Path(path).resolve(strict=True)
    owners = {os.geteuid(), 0, *trusted}
    if why := _why_open(file, owners):
        return why
    digest = file.with_name(file.name + DIGEST_SUFFIX)
    if not digest.is_file():
        return f"{file} has no digest next to it ({digest.name})"
    if digest.is_symlink() or digest.stat().st_uid not in owners:
        return f"{digest} does not belong to this user or root"
    if digest.read_text(encoding="ascii", errors="replace").strip() != sha256_of(file):
        return f"{file} is not what was built: its SHA-256 is not that in {digest.name}"
    return None


def _why_open(file: Path, owners: set[int]) -> str | None:
    """Which other user owns the file or its folder, or can write there, as a sentence; else None."""
    for place in (file, file.parent):
        status = place.stat()
        if status.st_uid not in owners:
            return f"{place} belongs to user {status.st_uid}, not to this user or root"
        group_may = bool(status.st_mode & stat.S_IWGRP) and status.st_gid not in (0, os.getegid())
        others_may = bool(status.st_mode & stat.S_IWOTH)
        if (group_may or others_may) and not (place == file.parent and status.st_mode & stat.S_ISVTX):
            return f"{place} can be written by other users: chmod go-w"
    return None


def adopt(path: str | os.PathLike[str]) -> None:
    """Record the digest of a file from an earlier version without one, if no other user could have written it."""
    file = Path(path).resolve(strict=True)
    without = not file.with_name(file.name + DIGEST_SUFFIX).exists()
    if without and _why_open(file, {os.geteuid(), 0}) is None:
        record_digest(file)


def record_digest(path: str | os.PathLike[str]) -> None:
    """Make a built file writable only by its owner, and write its SHA-256 next to it."""
    file = Path(path)
    file.chmod(file.stat().st_mode & ~0o022)
    digest = file.with_name(file.name + DIGEST_SUFFIX)
    digest.unlink(missing_ok=True)
    digest.write_text(sha256_of(file) + "\n", encoding="ascii")
    digest.chmod(0o644)
