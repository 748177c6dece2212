"""Sums of gradient rows: right, and in an order of their own on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import sparse_gradients
from afm_ctr.sparse_gradients import add_rows, merge_slices

FORMS: dict[str, Callable[..., tf.Tensor]] = {
    "cpu": sparse_gradients.add_in_order,
    "gpu": sparse_gradients.add_sorted,
}


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["a GPU"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (500, 16), (500, 2, 3), (500,)])
def test_sums_by_either_form(form: str, dtype: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    count = 0 if not shape[0] else 60
    values = rng.normal(size=shape).astype(dtype)
    position = rng.permutation(np.concatenate([np.zeros(shape[0] // 2), np.arange(shape[0] - shape[0] // 2) % 60]))
    expected = np.zeros((count, *shape[1:]), np.float64)
    np.add.at(expected, position.astype(np.int64), values)
    got = FORMS[form](tf.constant(values), tf.constant(position, tf.int64), tf.constant(count, tf.int64))
    assert got.dtype == dtype and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 if dtype is np.float32 else 1e-12)


def test_ranks_parts_are_added_one_after_the_other_by_either_form() -> None:
    """With up to 8 summands both forms give the bits of a plain loop over the ranks."""
    rng = np.random.default_rng(8)
    for ranks in (2, 3, 8):
        rows = [np.sort(rng.choice(40, 25, replace=False)) for _ in range(ranks)]
        parts = [(10 ** rng.uniform(-4, 4, [25, 5])).astype(np.float32) for _ in range(ranks)]
        expected = np.zeros([40, 5], np.float32)
        for where, part in zip(rows, parts, strict=True):
            expected[where] += part
        for form in FORMS.values():
            got = form(
                tf.constant(np.concatenate(parts)), tf.constant(np.concatenate(rows)), tf.constant(40, tf.int64)
            )
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("gpu", [False, True])
def test_half_floats_are_summed_in_float32(dtype: str, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if gpu:
        on_gpu(monkeypatch)
    merged = merge_slices(tf.IndexedSlices(tf.ones([4000, 1], dtype), tf.zeros([4000], tf.int64)))
    assert merged.values.dtype == dtype and float(merged.values[0, 0]) == 4000.0  # in half itself: 2048, or 256


def test_no_sum_on_a_gpu_has_atomics(monkeypatch: pytest.MonkeyPatch) -> None:
    def ops() -> set[str]:
        function = tf.function(lambda v, p: add_rows(v, p, tf.constant(9)))
        graph = function.get_concrete_function(tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int64)).graph
        return {node.type for node in graph.get_operations()}

    monkeypatch.setenv("AFM_CTR_TABLE", "tensorflow")
    assert "SparseTensorDenseMatMul" in ops()
    monkeypatch.delenv("AFM_CTR_TABLE")
    on_gpu(monkeypatch)
    assert "SparseSegmentSumWithNumSegments" in ops()
    assert not ops() & {"SparseTensorDenseMatMul", "UnsortedSegmentSum", "SegmentSum", "ScatterNd", "AfmCtrAddRows"}
