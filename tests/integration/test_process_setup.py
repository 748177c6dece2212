"""TensorFlow without Keras: a process of its own, since this one has long had both."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from afm_ctr.process_setup import load_tensorflow_without_keras, share_memory
share_memory()
with ThreadPoolExecutor(3) as pool:
    list(pool.map(lambda _: load_tensorflow_without_keras(), range(3)))
assert "tensorflow" in sys.modules and "keras" not in sys.modules
import tensorflow as tf
assert tf.function(lambda x: x + 1)(tf.constant(1)).numpy() == 2
import keras
assert tf.keras.optimizers.Adam is keras.optimizers.Adam
load_tensorflow_without_keras()
assert sys.modules["keras"] is keras
"""


def test_keras_stays_out_and_can_be_had_later() -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
