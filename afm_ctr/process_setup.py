"""A smaller process: TensorFlow without Keras, and memory arenas that threads share."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock

from afm_ctr.devices import grow_gpu_memory

_lock = Lock()
_M_ARENA_MAX, _ARENAS = -8, 2  # malloc.h of glibc


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Within the block, imports of these packages fail as if they were not installed; loaded ones stay.

    For optional imports of libraries that are not needed here.
    """
    hid = [name for name in names if name not in sys.modules]
    for name in hid:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hid:
            del sys.modules[name]


def load_tensorflow_without_keras() -> None:
    """Import TensorFlow, unless it is loaded, without Keras.

    TensorFlow imports Keras only to register its optimizers with SavedModels, which takes two fifths of the import
    time and 100 MB; SciPy and h5py serve the legacy Keras inside TensorFlow. ``import keras`` and ``tf.keras`` work
    afterwards as usual.

    Raises:
        ModuleNotFoundError: TensorFlow is not installed.
    """
    with _lock:
        if "tensorflow" in sys.modules or "keras" in sys.modules:
            return
        grow_gpu_memory()
        with hidden("keras", "scipy", "h5py"):
            import_module("tensorflow")


def share_memory() -> None:
    """Let all threads allocate from two arenas; call it before there are many threads.

    By default glibc gives every thread its own arena, up to eight per core, and memory freed there is not reused by
    other threads: the peak then depends on which thread did what. ``MALLOC_ARENA_MAX`` takes precedence.
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_ARENA_MAX" not in os.environ:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
