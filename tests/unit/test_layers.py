"""The public Keras layers: against the oracle, in functional models, saved and loaded, under every policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import afm_example, all_pairs, random_parameters

from afm_ctr.layers import AFM, AttentionalPooling

ROWS, SLOTS, IDS, K, T = 6, 5, 16, 4, 3


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids with absent slots (0), a row of one present slot and an empty one; values."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, IDS, [ROWS, SLOTS])
    ids[0], ids[1] = 0, [0, 3, 0, 0, 0]
    return ids, rng.normal(size=ids.shape)


def functional(dtype: str | None = None, **options: Any) -> keras.Model:
    ids = keras.Input([SLOTS], dtype="int64")
    normal = keras.initializers.RandomNormal(stddev=0.3, seed=1)
    vectors = keras.layers.Embedding(IDS, K, normal, mask_zero=True, name="vectors", dtype=dtype)(ids)
    linear = keras.layers.Embedding(IDS, 1, name="linear", dtype=dtype)(ids)
    linear = keras.ops.sum(linear, axis=1)
    pairs = AFM(T, seed=3, dtype=dtype, name="afm", **options)(vectors)
    return keras.Model(ids, keras.layers.Add(dtype=dtype)([linear, pairs]))


@pytest.mark.parametrize("scale_by_pairs", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_logit_is_the_oracles(scale_by_pairs: bool, training: bool) -> None:
    ids, values = batch()
    parameters = random_parameters(np.random.default_rng(1), IDS, K, T)
    layer = AFM(T, scale_by_pairs=scale_by_pairs)
    vectors = (parameters["v"][ids] * values[..., None]).astype(np.float32)
    layer.build(vectors.shape)
    layer.pooling.kernel.assign(parameters["W"])
    layer.pooling.bias.assign(parameters["b"])
    layer.pooling.projection.assign(parameters["h"][:, None])
    layer.projection.assign(parameters["p"][:, None])
    poisoned = np.where(ids[..., None] == 0, np.nan, vectors)  # what an absent slot holds is not read
    found = layer(poisoned, mask=ids != 0, training=training).numpy()
    shares = layer.attention(poisoned, mask=ids != 0).numpy()
    assert found.shape == (ROWS, 1)
    only_pairs = {**parameters, "w0": np.zeros(()), "w": np.zeros(IDS)}
    for row in range(ROWS):
        logit, attention = afm_example(only_pairs, ids[row], values[row], all_pairs(SLOTS), 0.0, None, scale_by_pairs)
        np.testing.assert_allclose(found[row, 0], logit, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(shares[row], attention, atol=1e-6)


def test_by_slot_half_the_sum_is_the_whole() -> None:
    vectors = keras.random.normal((ROWS, SLOTS, K), seed=0)
    whole = AttentionalPooling(T, seed=1, attention_initializer=keras.initializers.GlorotUniform(seed=5))
    parts = AttentionalPooling(T, by_slot=True, attention_initializer=keras.initializers.GlorotUniform(seed=5))
    pooled, slots = whole(vectors), parts(vectors)
    assert tuple(slots.shape) == (ROWS, SLOTS, K) == tuple(parts.compute_output_shape(vectors.shape))
    np.testing.assert_allclose(0.5 * tf.reduce_sum(slots, axis=1), pooled, rtol=1e-5, atol=1e-6)


def test_a_functional_model_learns_with_a_stock_optimizer() -> None:
    """Labels that only a pair tells: the layer learns what the linear part cannot."""
    rng = np.random.default_rng(0)
    local = rng.integers(0, 3, [512, SLOTS])
    ids = 1 + local + 3 * np.arange(SLOTS)
    labels = (local[:, 0] == local[:, 1]).astype(np.float32)
    model = functional(scale_by_pairs=True)
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 0.05
    history = model.fit(ids, labels, batch_size=64, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.2, "a third of the labels is 1: the entropy, which the linear part cannot beat, is 0.64"


def test_saved_and_loaded_it_scores_the_same_and_trains_on(tmp_path: Path) -> None:
    ids, _ = batch()
    model = functional(
        attention_dropout=0.3,
        pooled_dropout=0.2,
        attention_regularizer=keras.regularizers.L2(0.01),
        projection_initializer="he_normal",
    )
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(ids), again(ids))
    # the dropout goes on where it was: one more step is the same step
    for one in (model, again):
        one.compile(keras.optimizers.Adam(0.01), "mse")
        one.fit(ids, np.ones(ROWS), batch_size=3, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model(ids), again(ids))


def test_the_config_makes_the_same_layer() -> None:
    layer = AFM(7, 0.1, 0.2, True, "he_normal", "orthogonal", "l2", seed=5, name="mine", dtype="mixed_bfloat16")
    again = AFM.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.pooling.attention_units, again.pooled_dropout, again.name) == (7, 0.2, "mine")
    pooling = AttentionalPooling(7, 0.1, True, True, attention_regularizer="l2", seed=4)
    assert AttentionalPooling.from_config(pooling.get_config()).get_config() == pooling.get_config()


def test_dropout_differs_from_call_to_call_and_is_repeatable() -> None:
    vectors = keras.random.normal((64, SLOTS, K), seed=0)

    def draws() -> list[np.ndarray]:
        init = keras.initializers.GlorotUniform(seed=1)
        layer = AttentionalPooling(T, attention_dropout=0.5, seed=2, attention_initializer=init)
        return [layer(vectors, training=True).numpy() for _ in range(2)] + [layer(vectors).numpy()]

    first, second = draws(), draws()
    assert np.any(first[0] != first[1])
    np.testing.assert_array_equal(first, second)
    # inverted dropout: in the mean nothing changes
    mean = np.mean([layer_draw for layer_draw in first[:2]], axis=(0, 1))
    assert np.all(np.abs(mean - first[2].mean(0)) < 0.5)


@pytest.mark.parametrize(("policy", "bound"), [("mixed_bfloat16", 2e-2), ("mixed_float16", 4e-3), ("float64", 1e-6)])
def test_policies(policy: str, bound: float) -> None:
    """Sums over pairs stay in the variables' type; only the embeddings come rounded."""
    ids, _ = batch()
    plain, other = functional(scale_by_pairs=True), functional(dtype=policy, scale_by_pairs=True)
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=weight.shape) * 0.5 for weight in plain.get_weights()]
    for model in (plain, other):
        kept = model.get_weights()
        model.set_weights(
            [w if np.issubdtype(k.dtype, np.floating) else k for w, k in zip(weights, kept, strict=True)]
        )
    found = other(ids)
    assert found.dtype == other.layers[-1].compute_dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), plain(ids), rtol=bound, atol=bound)


