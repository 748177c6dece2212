"""Where the compiled libraries lie, and for which TensorFlow and sources they were built. No TensorFlow here."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from afm_ctr.installed import version_of
from afm_ctr.io.ownership import why_not_ours

FOLDER = Path(__file__).parent


def sources() -> list[Path]:
    """The C++ files, headers among them."""
    return sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])


def tensorflow_version() -> str | None:
    """Of the installed distribution, by whichever of its names; None where there is none."""
    return version_of("tensorflow") or version_of("tensorflow-cpu")


def key() -> str:
    """TensorFlow, Python and a digest of the sources: a library is used only by those that it was built for."""
    digest = hashlib.sha256()
    for file in sources():
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"tf{tensorflow_version()}-{python}-{digest.hexdigest()[:12]}"


def why_not_trusted(path: Path) -> str | None:
    """Why a library is not to be loaded, see :func:`afm_ctr.io.ownership.why_not_ours`; ``None``: it may be.

    Whose Python code runs here may also have built the library.
    """
    return why_not_ours(path, trusted=[Path(__file__).stat().st_uid])


def library_path() -> Path:
    """Where the library of TensorFlow's ops is, or would be."""
    return FOLDER / f"_afm-{key()}.so"


def plain_library(library: Path) -> Path:
    """Where the library that needs no TensorFlow is, by the place of the other."""
    return library.with_suffix(".plain.so")
