"""TensorFlow for those who need no Keras."""

from __future__ import annotations

import sys
from importlib import import_module
from threading import Lock

_lock = Lock()


def load_tensorflow_alone() -> None:
    """Import TensorFlow, unless that has happened, without the Keras that it imports by itself.

    It does so only to have Keras register its optimizers with SavedModels; that and what Keras imports in turn is
    two fifths of the time and 100 MB. ``import keras`` and ``tf.keras`` work afterwards as ever.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with _lock:
        if "tensorflow" in sys.modules or "keras" in sys.modules:
            return
        # An ImportError for whoever asks, which TensorFlow takes for Keras' absence.
        sys.modules["keras"] = None  # type: ignore[assignment]
        try:
            import_module("tensorflow")
        finally:
            del sys.modules["keras"]
