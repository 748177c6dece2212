"""The AFM that pools by slot and reads the sums with a network, against float64 loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import tensorflow as tf

from afm_ctr import native
from afm_ctr.errors import UserError
from afm_ctr.interactions import Dropout, attentional_pooling, blocked_attentional_pooling
from afm_ctr.models import CTRModel, InteractionInputs
from afm_ctr.models.deep_afm import DeepAFM, DeepAFMOptions

needs_ops = pytest.mark.skipif(bool(native.why_not()), reason=f"the ops: {native.why_not()}")
SLOTS, K, T = 5, 3, 4
# Full, absent slots, two, one, none.
PRESENT = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
LISTS = [oracle.all_pairs(SLOTS), np.array([(0, 1), (0, 4), (1, 2), (2, 4)], np.int32)]


def made(pairs: np.ndarray, **options: Any) -> tuple[DeepAFM, InteractionInputs]:
    """A layer in float64 with every weight at random, and a batch."""
    rng = np.random.default_rng(3)
    u = rng.normal(size=(*PRESENT.shape, K)) * PRESENT[..., None]
    inputs = InteractionInputs(tf.constant(rng.normal(size=PRESENT.shape) * PRESENT), tf.constant(u), PRESENT)
    settings = DeepAFMOptions(factors=K, attention=T, hidden=(6, 4), **options)
    layer = DeepAFM(settings, pairs, seed=1, dtype="float64")
    layer(inputs)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer, inputs


def loops(layer: DeepAFM, inputs: InteractionInputs, pairs: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """The logits, by the formulas in the class's docstring; ``keep`` [B, P] are dropout's factors."""
    value = {weight.name: np.asarray(weight) for weight in layer.weights}
    W, b, h = (value[f"attention_{name}"] for name in ("matrix", "bias", "projection"))
    p = value["pooled_projection"]
    logits = []
    for row, (linear, u, present) in enumerate(zip(*map(np.asarray, inputs[:3]), strict=True)):
        here = [q for q, (i, j) in enumerate(pairs) if present[i] and present[j]]
        scores = {}
        for q in here:
            i, j = pairs[q]
            scores[q] = sum(
                h[y] * max(sum(W[x, y] * u[i, x] * u[j, x] for x in range(K)) + b[y], 0) for y in range(T)
            )
        total = sum(np.exp(score) for score in scores.values())
        pooled = np.zeros((SLOTS, K))
        for q in here:
            i, j = pairs[q]
            weight = np.exp(scores[q]) / total * (len(here) if layer.options.scale_by_pairs else 1)
            weight *= 1.0 if keep is None else keep[row, q]
            pooled[i] += weight * u[i] * u[j]
            pooled[j] += weight * u[i] * u[j]
        parts = [pooled.reshape(-1), u.reshape(-1)][: 2 if layer.options.read_vectors else 1]
        if layer.options.normalise:
            parts = [part - part.mean() for part in parts]
            parts = [part / np.sqrt((part**2).mean() + 1e-12) for part in parts]
        hidden = np.concatenate(parts)
        for place in range(3):
            hidden = hidden @ value[f"kernel_{place}"] + value[f"offset_{place}"]
            hidden = np.maximum(hidden, 0) if place < 2 else hidden
        logits.append(linear.sum() + 0.5 * pooled.sum(axis=0) @ p + hidden[0])
    return np.array(logits)


@pytest.mark.parametrize("pairs", LISTS, ids=["all", "some"])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("vectors", [False, True], ids=["sums", "vectors"])
@pytest.mark.parametrize("training", [False, True], ids=["plain", "blocked"])
def test_the_logit_equals_the_loops(
    pairs: np.ndarray, scale: bool, normalise: bool, vectors: bool, training: bool
) -> None:
    layer, inputs = made(pairs, scale_by_pairs=scale, normalise=normalise, read_vectors=vectors)
    np.testing.assert_allclose(layer(inputs, training=training), loops(layer, inputs, pairs), rtol=1e-12)


def test_dropout_on_pairs_equals_the_loops_with_the_same_mask() -> None:
    from afm_ctr.interactions import stateless_keep

    layer, inputs = made(LISTS[0], attention_dropout=0.4)
    rows = tf.constant([3, 1, 4, 15, 9], tf.int64)
    keep = stateless_keep(rows, len(LISTS[0]), 0.4, seed=1, salt=1, dtype=tf.float64).numpy()
    assert 0 < np.mean(keep == 0) < 1
    found = layer(inputs, training=True, rows=rows)
    np.testing.assert_allclose(found, loops(layer, inputs, LISTS[0], keep), rtol=1e-12)


@pytest.mark.parametrize("vectors", [False, True])
def test_gradients_equal_central_differences_of_the_loops(vectors: bool) -> None:
    layer, inputs = made(LISTS[1], read_vectors=vectors)
    upstream = np.linspace(-1, 1, len(PRESENT))
    u = tf.Variable(inputs.vectors)
    values = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(inputs._replace(vectors=u), training=True) * upstream)
    found = tape.gradient(total, [u, *values])

    def by_difference(variable: tf.Variable, place: tuple[int, ...]) -> float:
        start, sums = variable.numpy(), []
        for step in (1e-6, -1e-6):
            moved = start.copy()
            moved[place] += step
            variable.assign(moved)
            sums.append(float(loops(layer, inputs._replace(vectors=u), LISTS[1]) @ upstream))
        variable.assign(start)
        return (sums[0] - sums[1]) / 2e-6

    rng = np.random.default_rng(5)
    checked = 0
    for variable, gradient in zip([u, *values], found, strict=True):
        size = int(np.prod(variable.shape))
        for flat in rng.choice(size, min(size, 6), replace=False):
            place = tuple(int(x) for x in np.unravel_index(flat, tuple(variable.shape)))
            expected = by_difference(variable, place)
            np.testing.assert_allclose(gradient.numpy()[place], expected, rtol=1e-5, atol=1e-7, err_msg=variable.name)
            checked += expected != 0
    assert checked > 20


@needs_ops
@pytest.mark.parametrize("shape", [(0, 2, 3), (3, 1, 1), (4, 7, 5), (3, 5, 12), (5, 39, 16)], ids=str)
def test_the_op_normalises_as_float64_does(shape: tuple[int, ...]) -> None:
    """Far from 0 too, where a variance from the difference of two sums would be wrong; and one number for all."""
    rng = np.random.default_rng(7)
    values = rng.normal(size=shape) + np.array([0, 30, 0, 0, 0])[: shape[0], np.newaxis, np.newaxis]
    values = values.astype(np.float32)
    values[2:3] = 0.5
    read, slope = rng.normal(size=(shape[0], shape[1] * shape[2])), rng.normal(size=(shape[0], shape[2]))
    answers = []
    for dtype in (tf.float64, tf.float32):
        given = tf.constant(values, dtype)
        with tf.GradientTape() as tape:
            tape.watch(given)
            if dtype == tf.float32:
                normalised, total = native.normalise(given, 1e-6)
            else:
                layer = tf.reshape(given, read.shape)
                apart = layer - tf.reduce_mean(layer, axis=1, keepdims=True)
                normalised = apart / tf.sqrt(tf.reduce_mean(apart**2, axis=1, keepdims=True) + 1e-6)
                total = tf.reduce_sum(given, axis=1)
            loss = tf.reduce_sum(normalised * tf.cast(read, dtype)) + tf.reduce_sum(total * tf.cast(slope, dtype))
        answers.append([normalised.numpy(), total.numpy(), tape.gradient(loss, given).numpy()])
    for expected, found in zip(*answers, strict=True):
        largest = np.abs(expected).max(axis=tuple(range(1, expected.ndim)), keepdims=True, initial=1)
        np.testing.assert_array_less(np.abs(found - expected) / largest, 2e-5)


@needs_ops
def test_the_op_keeps_nan_to_its_row_and_refuses_other_shapes() -> None:
    normalised, total = native.normalise(tf.constant([[[1.0], [np.nan]], [[1.0], [3.0]]]), 0.0)
    assert np.isnan(normalised[0]).all() and normalised[1].numpy().tolist() == [-1.0, 1.0]
    assert np.isnan(total[0]) and total[1] == 4.0
    for wrong in (tf.ones([2, 3]), tf.ones([2, 0, 3])):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be \[b, f, k\]"):
            native.normalise(wrong, 1e-6)
    gradient = native.load().module.afm_ctr_normalise_grad
    with pytest.raises(tf.errors.InvalidArgumentError, match="normalised and its gradient"):
        gradient(normalised=tf.ones([2, 6]), factor=tf.ones([2]), upstream=tf.ones([2, 6]), by_total=tf.ones([2, 4]))


@needs_ops
@pytest.mark.parametrize("vectors", [False, True])
def test_training_in_float32_normalises_by_the_op_and_scoring_by_stock_ops(
    vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = DeepAFM(DeepAFMOptions(factors=K, attention=T, read_vectors=vectors), LISTS[0], seed=1)
    inputs = InteractionInputs(*(tf.cast(x, tf.float32) for x in made(LISTS[0])[1][:2]), tf.constant(PRESENT))
    layer(inputs)
    answers = []
    for form in ("fused", "tensorflow"):
        monkeypatch.setenv("AFM_CTR_POOLING", form)

        def logits(u: tf.Tensor, training: bool) -> tf.Tensor:
            return layer(inputs._replace(vectors=u), training=training)

        kinds = [
            {
                op.type
                for op in tf.function(logits).get_concrete_function(inputs.vectors, training).graph.get_operations()
            }
            for training in (True, False)
        ]
        assert ["AfmCtrNormalise" in kind for kind in kinds] == [form == "fused", False]
        with tf.GradientTape() as tape:
            tape.watch(inputs.vectors)
            total = tf.reduce_sum(logits(inputs.vectors, True) * tf.linspace(-1.0, 1.0, len(PRESENT)))
        answers.append(tape.gradient(total, [inputs.vectors, *(weight.value for weight in layer.weights)]))
    for fused, plain in zip(*answers, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("scores", [1.0, 40.0], ids=["spread", "on one pair"])
@pytest.mark.parametrize(("scale", "vectors"), [(True, False), (False, False), (True, True)])
def test_an_ablation_is_the_logit_less_that_without_the_pair(scale: bool, vectors: bool, scores: float) -> None:
    layer, inputs = made(LISTS[0], scale_by_pairs=scale, read_vectors=vectors)
    layer.h.assign(scores * layer.h.value)
    found = layer.ablations(inputs).numpy()
    whole = loops(layer, inputs, LISTS[0])
    for q, (i, j) in enumerate(LISTS[0]):
        there = PRESENT[:, i] & PRESENT[:, j]
        expected = np.where(there, whole - loops(layer, inputs, np.delete(LISTS[0], q, axis=0)), 0.0)
        np.testing.assert_allclose(found[:, q], expected, rtol=1e-9, atol=1e-12)
    assert np.count_nonzero(found) == 10 + 3 + 1 or scores > 1  # an attention of 1e-40 changes nothing
    assert np.all(np.count_nonzero(found, axis=1)[:3] > 0)
    assert layer.contributions(inputs) is None


@pytest.mark.parametrize("scale", [True, False])
def test_several_pairs_are_taken_out_at_once(scale: bool) -> None:
    layer, inputs = made(LISTS[0], scale_by_pairs=scale)
    groups = [np.array([0]), np.array([1, 4, 6]), np.arange(len(LISTS[0]))]
    found = layer.group_ablations(inputs, groups).numpy()
    whole = loops(layer, inputs, LISTS[0])
    for number, group in enumerate(groups):
        expected = whole - loops(layer, inputs, np.delete(LISTS[0], group, axis=0))
        np.testing.assert_allclose(found[:, number], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(layer.pairs, LISTS[0])


def test_ablations_are_the_same_in_a_graph() -> None:
    layer, inputs = made(LISTS[1], read_vectors=True)
    assert tf.autograph.to_graph(DeepAFM.ablations)  # else AutoGraph warns, wherever they are explained
    found = tf.function(lambda: layer.ablations(inputs), autograph=False)()
    np.testing.assert_allclose(found, layer.ablations(inputs), rtol=1e-12)


def test_ablations_in_float32_where_one_pair_has_nearly_all_attention() -> None:
    layer, inputs = made(LISTS[0])
    layer.h.assign(8 * layer.h.value)
    low = DeepAFM(layer.options, LISTS[0], seed=1, dtype="float32")
    inputs32 = InteractionInputs(*(tf.cast(x, tf.float32) for x in inputs[:2]), inputs.present)
    low(inputs32)
    for weight, value in zip(low.weights, layer.weights, strict=True):
        weight.assign(tf.cast(value.value, tf.float32))
    assert np.max(layer.explain(inputs)) > 1 - 1e-7
    wanted = layer.ablations(inputs).numpy()
    np.testing.assert_allclose(low.ablations(inputs32), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("slots", [1, 2, 5, 6])
def test_pools_by_slot_add_up_to_twice_the_pool_in_both_forms_and_their_gradients_agree(slots: int) -> None:
    rng = np.random.default_rng(slots)
    pairs = oracle.all_pairs(slots)[:: 2 if slots == 6 else 1]
    present = rng.random((7, slots)) < 0.8
    values = [rng.normal(size=(7, slots, K)) * present[..., None], *(rng.normal(size=s) for s in ((K, T), T, T))]
    variables = [tf.Variable(value) for value in values]
    upstream = rng.normal(size=(7, slots, K))
    options = {"scale_by_pairs": True, "dropout": Dropout(tf.range(7, dtype=tf.int64), 0.3, 1, 2)}
    results = []
    for form in ("plain", "blocked"):
        with tf.GradientTape() as tape:
            if form == "plain":
                sums = attentional_pooling(variables[0], present, *variables[1:], pairs, by_slot=True, **options)[0]
            else:
                sums = blocked_attentional_pooling(
                    variables[0], tf.constant(present), *variables[1:], pairs, by_slot=True, rows_at_once=3, **options
                )
            total = tf.reduce_sum(sums * upstream)
        results.append([sums, *tape.gradient(total, variables, unconnected_gradients="zero")])
    pooled = attentional_pooling(variables[0], present, *variables[1:], pairs, **options)[0]
    np.testing.assert_allclose(0.5 * tf.reduce_sum(results[0][0], axis=1), pooled, rtol=1e-10, atol=1e-12)
    for plain, blocked in zip(*results, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(blocked), tf.convert_to_tensor(plain), rtol=1e-9, atol=1e-11)


def test_one_slot_and_wrong_options() -> None:
    model = CTRModel("deep_afm", {"factors": 2, "attention": 2}, feature_size=4, num_slots=1, pairs=np.empty((0, 2)))
    batch = {"feature_ids": tf.constant([[1], [0]], tf.int64), "feature_vals": tf.ones([2, 1])}
    assert np.all(np.isfinite(model(batch)))
    assert model.interaction.ablations(model.inputs_of(batch)).shape == (2, 0)
    for options in ({"hidden": [0]}, {"hidden": "64"}, {"layers": [3]}):
        with pytest.raises(UserError, match="deep_afm"):
            CTRModel("deep_afm", options, feature_size=4, num_slots=1, pairs=np.empty((0, 2)))


@pytest.mark.parametrize("vectors", [False, True])
def test_a_config_makes_the_model_again_and_one_from_before_vectors_were_read_too(vectors: bool) -> None:
    options = {"factors": 2, "attention": 2, "hidden": [3], "read_vectors": vectors}
    model = CTRModel("deep_afm", options, feature_size=9, num_slots=3, pairs=oracle.all_pairs(3), seed=4)
    config = model.get_config()
    if not vectors:
        del config["options"]["read_vectors"]
    again = CTRModel.from_config(config)
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in model.weights]
    assert again.interaction.network[0][0].shape == (12 if vectors else 6, 3)
    again.set_weights(model.get_weights())
    batch = {"feature_ids": tf.constant([[1, 5, 8], [2, 0, 7]], tf.int64), "feature_vals": tf.ones([2, 3])}
    np.testing.assert_array_equal(again(batch), model(batch))
