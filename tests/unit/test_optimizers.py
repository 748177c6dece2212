"""The optimizers against float64 references, dense and sparse, and what a sparse step may touch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError

Rule = Callable[[np.ndarray, np.ndarray, dict[str, np.ndarray], int], np.ndarray]


def sgd(w: np.ndarray, g: np.ndarray, slots: dict[str, np.ndarray], step: int) -> np.ndarray:
    return w - 0.1 * g


def adagrad(w: np.ndarray, g: np.ndarray, slots: dict[str, np.ndarray], step: int) -> np.ndarray:
    slots["n"] = slots.get("n", np.full_like(w, 0.1)) + g**2
    return w - 0.1 * g / np.sqrt(slots["n"] + 1e-7)


def rowwise_adagrad(w: np.ndarray, g: np.ndarray, slots: dict[str, np.ndarray], step: int) -> np.ndarray:
    """Of a row ``[d]``; what has another shape is no row, and steps as by Adagrad."""
    squares = np.full_like(g, np.mean(g**2)) if w.ndim == 1 else g**2
    slots["n"] = slots.get("n", np.full_like(w, 0.1)) + squares
    return w - 0.1 * g / np.sqrt(slots["n"] + 1e-7)


def adam(w: np.ndarray, g: np.ndarray, slots: dict[str, np.ndarray], step: int) -> np.ndarray:
    slots["m"] = 0.9 * slots.get("m", np.zeros_like(w)) + 0.1 * g
    slots["v"] = 0.999 * slots.get("v", np.zeros_like(w)) + 0.001 * g**2
    # Algorithm 1 of the paper with its epsilon in the efficient form's place.
    correction = np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    return w - 0.1 * correction * slots["m"] / (np.sqrt(slots["v"]) + 1e-7)


def ftrl(w: np.ndarray, g: np.ndarray, slots: dict[str, np.ndarray], step: int) -> np.ndarray:
    """By the definition: the weights that minimise the linear bound, the proximal terms, L1 and L2.

    argmin  Σ_s g_s·w + ½ Σ_s σ_s (w − w_s)² + β/(2α) (w − w_0)² + λ₁|w| + ½ λ₂ w²,  σ_s = (√n_s − √n_{s−1}) / α
    """
    alpha, beta, l1, l2 = 0.1, 1.0, 0.02, 0.3
    if not slots:
        zeros = np.zeros_like(w)
        slots.update(n=zeros, g=zeros, sigma=np.full_like(w, beta / alpha), centre=w * beta / alpha)
    moves = g != 0
    grown = (np.sqrt(slots["n"] + g**2) - np.sqrt(slots["n"])) / alpha
    slots["centre"] = slots["centre"] + grown * w
    slots["sigma"] = slots["sigma"] + grown
    slots["n"] = slots["n"] + g**2
    slots["g"] = slots["g"] + g
    slope = slots["g"] - slots["centre"]
    best = -np.sign(slope) * np.maximum(np.abs(slope) - l1, 0) / (slots["sigma"] + l2)
    return np.where(moves, best, w)


RULES: dict[str, tuple[Rule, dict[str, float]]] = {
    "sgd": (sgd, {}),
    "adagrad": (adagrad, {}),
    "adam": (adam, {}),
    "ftrl": (ftrl, {"l1": 0.02, "l2": 0.3}),
    "rowwise_adagrad": (rowwise_adagrad, {}),
}


def test_every_optimizer_has_a_reference() -> None:
    assert sorted(RULES) == optimizers.names()


def build(name: str) -> Any:
    return optimizers.build(name, learning_rate=0.1, **RULES[name][1])


def slices(indices: list[int], values: np.ndarray, rows: int) -> tf.IndexedSlices:
    shape = tf.constant([rows, values.shape[1]], tf.int64)
    return tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(indices, tf.int64), shape)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_dense_and_sparse_steps_equal_the_reference(name: str, wrapped: bool) -> None:
    rng = np.random.default_rng(0)
    rule, _ = RULES[name]
    start = {"dense": rng.normal(size=(2, 3)), "table": rng.normal(size=(6, 2)), "scalar": rng.normal(size=())}
    variables = [keras.Variable(value.astype(np.float32), name=key) for key, value in start.items()]
    variables[1].placement = "replicated"  # as those of our tables
    optimizer = build(name)
    if wrapped:
        optimizer = wrap_optimizer(optimizer, SingleWorld())
    optimizer.build(variables)
    expected = {key: np.float32(value).astype(np.float64) for key, value in start.items()}
    dense_slots: dict[str, np.ndarray] = {}
    scalar_slots: dict[str, np.ndarray] = {}
    row_slots: list[dict[str, np.ndarray]] = [{} for _ in range(6)]
    apply = tf.function(lambda gradients: optimizer.apply(gradients, variables), autograph=False)
    for step, touched in enumerate([[1, 4, 1, 5], [4, 2, 2, 2], [1, 1, 1, 4], [5, 4, 2, 1], [2, 4, 2, 4]], start=1):
        gradient = {"dense": rng.normal(size=(2, 3)), "scalar": rng.normal(size=())}
        values = rng.normal(size=(len(touched), 2))
        apply(
            [
                tf.constant(gradient["dense"], tf.float32),
                slices(touched, values, 6),
                tf.constant(gradient["scalar"], tf.float32),
            ]
        )
        expected["dense"] = rule(expected["dense"], gradient["dense"], dense_slots, step)
        expected["scalar"] = rule(expected["scalar"], gradient["scalar"], scalar_slots, step)
        for row in set(touched):
            merged = sum(value for index, value in zip(touched, values, strict=True) if index == row)
            expected["table"][row] = rule(expected["table"][row], merged, row_slots[row], step)
    for variable in variables:
        np.testing.assert_allclose(variable.numpy(), expected[variable.name], rtol=2e-5, atol=2e-6)
    # Rows 0 and 3 were never touched, nor were their slots.
    table = variables[1]
    np.testing.assert_array_equal(table.numpy()[[0, 3]], np.float32(start["table"])[[0, 3]])
    for slot, kept in optimizer.slots_of(table).items():
        np.testing.assert_array_equal(kept.numpy()[[0, 3]], np.float32(optimizer.slots[slot]), err_msg=slot)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "ftrl", "rowwise_adagrad"])
def test_a_sparse_step_is_the_dense_step(name: str) -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    dense, sparse = (keras.Variable(start, name="embeddings") for _ in range(2))
    one, other = build(name), build(name)
    for _ in range(4):
        indices = rng.integers(0, 4, 6).tolist()
        values = rng.normal(size=(6, 3)).astype(np.float32)
        gradient = slices(indices, values, 5)
        one.apply([tf.convert_to_tensor(gradient)], [dense])
        other.apply([gradient], [sparse])
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(sparse.numpy()[4], start[4])


def test_adam_moments_of_untouched_rows_wait() -> None:
    # Row 1 is touched in steps 1 and 3 with gradient 1: m = 0.1 then 0.9·0.1 + 0.1, corrected by the third step.
    table = keras.Variable(np.zeros((3, 1), np.float32))
    optimizer = build("adam")
    for row in (1, 2, 1):
        optimizer.apply([slices([row], np.ones((1, 1)), 3)], [table])
    m, v = 0.19, 0.999 * 0.001 + 0.001
    second = 0.1 * np.sqrt(1 - 0.999**3) / (1 - 0.9**3) * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(table.numpy()[1, 0], -0.1 - second, rtol=1e-5)


def test_repeated_rows_are_one_row() -> None:
    # Gradients 1 and 2 of one row: n = 0.1 + 3², not 0.1 + 1² + 2².
    table = keras.Variable(np.ones((3, 1), np.float32))
    optimizer = build("adagrad")
    optimizer.apply([slices([1, 1, 2], np.array([[1.0], [2.0], [0.0]]), 3)], [table])
    np.testing.assert_allclose(table.numpy()[:, 0], [1.0, 1 - 0.3 / np.sqrt(9.1), 1.0], rtol=1e-6)
    assert table.numpy()[1, 0] == pytest.approx(0.9006, abs=5e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_zero_gradient_moves_no_fresh_row(name: str) -> None:
    start = np.array([[0.0], [0.5]], np.float32)
    table = keras.Variable(start)
    optimizer = build(name)
    for _ in range(3):
        optimizer.apply([slices([0, 1], np.zeros((2, 1)), 2)], [table])
    np.testing.assert_array_equal(table.numpy(), start)


def test_one_accumulator_for_a_row_of_a_table_and_one_for_each_other_weight() -> None:
    # Gradient (3, 4) of a row: n = 0.1 + 12.5 for both weights; of a row of one weight and of a kernel: n = 0.1 + g².
    names = ["embeddings", "embeddings", "kernel"]
    pair, single, kernel = (
        keras.Variable(np.ones((2, k), np.float32), name=name) for k, name in zip([2, 1, 2], names, strict=True)
    )
    optimizer = optimizers.build("rowwise_adagrad", learning_rate=1.0, average=0.9)
    optimizer.build([pair, single, kernel])
    shapes = [tuple(optimizer.slots_of(v)["accumulator"].shape) for v in (pair, single, kernel)]
    assert shapes == [(2, 1), (2, 1), (2, 2)]
    assert all(optimizer.slots_of(v)["average"].shape == v.shape for v in (pair, single, kernel))
    assert [optimizer.slot_width(slot, 16) for slot in ("accumulator", "average")] == [1, 16]
    row = slices([1], np.array([[3.0, 4.0]]), 2)
    optimizer.apply([row, slices([1], np.array([[3.0]]), 2), row], [pair, single, kernel])
    np.testing.assert_allclose(pair.numpy(), [[1, 1], [1 - 3 / 12.6**0.5, 1 - 4 / 12.6**0.5]], atol=1e-6)
    np.testing.assert_allclose(single.numpy(), [[1], [1 - 3 / 9.1**0.5]], atol=1e-6)
    np.testing.assert_allclose(kernel.numpy(), [[1, 1], [1 - 3 / 9.1**0.5, 1 - 4 / 16.1**0.5]], atol=1e-6)


def test_ftrl_keeps_its_weights_when_the_learning_rate_changes() -> None:
    weight = keras.Variable(np.array([0.7], np.float32))
    optimizer = optimizers.build("ftrl", learning_rate=0.1)
    optimizer.apply([tf.constant([0.5])], [weight])
    before = weight.numpy()
    optimizer.learning_rate = 0.001
    optimizer.apply([tf.constant([1e-3])], [weight])
    np.testing.assert_allclose(weight.numpy(), before, atol=1e-5)


def test_ftrl_from_zero_is_the_paper_algorithm() -> None:
    alpha, beta, l1, l2 = 0.1, 1.0, 0.02, 0.3
    weight = keras.Variable(np.zeros(1, np.float32))
    optimizer = build("ftrl")
    z = n = w = 0.0
    for g in [0.5, -0.01, 0.0, 1.0, 0.2, -0.9, 0.05]:
        optimizer.apply([tf.constant([g], tf.float32)], [weight])
        sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / alpha
        z, n = z + g - sigma * w, n + g * g
        w = 0.0 if abs(z) <= l1 else -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2)
        np.testing.assert_allclose(weight.numpy()[0], w, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", RULES)
def test_a_sparse_step_makes_no_tensor_of_the_table(name: str) -> None:
    rows = 50_000
    table = keras.Variable(np.zeros((rows, 4), np.float32))
    optimizer = build(name)
    optimizer.build([table])

    @tf.function(autograph=False)
    def step(indices: tf.Tensor, values: tf.Tensor) -> None:
        optimizer.apply([tf.IndexedSlices(values, indices, tf.constant([rows, 4], tf.int64))], [table])

    graph = step.get_concrete_function(tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 4])).graph
    for operation in graph.get_operations():
        assert operation.type != "ReadVariableOp" or operation.outputs[0].shape.num_elements() == 1, operation.name
        for output in operation.outputs:
            assert output.dtype == tf.resource or not (output.shape.rank and output.shape[0] == rows), operation.name


@pytest.mark.parametrize("name", RULES)
def test_state_survives_save_and_load(name: str, tmp_path: Path) -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(build(name), loss="mse", run_eagerly=True)  # the next test has graphs
    x, y = np.random.default_rng(0).normal(size=(8, 2)), np.ones((8, 1))
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert len(loaded.optimizer.variables) == 2 + 2 * len(model.optimizer.slots)
    for kept, found in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(found.numpy(), kept.numpy(), err_msg=kept.path)
    for each in (model, loaded):
        each.fit(x, y, epochs=1, verbose=0, shuffle=False)
    for kept, found in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(found.numpy(), kept.numpy(), err_msg=kept.path)


@pytest.mark.parametrize(
    "optimizer", ["LazyAdam", "RowWiseAdagrad", optimizers.FTRL(0.1), optimizers.SGD(0.1), optimizers.Adagrad(0.1)]
)
def test_a_keras_model_is_saved_with_our_optimizer(optimizer: Any, tmp_path: Path) -> None:
    layers = [keras.Input([3], dtype="int64"), keras.layers.Embedding(10, 2), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    x, y = np.arange(12).reshape(4, 3) % 10, np.ones([4, 1])
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer) and isinstance(loaded.optimizer, optimizers.RowOptimizer)
    for each in (model, loaded):
        each.fit(x, y, verbose=0, shuffle=False)
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"no optimizer 'adamw'; .*: adagrad, adam, ftrl, rowwise_adagrad, sgd"):
        optimizers.build("adamw")
    with pytest.raises(UserError, match=r"has no option 'momentum'; it has: average, learning_rate"):
        optimizers.build("sgd", momentum=0.9)
    with pytest.raises(UserError, match=r"beta_1 must be at least 0\.0 and below 1\.0, got 1"):
        optimizers.build("adam", beta_1=1)
    with pytest.raises(UserError, match="learning_rate must not be negative"):
        optimizers.build("ftrl", learning_rate=-1)
    with pytest.raises(ValueError, match=r"weight_decay.*row L2"):
        optimizers.SGD(weight_decay=0.1)
    with pytest.raises(ValueError, match="no option 'momentun'"):
        optimizers.SGD(momentun=0.1)
    with pytest.raises(ValueError, match="a zero gradient would give 0/0"):
        optimizers.Adagrad(initial_accumulator_value=0, epsilon=0)
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        optimizers.LazyAdam(epsilon=0)
    with pytest.raises(ValueError, match=r"beta must be at least 0\.0, got -1"):
        optimizers.FTRL(beta=-1)


def test_the_edges_of_the_options_are_taken() -> None:
    assert optimizers.Adagrad(initial_accumulator_value=1, epsilon=0).get_config()["initial_accumulator_value"] == 1
    assert optimizers.LazyAdam(epsilon=1).get_config()["epsilon"] == 1
    assert optimizers.FTRL(beta=0).get_config()["beta"] == 0
    falling = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    assert optimizers.SGD(learning_rate=falling).learning_rate.numpy() == 0.5


def test_adagrads_epsilon_stands_under_the_root() -> None:
    """n = 0 + 9, ε = 7: √(9 + 7) = 4, where √9 + 7 would be 10."""
    variable = keras.Variable(np.array([1.0], np.float32))
    optimizer = optimizers.build("adagrad", learning_rate=2.0, initial_accumulator_value=0.0, epsilon=7.0)
    optimizer.build([variable])
    optimizer.apply([tf.constant([3.0])], [variable])
    assert variable.numpy().tolist() == [1.0 - 2.0 * 3.0 / 4.0]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_of_weight_zero_changes_nothing_whatever_its_gradients(name: str, graph: bool) -> None:
    """Also after real steps, when slots hold something; the next real step is as if it had not been."""

    def variables() -> list[keras.Variable]:
        return [keras.Variable(np.full((4, 2), 0.5, np.float32)), keras.Variable(np.float32(0.25))]

    taken, others = variables(), variables()
    one, other = (wrap_optimizer(build(name), SingleWorld()) for _ in range(2))
    one.build(taken)
    other.build(others)

    def step(optimizer: Any, moved: list[keras.Variable], gradient: float, weight: float) -> None:
        def apply(gradient: tf.Tensor, weight: tf.Tensor) -> None:
            rows = tf.IndexedSlices(
                tf.fill([2, 2], gradient), tf.constant([3, 1], tf.int64), tf.constant([4, 2], tf.int64)
            )
            optimizer.apply([rows, gradient], moved, weight=weight)

        run = tf.function(apply, autograph=False) if graph else apply
        run(tf.constant(gradient), tf.constant(weight))

    for gradient in (1.0, -2.0):
        step(one, taken, gradient, 4.0)
        step(other, others, gradient, 4.0)
    for gradient in (3.0, 0.0, np.nan, np.inf):
        step(one, taken, gradient, 0.0)
    assert int(one.iterations) == 2
    step(one, taken, 0.5, 2.0)
    step(other, others, 0.5, 2.0)
    for a, b in zip([*taken, *one.variables], [*others, *other.variables], strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.mark.parametrize("name", RULES)
def test_every_trace_gives_the_same_bits(name: str) -> None:
    """Each rank traces its own step: TensorFlow's rewriting must not choose an order of a sum."""

    def trained() -> bytes:
        moved = [keras.Variable(np.full((4, 2), 0.5, np.float32)), keras.Variable(np.float32(0.25))]
        optimizer = wrap_optimizer(build(name), SingleWorld())
        optimizer.build(moved)

        @tf.function(autograph=False)
        def step(gradient: tf.Tensor, weight: tf.Tensor) -> None:
            rows = tf.IndexedSlices(
                tf.fill([2, 2], gradient), tf.constant([3, 1], tf.int64), tf.constant([4, 2], tf.int64)
            )
            optimizer.apply([rows, gradient], moved, weight=weight)

        for gradient, weight in ((1.0, 4.0), (-2.0, 4.0), (0.5, 2.0)):
            step(tf.constant(gradient), tf.constant(weight))
        return b"".join(variable.numpy().tobytes() for variable in [*moved, *optimizer.variables])

    assert len({trained() for _ in range(12)}) == 1


def test_adams_decay_rates_are_those_that_it_was_given() -> None:
    """Rates below a half: 1 − β of the gradient, and not what is left of a division by β."""
    variable = keras.Variable(np.zeros(1, np.float32))
    optimizer = optimizers.build("adam", learning_rate=1.0, beta_1=0.4, beta_2=0.3, epsilon=1e-7)
    optimizer.build([variable])
    m = v = w = 0.0
    for step, gradient in enumerate([0.5, -0.25, 1.0], 1):
        optimizer.apply([tf.constant([gradient])], [variable])
        m, v = 0.4 * m + 0.6 * gradient, 0.3 * v + 0.7 * gradient**2
        w -= np.sqrt(1 - 0.3**step) / (1 - 0.4**step) * m / (np.sqrt(v) + 1e-7)
        assert variable.numpy()[0] == pytest.approx(w, rel=1e-5)
