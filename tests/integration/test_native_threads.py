"""The fused pooling in processes with one, two and seven threads: the same bits."""

from __future__ import annotations

import subprocess
import sys

import pytest

from afm_ctr import native

# 300 rows, some products too small for normal numbers, dropout on; prints a digest of the result and its gradients.
DIGEST = """
import hashlib, sys
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from afm_ctr.interactions import Dropout, fused_attentional_pooling
rng = np.random.default_rng(8)
rows, slots, k, t = 300, 11, 16, 16
present = rng.random((rows, slots)) < 0.8
u = (rng.normal(size=(rows, slots, k)) * present[..., None]).astype(np.float32)
u[::3] *= 1e-20
network = rng.normal(size=(k, t)), rng.normal(size=t), rng.normal(size=t)
inputs = [tf.Variable(x.astype(np.float32)) for x in (u, *network)]
pairs = np.array([(i, j) for i in range(slots) for j in range(i + 1, slots)], np.int32)
found = []
for by_slot in (False, True):
    with tf.GradientTape() as tape:
        u, W, b, h = inputs
        dropout = Dropout(tf.range(rows, dtype=tf.int64), 0.3, 1, 1)
        pooled = fused_attentional_pooling(
            u, tf.constant(present), W, b, h, pairs, dropout=dropout, by_slot=by_slot
        )
    found += [pooled, *tape.gradient(pooled, inputs, rng.normal(size=pooled.shape).astype(np.float32))]
print(hashlib.sha256(b"".join(x.numpy().tobytes() for x in found)).hexdigest(), float(tf.norm(pooled)) > 0)
"""


@pytest.mark.skipif(bool(native.why_not()), reason=f"fused pooling: {native.why_not()}")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    command = [sys.executable, "-c", DIGEST]
    started = [subprocess.Popen([*command, n], stdout=subprocess.PIPE, text=True) for n in ("1", "2", "7")]
    printed = [process.communicate(timeout=180)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert printed[0].endswith(" True")
    assert printed == [printed[0]] * 3
