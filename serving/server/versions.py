"""Finds new version folders, loads them, swaps versions, and lets requests finish on the old one."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from serving.server.model_config import VersionPolicy
from serving.server.request_errors import RequestError, from_number, invalid, not_found

log = logging.getLogger("serving.server")

# The states of GetModelStatus.
START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50

_NUMBER = re.compile("0*[0-9]{1,19}")
LARGEST = 2**63 - 1  # versions are int64 on the wire
_KEPT_STATES = 100
_DRAIN_SECONDS = 60.0


class Loaded(Protocol):
    """A loaded version, as the watcher sees it."""

    version: int

    def close(self) -> None:
        """Free it."""


T = TypeVar("T", bound=Loaded)


@dataclass(frozen=True)
class VersionState:
    """A version in GetModelStatus: its state, and the error (canonical code and text) that ended it, if any."""

    version: int
    state: int
    error_code: int = 0
    error_message: str = ""


class _Handle(Generic[T]):
    """A loaded version and the number of requests that use it."""

    def __init__(self, model: T):
        self.model = model
        self.users = 0


class VersionWatcher(Generic[T]):
    """Serves the highest version in a folder that loads, or several, by policies like TF Serving's.

    A new version is loaded next to those being served; once it is ready, a version that the policy no longer
    includes is unloaded when its last request ends. A version that fails to load is reported and never replaces
    another; it is tried again when its files change. Folders whose names are not numbers are ignored.

    Args:
        load: Loads one version; a RequestError (or any exception) means that it cannot be served.
        poll_seconds: Interval between looks; 0: look once.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        load: Callable[[int, Path], T],
        poll_seconds: float = 1.0,
        policy: VersionPolicy = VersionPolicy(),
        labels: Mapping[str, int] | None = None,
    ):
        self.name = name
        self.base_path = base_path
        self._load = load
        self._poll_seconds = poll_seconds
        self._changed = threading.Condition()
        self._policy = policy
        self._labels = dict(labels or {})
        self._serving: dict[int, _Handle[T]] = {}
        self._states: dict[int, VersionState] = {}
        self._failed: dict[int, tuple[object, ...]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = ""

    def start(self) -> None:
        """Load the present versions, then keep looking for new ones in a thread."""
        self.look()
        if self._poll_seconds > 0:
            self._thread = threading.Thread(target=self._keep_looking, name="version-watcher", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop looking and unload all versions."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for version in self.available():
            self._take_down(version)

    def configure(self, policy: VersionPolicy, labels: Mapping[str, int]) -> None:
        """Set the policy and the labels; the policy takes effect at the next look."""
        with self._changed:
            self._policy, self._labels = policy, dict(labels)

    def states(self) -> list[VersionState]:
        """All versions seen so far, by number."""
        with self._changed:
            return [self._states[version] for version in sorted(self._states)]

    def available(self) -> list[int]:
        """The versions being served, lowest first."""
        with self._changed:
            return sorted(self._serving)

    @property
    def version(self) -> int | None:
        """The highest version being served; None if there is none."""
        return max(self.available(), default=None)

    def wait_available(self, timeout: float | None = None) -> bool:
        """Wait until a version is being served. Returns whether one is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._serving), timeout)

    def labelled(self, name: str, label: str) -> int:
        """The version of a label. Raises RequestError: INVALID_ARGUMENT, with the real server's message."""
        with self._changed:
            version = self._labels.get(label) if name == self.name else None
        if version is None:
            raise invalid(f"Unrecognized servable version label: {label}")
        return version

    @contextmanager
    def use(self, name: str, version: int | None = None, label: str | None = None) -> Iterator[T]:
        """The model that a request names, kept loaded until the block ends.

        Raises:
            RequestError: no such model, version or label; the message is the real server's.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        with self._changed:
            if label is not None:
                version = self.labelled(name, label)
            chosen = max(self._serving, default=None) if version is None else version
            handle = None if chosen is None or name != self.name else self._serving.get(chosen)
            if handle is None:
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise not_found(f"Servable not found for request: {wanted}")
            handle.users += 1
        try:
            yield handle.model
        finally:
            with self._changed:
                handle.users -= 1
                self._changed.notify_all()

    def look(self) -> None:
        """Look for versions now, load those that the policy includes, and unload the others."""
        folders = self._version_folders()
        with self._changed:
            policy = self._policy
        kept: list[int] = []
        for version in policy.candidates(folders):
            if version in self.available() or self._bring_up(version, folders[version]):
                kept.append(version)
            if len(kept) == policy.most:
                break
        if kept:
            for version in self.available():
                if version not in kept:
                    self._take_down(version)

    def _version_folders(self) -> dict[int, Path]:
        try:
            found = version_folders(self.base_path)
        except OSError as error:
            self._warn(f"{self.base_path}: {error.strerror}; keeping version {self.version}")
            return {}
        if not found:
            self._warn(
                f"no version of {self.name} in {self.base_path}: waiting for a numbered folder (afm-ctr export)"
            )
        return found

    def _bring_up(self, version: int, folder: Path) -> bool:
        fingerprint = _fingerprint(folder)
        if self._failed.get(version) == fingerprint:
            return False
        self._set(VersionState(version, LOADING))
        log.info("loading %s version %d from %s", self.name, version, folder)
        try:
            model = self._load(version, folder)
        except Exception as error:
            fault = error if isinstance(error, RequestError) else from_number(2, f"{type(error).__name__}: {error}")
            self._failed[version] = fingerprint
            self._set(VersionState(version, END, fault.code.value[0], str(fault)))
            kept = "none is served" if self.version is None else f"version {self.version} is still served"
            log.error("%s version %d cannot be loaded, %s: %s", self.name, version, kept, fault)
            return False
        self._failed.pop(version, None)
        with self._changed:
            self._serving[version] = _Handle(model)
            self._states[version] = VersionState(version, AVAILABLE)
            self._changed.notify_all()
        log.info("%s version %d is being served", self.name, version)
        return True

    def _take_down(self, version: int) -> None:
        with self._changed:
            handle = self._serving.pop(version)
            self._states[version] = VersionState(version, UNLOADING)
            drained = self._changed.wait_for(lambda: handle.users == 0, _DRAIN_SECONDS)
        if drained:
            handle.model.close()
        else:
            log.warning(
                "%s version %d still has requests after %g s; kept in memory", self.name, version, _DRAIN_SECONDS
            )
        self._set(VersionState(version, END))

    def _set(self, state: VersionState) -> None:
        with self._changed:
            self._states[state.version] = state
            ended = [number for number, item in sorted(self._states.items()) if item.state == END]
            for number in ended[: max(0, len(self._states) - _KEPT_STATES)]:
                del self._states[number]
            self._changed.notify_all()

    def _keep_looking(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                self.look()
            except Exception:
                log.exception("looking for versions of %s failed; trying again", self.name)

    def _warn(self, text: str) -> None:
        if text != self._warned:  # log it once, not at every poll
            log.warning("%s", text)
            self._warned = text


def version_folders(base_path: Path) -> dict[int, Path]:
    """The folders whose name is a version's number, by number. Raises OSError: ``base_path`` cannot be listed."""
    found = {int(path.name): path for path in base_path.iterdir() if _NUMBER.fullmatch(path.name)}
    return {version: path for version, path in found.items() if version <= LARGEST and path.is_dir()}


def _fingerprint(folder: Path) -> tuple[object, ...]:
    """Changes when a file below the folder does, so that a version still being copied is tried again."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)
