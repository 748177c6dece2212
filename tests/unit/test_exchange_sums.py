"""What an exchange may not lose: half floats beyond their range, and rows whose gradient is zero."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_world import FakeWorld

from afm_ctr.distributed import Form, GradientExchange, SingleWorld
from afm_ctr.sparse_gradients import MergedSlices, add_rows


class Reduces(FakeWorld):
    """Ranks that hold the same."""

    def allreduce(self, tensor: Any, op: Any = "sum", name: str | None = None) -> tf.Tensor:
        return tensor * self.size


def slices(kind: str, indices: list[int], values: list[float]) -> tf.IndexedSlices:
    return tf.IndexedSlices(
        tf.constant([[value] for value in values], tf.as_dtype(kind)),
        tf.constant(indices, tf.int64),
        tf.constant([9, 1], tf.int64),
    )


# float16 ends at 65,504; bfloat16 has 8 bits: 256 + 1 is 256 there.
HALVES = [("float16", 40_000.0, 40_000.0), ("bfloat16", 256.0, 1.0)]


@pytest.mark.parametrize(("kind", "one", "other"), HALVES)
def test_dense_half_floats_are_summed_as_float32(kind: str, one: float, other: float) -> None:
    class Other(FakeWorld):
        def grouped_sum(self, tensors: Any, name: str | None = None) -> list[tf.Tensor]:
            # What the mark and the weight of a step add is not looked at.
            return [tensor + tf.cast(other, tensor.dtype) if tensor.shape == [2] else tensor for tensor in tensors]

    gradient = tf.fill([2], tf.cast(one, tf.as_dtype(kind)))
    (total,), _ = GradientExchange(Other())([gradient], [keras.Variable(np.ones(2), dtype=kind)], None)
    assert total.dtype == tf.float32
    assert total.numpy().tolist() == [one + other] * 2


@pytest.mark.parametrize(("kind", "one", "other"), HALVES)
@pytest.mark.parametrize("form", ["gather", "reduce"])
@pytest.mark.parametrize("size", [1, 2])
def test_rows_of_half_floats_are_summed_as_float32(
    kind: str, one: float, other: float, form: Form, size: int
) -> None:
    """Over the ranks, and where a rank reads a row twice."""
    gradient = slices(kind, [3, 3], [one, other])
    world = Reduces() if size > 1 else SingleWorld()
    (total,), _ = GradientExchange(world, form)([gradient], [keras.Variable(np.ones((9, 1)), dtype=kind)], None)
    assert total.values.dtype == tf.float32
    assert total.values.numpy().tolist() == [[size * (one + other)]]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_no_half_kernel_adds_rows(kind: str) -> None:
    """A thousand ones: in bfloat16 the sum would stop at 256."""
    ones = tf.ones([1000, 1], tf.as_dtype(kind))
    total = add_rows(ones, tf.zeros([1000], tf.int64), tf.constant(1))
    assert total.dtype == tf.as_dtype(kind) and float(total[0, 0]) == 1000.0


@pytest.mark.parametrize("form", ["gather", "reduce"])
def test_rows_with_a_zero_gradient_are_exchanged(form: Form) -> None:
    """An optimizer that remembers moves them all the same."""
    rows = tf.constant([5, 2], tf.int64)
    gradient = MergedSlices(tf.constant([[0.0, 0.0], [1.0, -1.0]]), rows, tf.constant([9, 2], tf.int64))
    (total,), _ = GradientExchange(Reduces(), form)([gradient], [keras.Variable(np.ones((9, 2)))], None)
    found = dict(zip(total.indices.numpy().tolist(), total.values.numpy().tolist(), strict=True))
    assert found == {2: [2.0, -2.0], 5: [0.0, 0.0]}
