"""The average of weights that an optimizer keeps, against a loop in float64 over all rows in every step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.optimizers import averaged_weights
from afm_ctr.optimizers.average import AVERAGE, Average

ROWS = 6


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_ctr.optimizers.average._BLOCK_NUMBERS", 8)


def loop(trail: list[np.ndarray], decay: float) -> np.ndarray:
    """The average of a variable that was in turn what the list says, initial value first."""
    average = trail[0]
    for step, weights in enumerate(trail[1:], 1):
        share = min(step / (step + 1), decay)
        average = share * average + (1 - share) * weights
    return average


def found(optimizer: optimizers.RowOptimizer, variable: keras.Variable) -> np.ndarray:
    scale = Average(optimizer.averaging.decay).scale(int(optimizer.iterations))
    return variable.numpy() + scale * optimizer.slots_of(variable)[AVERAGE].numpy()


@pytest.mark.parametrize("name", optimizers.names())
@pytest.mark.parametrize("decay", [0.5, 0.9])  # multiplied by the scale every 23 and 151 steps; 0.5 from step 2 on
@pytest.mark.parametrize("graph", [False, True])
def test_the_average_is_that_of_all_steps_also_of_rows_that_are_seldom_touched(
    name: str, decay: float, graph: bool
) -> None:
    rng = np.random.default_rng(0)
    table = keras.Variable(rng.normal(size=(ROWS, 2)).astype(np.float32), name="table")
    dense = keras.Variable(rng.normal(size=3).astype(np.float32), name="dense")
    optimizer = wrap_optimizer(optimizers.build(name, learning_rate=0.1, average=decay), SingleWorld())
    optimizer.build([table, dense])

    def step(rows: tf.Tensor, values: tf.Tensor, gradient: tf.Tensor) -> None:
        optimizer.apply([tf.IndexedSlices(values, rows, tf.constant([ROWS, 2], tf.int64)), gradient], [table, dense])

    apply = tf.function(step, autograph=False) if graph else step
    trails = {variable.name: [variable.numpy().astype(float)] for variable in (table, dense)}
    steps = {0.5: 60, 0.9: 170}[decay] if graph else 30
    for number in range(1, steps + 1):
        rows = rng.integers(1, 4, 3) if number % 29 else np.array([4, 4, 1])  # 0 and 5 are never touched
        apply(
            tf.constant(rows),
            tf.constant(rng.normal(size=(3, 2)), tf.float32),
            tf.constant(rng.normal(size=3), tf.float32),
        )
        for variable in (table, dense):
            trails[variable.name].append(variable.numpy().astype(float))
        if number in (1, 2, 3, 9, 10, 11, 24, 25, 26, 29, 30, steps):
            for variable in (table, dense):
                expected = loop(trails[variable.name], decay)
                np.testing.assert_allclose(found(optimizer, variable), expected, rtol=1e-4, atol=1e-5)
                assert np.abs(expected - variable.numpy()).max() > 1e-3
    np.testing.assert_array_equal(optimizer.slots_of(table)[AVERAGE].numpy()[[0, 5]], 0)


def test_the_step_itself_does_not_read_the_average() -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(size=(ROWS, 2)).astype(np.float32)
    with_it, without = keras.Variable(start), keras.Variable(start)
    one, other = optimizers.build("adam", average=0.9), optimizers.build("adam")
    for _ in range(5):
        gradient = tf.constant(rng.normal(size=(ROWS, 2)), tf.float32)
        one.apply([gradient], [with_it])
        other.apply([gradient], [without])
    np.testing.assert_array_equal(with_it.numpy(), without.numpy())


def test_a_step_of_weight_zero_neither_moves_nor_shrinks_what_is_kept() -> None:
    """Taken where the slot is due to be multiplied: once, by the step that counts."""
    variables = [keras.Variable(np.full((4, 2), 0.5, np.float32)) for _ in range(2)]
    pair = [wrap_optimizer(optimizers.build("sgd", average=0.5), SingleWorld()) for _ in range(2)]
    for number in range(30):
        for optimizer, variable in zip(pair, variables, strict=True):
            gradient = tf.IndexedSlices(
                tf.fill([1, 2], float(number)), tf.constant([1], tf.int64), tf.constant([4, 2])
            )
            if optimizer is pair[1]:
                nothing = tf.IndexedSlices(tf.fill([1, 2], np.nan), tf.constant([1], tf.int64), tf.constant([4, 2]))
                optimizer.apply([nothing], [variable], weight=tf.constant(0.0))
            optimizer.apply([gradient], [variable], weight=tf.constant(1.0))
    for one, other in zip(pair[0].variables, pair[1].variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    assert np.abs(pair[0].slots_of(variables[0])[AVERAGE].numpy()).max() > 0


def test_a_model_holds_its_averages_within_the_context_alone() -> None:
    model = CTRModel("fm", {"factors": 2}, feature_size=5, num_slots=2, pairs=[(0, 1)])
    model.compile(optimizers.build("adam", learning_rate=0.1, average=0.9))
    model.optimizer.build(model.trainable_variables)
    rows = {"feature_ids": np.array([[1, 2], [3, 4]]), "feature_vals": np.ones((2, 2), np.float32)}
    trails = {variable.path: [variable.numpy()] for variable in model.trainable_variables}
    for _ in range(4):
        model.train_on_batch({**rows, "label": np.array([1.0, 0.0], np.float32)})
        for variable in model.trainable_variables:
            trails[variable.path].append(variable.numpy())
    outside = model(rows).numpy()
    with averaged_weights(model):
        for variable in model.trainable_variables:
            np.testing.assert_allclose(variable.numpy(), loop(trails[variable.path], 0.9), rtol=1e-5, atol=1e-6)
        assert np.abs(model(rows).numpy() - outside).min() > 1e-3
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(variable.numpy(), trails[variable.path][-1])
    model.compile("adam")
    with averaged_weights(model):  # an optimizer without
        np.testing.assert_array_equal(model(rows), outside)


def test_options() -> None:
    optimizer = optimizers.build("ftrl", average=0.99)
    assert optimizers.FTRL(**optimizer.get_config()).averaging == Average(0.99)
    assert "average" not in optimizers.build("ftrl").get_config()
    for wrong in (0.0, 1.0, -1):
        with pytest.raises(UserError, match="average must be above 0 and below 1"):
            optimizers.build("adam", average=wrong)
