"""Versions of installed packages."""

from __future__ import annotations

import platform
from importlib import metadata


def version_of(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions_of(*packages: str) -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    found = {package: version for package in packages if (version := version_of(package)) is not None}
    return {"python": platform.python_version(), **found}
