"""Loading TensorFlow without its start-up chatter, which hides the one line that matters."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# What the C++ side logs before its log level is in force, and the missing GPU driver of a machine without a GPU.
CHATTER = re.compile(
    rb"^(WARNING: All log messages before absl|[IWE]\d{4} [\d:.]+ +\d+ |To enable the following |"
    rb"WARNING:root:apitools )"
)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Drop TensorFlow's known start-up lines from stderr, at the level of the file descriptor; keep all else."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            kept = [line for line in caught if not CHATTER.match(line)]
            os.write(2, b"".join(kept))


def load_tensorflow(*others: str) -> None:
    """Import TensorFlow (and the other packages named) and look for GPUs once, quietly.

    Raises:
        ModuleNotFoundError: one of them is not installed.
    """
    with without_chatter():
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")
        for name in others:
            importlib.import_module(name)
