"""Pooling over pairs, plain and blocked, against the oracle and against hand-computed values."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.interactions import (
    Dropout,
    attentional_pooling,
    block_rows,
    blocked_attentional_pooling,
    fm_pooling,
    masked_softmax,
    request_attentional_pooling,
    stateless_keep,
)

SLOTS, FEATURES = 5, 12
# Full rows, absent slots, one present slot, none, an id that repeats.
IDS = np.array(
    [[1, 2, 3, 4, 5], [6, 0, 8, 0, 10], [0, 0, 7, 0, 0], [0, 0, 0, 0, 0], [11, 11, 2, 2, 11], [0, 9, 0, 3, 0]],
    np.int64,
)
FORMS = ["plain", "blocked"]


def example(seed: int = 0, k: int = 3, t: int = 4) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parameters and values; a present slot of the first row and one of the second hold the value 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=IDS.shape)
    values[0, 1] = values[1, 2] = 0.0
    return oracle.random_parameters(rng, FEATURES, k, t), values


def logits_and_gradients(
    form: str,
    parameters: dict[str, np.ndarray],
    ids: np.ndarray,
    values: np.ndarray,
    pairs: np.ndarray,
    upstream: np.ndarray,
    dtype: Any = tf.float64,
    **options: Any,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The whole of AFM around a pooling, differentiated by TensorFlow, in the shape of the oracle's answer."""
    variables = {name: tf.Variable(value, dtype=dtype) for name, value in parameters.items()}
    present = tf.constant(ids != 0)
    x = tf.where(present, tf.constant(values, dtype), tf.zeros(ids.shape, dtype))

    @tf.function(autograph=False)
    def run() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            u = tf.gather(variables["v"], ids) * x[..., tf.newaxis]
            arguments = (u, present, variables["W"], variables["b"], variables["h"], pairs)
            if form == "plain":
                pooled, _ = attentional_pooling(*arguments, **options)
            else:
                pooled = blocked_attentional_pooling(*arguments, rows_at_once=2, **options)
            linear = tf.reduce_sum(tf.gather(variables["w"], ids) * x, axis=1)
            logits = variables["w0"] + linear + tf.linalg.matvec(pooled, variables["p"])
            total = tf.reduce_sum(logits * tf.constant(upstream, dtype))
        return logits, tape.gradient(total, list(variables.values()), unconnected_gradients="zero")

    logits, gradients = run()
    dense = [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]
    return logits.numpy(), dict(zip(variables, dense, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale_by_pairs", [False, True])
def test_forward_and_every_gradient_equal_the_oracle(form: str, scale_by_pairs: bool) -> None:
    parameters, values = example()
    pairs = oracle.all_pairs(SLOTS)
    upstream = np.random.default_rng(1).normal(size=len(IDS))
    expected, _, gradients = oracle.afm(parameters, IDS, values, pairs, upstream, scale_by_pairs)
    found, by = logits_and_gradients(form, parameters, IDS, values, pairs, upstream, scale_by_pairs=scale_by_pairs)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(by[name], gradient, rtol=1e-10, atol=1e-12, err_msg=name)
        assert np.any(gradient != 0), name


@pytest.mark.parametrize("form", FORMS)
def test_float32_is_within_the_stated_tolerance(form: str) -> None:
    parameters, values = example(seed=5)
    pairs = oracle.all_pairs(SLOTS)
    upstream = np.random.default_rng(1).normal(size=len(IDS))
    expected, _, gradients = oracle.afm(parameters, IDS, values, pairs, upstream, True)
    found, by = logits_and_gradients(form, parameters, IDS, values, pairs, upstream, tf.float32, scale_by_pairs=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(by[name], gradient, rtol=1e-4, atol=1e-4 * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_pairs_outside_the_list_take_no_part(form: str) -> None:
    parameters, values = example(seed=2)
    pairs = np.array([(0, 1), (0, 4), (2, 3), (3, 4)], np.int32)
    upstream = np.linspace(-1, 1, len(IDS))
    expected, _, gradients = oracle.afm(parameters, IDS, values, pairs, upstream)
    found, by = logits_and_gradients(form, parameters, IDS, values, pairs, upstream)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(by[name], gradient, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_dropout_on_pairs_equals_the_oracle_with_the_same_mask(form: str) -> None:
    parameters, values = example(seed=3)
    pairs = oracle.all_pairs(SLOTS)
    upstream = np.linspace(-1, 1, len(IDS))
    rows = tf.constant([3, 1, 4, 15, 9, 2], tf.int64)
    keep = stateless_keep(rows, len(pairs), 0.4, seed=7, salt=1, dtype=tf.float64).numpy()
    assert 0 < np.mean(keep == 0) < 1
    expected, _, gradients = oracle.afm(parameters, IDS, values, pairs, upstream, True, pair_keep=keep)
    found, by = logits_and_gradients(
        form, parameters, IDS, values, pairs, upstream, scale_by_pairs=True, dropout=Dropout(rows, 0.4, 7, 1)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(by[name], gradient, rtol=1e-10, atol=1e-12, err_msg=name)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
    block=st.integers(2, 5),
    seed=st.integers(0, 2**31),
    scale=st.booleans(),
    rate=st.sampled_from([0.0, 0.5]),
)
def test_blocked_equals_plain(
    shape: tuple[int, int, int, int], block: int, seed: int, scale: bool, rate: float
) -> None:
    rows, slots, k, t = shape
    rng = np.random.default_rng(seed)
    pairs = oracle.all_pairs(slots)
    pairs = pairs[rng.random(len(pairs)) < 0.8]
    present = tf.constant(rng.random((rows, slots)) < 0.7)
    u = tf.constant(rng.normal(size=(rows, slots, k))) * tf.cast(present, tf.float64)[..., tf.newaxis]
    inputs = [u, *(tf.constant(rng.normal(size=shape)) for shape in [(k, t), (t,), (t,)])]
    upstream = tf.constant(rng.normal(size=(rows, k)))
    options: dict[str, Any] = {"scale_by_pairs": scale}
    if rate:
        options["dropout"] = Dropout(tf.range(rows, dtype=tf.int64), rate, seed, 1)
    answers = []
    for blocked in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            arguments = (inputs[0], present, *inputs[1:], pairs)
            if blocked:
                pooled = blocked_attentional_pooling(*arguments, rows_at_once=block, **options)
            else:
                pooled, _ = attentional_pooling(*arguments, **options)
            total = tf.reduce_sum(pooled * upstream)
        answers.append([pooled, *tape.gradient(total, inputs, unconnected_gradients="zero")])
    for plain, other in zip(*answers, strict=True):
        np.testing.assert_allclose(other.numpy(), plain.numpy(), rtol=1e-9, atol=1e-11)


def attend(u: np.ndarray, present: np.ndarray, W: np.ndarray, b: np.ndarray, h: np.ndarray) -> tuple[Any, Any]:
    return attentional_pooling(*map(tf.constant, (u, present, W, b, h)), oracle.all_pairs(u.shape[1]))


def test_attention_of_three_slots_by_hand() -> None:
    # One factor, one attention unit with weight 1: scores are relu of the products 2·3, 2·(-1), 3·(-1).
    pooled, attention = attend(
        np.array([[[2.0], [3.0], [-1.0]]]), np.ones((1, 3), bool), np.eye(1), np.zeros(1), np.array([0.5])
    )
    weights = np.exp([3.0, 0.0, 0.0]) / (np.exp(3.0) + 2.0)
    np.testing.assert_allclose(attention[0], weights, rtol=1e-12)
    np.testing.assert_allclose(pooled[0, 0], 6 * weights[0] - 2 * weights[1] - 3 * weights[2], rtol=1e-12)


def test_softmax_runs_over_the_pairs_and_not_over_an_axis_of_length_one() -> None:
    parameters, values = example(seed=8)
    x = np.where(IDS != 0, values, 0.0)
    _, attention = attend(parameters["v"][IDS] * x[..., None], IDS != 0, *(parameters[n] for n in "Wbh"))
    assert attention.shape == (len(IDS), 10)
    # A softmax along an axis of length one makes every weight 1.
    assert np.all(attention.numpy()[0] < 0.999)
    assert np.std(attention.numpy()[0]) > 1e-3


def test_attention_sums_to_one_over_the_present_pairs_and_is_zero_elsewhere() -> None:
    parameters, values = example(seed=4)
    pairs = oracle.all_pairs(SLOTS)
    x = np.where(IDS != 0, values, 0.0)
    _, attention = attend(parameters["v"][IDS] * x[..., None], IDS != 0, *(parameters[n] for n in "Wbh"))
    both = (IDS[:, pairs[:, 0]] != 0) & (IDS[:, pairs[:, 1]] != 0)
    # A masked score left in the softmax as a zero would take exp(0) of the sum.
    assert np.all(attention.numpy()[~both] == 0)
    np.testing.assert_allclose(attention.numpy().sum(axis=1), both.any(axis=1).astype(float), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_rows_with_one_slot_or_none_pool_to_zero_without_a_nan(form: str) -> None:
    parameters, values = example()
    rows = IDS[2:4]
    found, by = logits_and_gradients(
        form, parameters, rows, values[2:4], oracle.all_pairs(SLOTS), np.ones(2), scale_by_pairs=True
    )
    expected = [parameters["w0"] + parameters["w"][7] * values[2, 2], parameters["w0"]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for name in "vWbhp":
        assert np.all(by[name] == 0), name


def test_a_present_zero_keeps_its_pairs_and_is_continuous() -> None:
    parameters, values = example()
    pairs = oracle.all_pairs(SLOTS)
    at_zero, _ = logits_and_gradients("plain", parameters, IDS[:1], values[:1], pairs, np.ones(1))
    values[0, 1] = 1e-9
    beside, _ = logits_and_gradients("plain", parameters, IDS[:1], values[:1], pairs, np.ones(1))
    np.testing.assert_allclose(at_zero, beside, rtol=1e-7)
    values[0, 1] = 0.0
    _, attention, _ = oracle.afm(parameters, IDS[:1], values[:1], pairs)
    assert attention[0, 0] > 0


@pytest.mark.parametrize("form", FORMS)
def test_an_example_does_not_see_its_batch(form: str) -> None:
    parameters, values = example(seed=6)
    pairs = oracle.all_pairs(SLOTS)
    together, _ = logits_and_gradients(form, parameters, IDS, values, pairs, np.ones(len(IDS)))
    some = [4, 0, 1]
    apart, _ = logits_and_gradients(form, parameters, IDS[some], values[some], pairs, np.ones(3))
    np.testing.assert_allclose(apart, together[some], rtol=1e-12)


def test_softmax_stands_huge_scores() -> None:
    scores = tf.constant([[1e38, 1e38, -1e38], [-3e38, 3e38, 3e38], [1.0, 2.0, 3.0]])
    mask = tf.constant([[True, True, True], [True, False, False], [False, False, False]])
    np.testing.assert_array_equal(masked_softmax(scores, mask), [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("pairs", [oracle.all_pairs(5), oracle.all_pairs(5)[2:], oracle.all_pairs(5)[:2]])
def test_fm_pooling_is_the_sum_over_the_pairs(pairs: np.ndarray) -> None:
    u = np.random.default_rng(0).normal(size=(4, 5, 3))
    expected = sum(u[:, i] * u[:, j] for i, j in pairs)
    np.testing.assert_allclose(fm_pooling(tf.constant(u), pairs), expected, rtol=1e-12, atol=1e-14)


def test_uniform_attention_with_the_scale_is_a_factorization_machine() -> None:
    parameters, values = example()
    parameters["h"][:] = 0
    parameters["p"][:] = 1
    pairs = oracle.all_pairs(SLOTS)
    for form in FORMS:
        found, _ = logits_and_gradients(form, parameters, IDS, values, pairs, np.ones(len(IDS)), scale_by_pairs=True)
        np.testing.assert_allclose(found, oracle.fm(parameters, IDS, values, pairs), rtol=1e-12)


def test_blocks_fit_a_cache_whatever_the_shape() -> None:
    assert block_rows(39, 16, 16, 3 << 20) == 66
    assert block_rows(196, 16, 64, 3 << 20) == 1
    assert block_rows(1, 1, 1, 3 << 20) == 1024


def test_memory_of_the_blocked_form_does_not_grow_with_the_pairs_of_the_batch() -> None:
    rows, slots, k, t = 256, 39, 8, 8
    present = tf.ones([rows, slots], tf.bool)
    pairs = oracle.all_pairs(slots)

    @tf.function(autograph=False)
    def step(u: tf.Tensor, W: tf.Tensor, b: tf.Tensor, h: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(u)
            total = tf.reduce_sum(blocked_attentional_pooling(u, present, W, b, h, pairs, rows_at_once=8))
        return tape.gradient(total, [u])

    graph = step.get_concrete_function(*(tf.TensorSpec(s) for s in [(rows, slots, k), (k, t), (t,), (t,)])).graph
    largest = 0
    for operation in [*graph.get_operations(), *(o for f in graph._functions.values() for o in _body(f))]:
        for output in operation.outputs:
            if output.shape.is_fully_defined():
                largest = max(largest, output.shape.num_elements())
    assert largest == rows * slots * k


def _body(function: Any) -> list[tf.Operation]:
    """The operations of a function that a graph calls."""
    return function.graph.get_operations() if getattr(function, "graph", None) is not None else []


@pytest.mark.parametrize("by_slot", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 11])
def test_a_request_in_blocks_has_the_bits_of_the_plain_form(rows: int, by_slot: bool) -> None:
    """For batches of a size that the graph does not know, as in an exported model."""
    rng = np.random.default_rng(rows)
    pairs = oracle.all_pairs(6)
    network = [tf.constant(rng.normal(size=shape), tf.float32) for shape in [(16, 8), (8,), (8,)]]
    present = tf.constant(rng.random((rows, 6)) < 0.7)
    u = tf.constant(rng.normal(size=(rows, 6, 16)), tf.float32) * tf.cast(present, tf.float32)[..., tf.newaxis]
    options = {"scale_by_pairs": True, "by_slot": by_slot}

    @tf.function(input_signature=[tf.TensorSpec([None, 6, 16]), tf.TensorSpec([None, 6], tf.bool)])
    def request(u: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        return request_attentional_pooling(u, present, *network, pairs, rows_at_once=5, **options)

    pooled = request(u, present)
    assert request.get_concrete_function().structured_outputs.shape.as_list() == [None, *([6] * by_slot), 16]
    np.testing.assert_array_equal(pooled, attentional_pooling(u, present, *network, pairs, **options)[0])


def test_a_batch_without_rows() -> None:
    pooled = blocked_attentional_pooling(
        tf.zeros([0, 3, 2]),
        tf.ones([0, 3], tf.bool),
        tf.zeros([2, 1]),
        tf.zeros([1]),
        tf.zeros([1]),
        oracle.all_pairs(3),
    )
    assert pooled.shape == (0, 2)


def test_a_pair_list_that_is_none_is_refused() -> None:
    u = tf.zeros([1, 3, 2])
    with pytest.raises(ValueError, match="distinct"):
        blocked_attentional_pooling(
            u, tf.ones([1, 3], tf.bool), tf.zeros([2, 1]), tf.zeros([1]), tf.zeros([1]), np.array([(1, 0)])
        )
    with pytest.raises(ValueError, match="rate"):
        stateless_keep(tf.zeros([1], tf.int64), 2, 1.0, 0, 0)
