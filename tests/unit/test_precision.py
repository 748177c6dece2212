"""float32, TF32 and bfloat16: what is computed in which, and how near it stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.interactions.blocked import blocked_attentional_pooling
from afm_ctr.models import CTRModel
from afm_ctr.training import TrainConfig, build_model
from tests import prepared
from tests.unit import oracle

SLOTS, IDS, ROWS = 12, 300, 64
OPTIONS: dict[str, dict[str, Any]] = {
    "afm": {"factors": 8, "attention": 16, "scale_by_pairs": True, "init_stddev": 0.5},
    "deep_afm": {"factors": 8, "attention": 16, "hidden": [32, 16], "init_stddev": 0.5},
}


def model(name: str, precision: str) -> CTRModel:
    pairs = oracle.all_pairs(SLOTS)
    return CTRModel(name, OPTIONS[name], IDS, SLOTS, pairs, seed=3, precision=precision)


def batch() -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, IDS, [ROWS, SLOTS])
    return {
        "feature_ids": tf.constant(ids, tf.int64),
        "feature_vals": tf.ones([ROWS, SLOTS]),
        "label": tf.constant(rng.integers(0, 2, ROWS), tf.float32),
        "weight": tf.ones([ROWS]),
        "row": tf.range(ROWS, dtype=tf.int64),
    }


def gradients(one: CTRModel) -> tuple[np.ndarray, list[np.ndarray]]:
    with tf.GradientTape() as tape:
        logits = one(batch(), training=True)
        loss = tf.reduce_mean(one.example_loss(batch()["label"], logits))
    found = tape.gradient(loss, [variable.value for variable in one.trainable_variables])
    return logits.numpy(), [tf.convert_to_tensor(gradient).numpy() for gradient in found]


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_is_near_float32(name: str) -> None:
    """A factor has 8 bits, so a product is off by 2^-8 at most; a few relus near 0 open or close besides."""
    (logits, exact), (near, found) = (gradients(model(name, precision)) for precision in ("float32", "bfloat16"))
    assert near.dtype == np.float32 and np.abs(near - logits).max() > 0
    np.testing.assert_allclose(near, logits, atol=0.02 * np.abs(logits).max())
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == np.float32
        assert np.linalg.norm(one - other) <= 0.1 * np.linalg.norm(other)


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_are_float32_whatever_the_training_was(name: str) -> None:
    scores = [model(name, precision)(batch()).numpy() for precision in ("float32", "bfloat16")]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("name", OPTIONS)
def test_table_sums_and_optimizer_have_no_half_kernel(name: str) -> None:
    one = model(name, "bfloat16")
    one.compile(wrap_optimizer(optimizers.build("adam"), SingleWorld()), jit_compile=False)
    one.optimizer.build(one.trainable_variables)
    assert {variable.dtype for variable in one.trainable_variables} == {"float32"}
    graph = tf.function(one.train_step, autograph=False).get_concrete_function(batch()).graph
    operations = list(graph.get_operations())
    for function in graph._functions.values():
        operations += function.graph.get_operations() if hasattr(function, "graph") else []
    half = {op.type for op in operations if any(x.dtype == tf.bfloat16 for x in (*op.inputs, *op.outputs))}
    assert {"MatMul", "Cast"} <= half
    assert not {kind for kind in half if "Segment" in kind or "Sparse" in kind or "Sum" in kind or "Softmax" in kind}


def test_sums_of_many_rows_are_float32() -> None:
    """4,096 equal rows: in bfloat16 a sum would stop growing at 256 of them."""
    pairs = oracle.all_pairs(4)
    rng = np.random.default_rng(1)
    W, b, h = (tf.constant(rng.normal(size=shape), tf.float32) for shape in ((3, 5), (5,), (5,)))
    row = tf.constant(rng.normal(size=(1, 4, 3)), tf.float32)

    def by_parameters(rows: int) -> list[np.ndarray]:
        u, present = tf.tile(row, [rows, 1, 1]), tf.ones([rows, 4], tf.bool)
        with tf.GradientTape() as tape:
            tape.watch([W, b, h])
            loss = tf.reduce_sum(blocked_attentional_pooling(u, present, W, b, h, pairs, network_dtype=tf.bfloat16))
        return [gradient.numpy() for gradient in tape.gradient(loss, [W, b, h])]

    for one, many in zip(by_parameters(1), by_parameters(4096), strict=True):
        np.testing.assert_allclose(many, 4096 * one, rtol=1e-4, atol=1e-4 * 4096 * np.abs(one).max())


@pytest.mark.parametrize(
    ("precision", "training", "expected"),
    [("float32", True, False), ("tf32", True, True), ("tf32", False, False), ("bfloat16", True, False)],
)
def test_tf32_is_off_unless_a_training_asks_for_it(precision: str, training: bool, expected: bool) -> None:
    config = TrainConfig.model_validate({"precision": precision, "model": {"name": "lr"}})
    tf.config.experimental.enable_tensor_float_32_execution(not expected)
    try:
        built = build_model(prepared.schema(), config, training=training)
        assert tf.config.experimental.tensor_float_32_execution_enabled() is expected
        assert built.precision == ("bfloat16" if precision == "bfloat16" else "float32")
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(False)
