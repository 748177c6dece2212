"""A smaller process: TensorFlow for those who need no Keras, and memory that threads share."""

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
    """Within the block, imports of these packages fail as if they were not installed; those loaded already stay.

    For libraries that import them at their start only where they are installed, and do not need them here.
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
    """Import TensorFlow, unless that has happened, without the Keras that it imports by itself.

    It does so only to have Keras register its optimizers with SavedModels; that and what Keras imports in turn is
    two fifths of the time and 100 MB. SciPy and h5py are for the old Keras that TensorFlow still holds. ``import
    keras`` and ``tf.keras`` work afterwards as ever.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with _lock:
        if "tensorflow" in sys.modules or "keras" in sys.modules:
            return
        grow_gpu_memory()
        with hidden("keras", "scipy", "h5py"):
            import_module("tensorflow")


def share_memory() -> None:
    """Have all threads take memory from two arenas; to be called before there are many.

    By itself glibc gives every thread one of its own, up to eight a core, and what a thread has freed there no other
    one gets: the peak then depends on which thread did what. ``MALLOC_ARENA_MAX`` in the environment has its way.
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_ARENA_MAX" not in os.environ:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
