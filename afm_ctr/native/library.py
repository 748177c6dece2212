"""Paths of the compiled libraries, by the TensorFlow and sources they were built for. Must not import TensorFlow."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from afm_ctr.installed import version_of
from afm_ctr.io.ownership import why_not_ours

FOLDER = Path(__file__).parent


def sources() -> list[Path]:
    """The C++ files, including headers."""
    return sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])


def tensorflow_version() -> str | None:
    """Version of the installed distribution, by either of its names; None if it is not installed."""
    return version_of("tensorflow") or version_of("tensorflow-cpu")


def key() -> str:
    """TensorFlow's and Python's version and a digest of the sources: a library is only used with these."""
    digest = hashlib.sha256()
    for file in sources():
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"tf{tensorflow_version()}-{python}-{digest.hexdigest()[:12]}"


def why_not_trusted(path: Path) -> str | None:
    """Why a library must not be loaded, see :func:`afm_ctr.io.ownership.why_not_ours`; ``None``: it may.

    The owner of this Python code is also trusted to have built the library.
    """
    return why_not_ours(path, trusted=[Path(__file__).stat().st_uid])


def library_path() -> Path:
    """Path of the library of TensorFlow ops, whether or not it is built."""
    return FOLDER / f"_afm-{key()}.so"


def plain_library(library: Path) -> Path:
    """Path of the library that needs no TensorFlow, from the path of the other."""
    return library.with_suffix(".plain.so")
