"""Large variables on huge pages of memory.

A step reads and writes rows anywhere in a table. With pages of 4 KB nearly every row of a large table costs a TLB
miss besides the cache miss, once per optimizer slot; with pages of 2 MB the TLB covers a table of many gigabytes, and
a row costs the same in a large table as in a small one. Linux grants huge pages on request if
``transparent_hugepage`` is ``madvise``, the usual setting, or ``always``.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

import numpy as np
import tensorflow as tf

_LARGE_PAGE = 2 << 20
_SMALLEST = 8 * _LARGE_PAGE  # below, the gain is small
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1


def on_large_pages(variable: tf.Variable) -> None:
    """Move a variable's memory to huge pages, if the system has them; its value stays.

    Call it before the first sparse update: after that TensorFlow copies a whole variable that is read. An assignment
    of a whole value replaces the memory and undoes this, which costs only speed.

    Args:
        variable: on a CPU; variables below 16 MB, and those on a GPU, are not touched.
    """
    size = variable.dtype.size * int(np.prod(variable.shape.as_list()))
    if size < _SMALLEST or not sys.platform.startswith("linux") or "CPU" not in variable.device.upper():
        return
    if not tf.executing_eagerly():  # its memory is allocated when a graph runs
        return
    address = np.asarray(memoryview(variable.read_value())).ctypes.data
    first = -(-address // _LARGE_PAGE) * _LARGE_PAGE
    last = (address + size) // _LARGE_PAGE * _LARGE_PAGE
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL(None, use_errno=True)
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(advice))
