"""Shared code of the build scripts: the cache, running a compiler, one build at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afm_ctr.io.ownership import adopt, why_not_ours


class Missing(Exception):
    """A tool or library that the build needs is missing on this machine."""


def cache() -> Path:
    """``$AFM_CTR_CACHE``, else ``$XDG_CACHE_HOME/afm-ctr``, else ``~/.cache/afm-ctr``."""
    named = os.environ.get("AFM_CTR_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afm-ctr"


def python_tag() -> str:
    """Such as cp311."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def tool(name: str, why: str) -> None:
    """Raise :class:`Missing` unless the program is on the PATH."""
    if shutil.which(name) is None:
        raise Missing(f"'{name}' is not on the PATH: {why}")


def run(command: list[str], log: Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command, append its output to the log, print a dot every ten seconds."""
    with log.open("ab") as sink:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=sink, stderr=subprocess.STDOUT)
        while True:
            try:
                code = process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                print(".", end="", flush=True)
    if code:
        tail = log.read_text(errors="replace").splitlines()[-25:]
        raise RuntimeError(f"{' '.join(command[:6])} … ended with {code}\n" + "\n".join(tail))


def trusted(file: Path) -> bool:
    """Whether a file in the cache may be used; if not, prints why, and it is rebuilt."""
    if not file.exists():
        return False
    adopt(file)
    if why := why_not_ours(file):
        print(f"not from the cache: {why}")
        return False
    return True


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Lock a place in the cache, so that of several set-ups in parallel only one builds."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