def test_one_slot_has_no_pair() -> None:
    assert AFM()(np.ones([3, 1, 2], np.float32)).numpy().tolist() == [[0.0]] * 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AFM(0), "attention_units must be an integer of at least 1, got 0"),
        (lambda: AFM("16"), "attention_units must be an integer of at least 1, got '16'"),
        (lambda: AFM(pooled_dropout="0.1"), r"pooled_dropout must be in \[0, 1\), got '0.1'"),
        (lambda: AFM(attention_dropout=1.0), r"attention_dropout must be in \[0, 1\), got 1.0"),
        (lambda: AFM(pooled_dropout=-0.1), r"pooled_dropout must be in \[0, 1\), got -0.1"),
        (lambda: AFM()(np.ones([3, 4])), r"takes embeddings \[batch, slots, width\]"),
        (
            lambda: AFM()(np.ones([2, 3, 4]), mask=np.ones([2, 4], bool)),
            r"mask must be \[batch, slots\], here \(2, 3\)",
        ),
        (lambda: AFM()([np.ones([2, 4])] * 3), r"takes embeddings \[batch, slots, width\]"),
        (lambda: AFM()(keras.Input([None, 4])), r"slots and width known, got \(None, None, 4\)"),
    ],
)
def test_errors_name_argument_and_value(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
