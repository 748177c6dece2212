"""The ops of a table's step against their TensorFlow forms: merging, laying out, adding up, the optimizers' rules."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from afm_ctr import native, optimizers, sparse_gradients
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel
from afm_ctr.sparse_gradients import MergedSlices

pytestmark = pytest.mark.skipif(bool(native.load().reason), reason=f"the ops: {native.load().reason}")
SETTINGS: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 0.1},
    "adagrad": {"learning_rate": 0.1},
    "adam": {"learning_rate": 0.1, "epsilon": 1e-5},
    "ftrl": {"learning_rate": 0.1, "l1": 0.02, "l2": 0.3},
    "rowwise_adagrad": {"learning_rate": 0.1},
}


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("AFM_CTR_TABLE", raising=False)
    yield


@given(
    st.lists(st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)), max_size=60),
    st.integers(1, 3000),
)
def test_ids_are_merged_in_the_order_of_their_first_appearance(ids: list[int], times: int) -> None:
    """Thousands of distinct ids among them, so that the hash table grows more than once."""
    many = np.concatenate(
        [np.array(ids, np.int64), 7 * np.arange(times, dtype=np.int64) << 20, np.array(ids, np.int64)]
    )
    for found, expected in zip(native.merge_ids(many), tf.unique(many, out_idx=tf.int64), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_batch_does_not_see_the_ones_before_it() -> None:
    """The op keeps how large its hash table was, which grows and shrinks; and threads may call it at once."""
    rng = np.random.default_rng(0)
    batches = [tf.constant(rng.integers(0, 10 * size, size)) for size in (9, 70_000, 3, 200, 5, 5, 5, 5, 5, 9_000, 1)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(native.merge_ids, batches * 2))
    for ids, answer in zip(batches * 2, answers, strict=True):
        for found, expected in zip(answer, tf.unique(ids, out_idx=tf.int64), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["native", "tensorflow"])
@pytest.mark.parametrize("ids", [[[7, 3], [0, 7]], [[5, 5], [2, 2]], np.zeros([0, 2], np.int64)])
def test_zero_may_come_first(form: str, ids: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFM_CTR_TABLE", form)
    unique, inverse = sparse_gradients.merge_ids(tf.constant(ids, tf.int64), zero_first=True)
    seen = [0, *(i for i in dict.fromkeys(np.ravel(ids).tolist()) if i)]
    assert unique.numpy().tolist() == seen
    np.testing.assert_array_equal(np.array(seen)[inverse.numpy()], ids)


def test_no_ids_merge_to_none() -> None:
    unique, inverse = native.merge_ids(tf.zeros([0], tf.int64))
    assert unique.shape == inverse.shape == (0,)


@pytest.mark.parametrize(
    "rows, width, distinct", [(0, 3, 2), (1, 1, 1), (700, 1, 300), (700, 16, 300), (5000, 33, 7)]
)
def test_rows_are_laid_out_and_added_up_as_by_tensorflow(
    rows: int, width: int, distinct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(rows)
    table = tf.constant(rng.normal(size=[distinct, width]), tf.float32)
    position = tf.constant(rng.integers(0, distinct, rows), tf.int64)
    scale = tf.constant(rng.normal(size=rows), tf.float32)
    upstream = tf.constant(rng.normal(size=[rows, width]), tf.float32)

    def run() -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            tape.watch([table, scale])
            out = sparse_gradients.expand_rows(table, position, scale)
            total = tf.reduce_sum(out * upstream)
        return [value.numpy() for value in (out, *tape.gradient(total, [table, scale]))]

    ours = run()
    monkeypatch.setenv("AFM_CTR_TABLE", "tensorflow")
    theirs = run()
    np.testing.assert_array_equal(ours[0], theirs[0])
    plain = np.zeros([distinct, width], np.float32)
    for place, one in zip(position.numpy(), upstream.numpy() * scale.numpy()[:, np.newaxis], strict=True):
        plain[place] += one
    np.testing.assert_array_equal(ours[1], plain)
    np.testing.assert_allclose(theirs[1], plain, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_outside_is_refused(position: int) -> None:
    places = tf.constant([0, position], tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a position is outside \[0, 3\)"):
        native.expand_rows(tf.ones([3, 2]), places, tf.ones([2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a position is outside \[0, 3\)"):
        native.add_rows(tf.ones([2, 2]), places, tf.constant(3, tf.int64))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a row is outside \[0, 3\)"):
        native.step_rows("sgd", [tf.Variable(tf.ones([3, 2]))], places, tf.ones([2, 2]), [0.1])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a row is outside \[0, 3\)"):
        native.read_rows(tf.Variable(tf.ones([3, 2])), places)


@pytest.mark.parametrize("width", [1, 16, 33])
@pytest.mark.parametrize("form", ["native", "tensorflow"])
def test_rows_are_read_as_by_gather(form: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradient of a variable that the tape was not shown, before and after a step of the same graph."""
    monkeypatch.setenv("AFM_CTR_TABLE", form)
    start = np.random.default_rng(width).normal(size=[90, width]).astype(np.float32)
    variable = tf.Variable(start)
    rows = tf.constant([7, 3, 89, 7, 0], tf.int64)

    @tf.function
    def run() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            before = sparse_gradients.read_rows(variable, rows)
            total = tf.reduce_sum(before**2)
        slices = tape.gradient(total, variable)
        assert isinstance(slices, tf.IndexedSlices)
        variable.scatter_update(tf.IndexedSlices(tf.zeros([1, width]), tf.constant([3])))
        return before, tf.convert_to_tensor(slices), sparse_gradients.read_rows(variable, rows)

    kinds = {operation.type for operation in run.get_concrete_function().graph.get_operations()}
    assert ("AfmCtrReadRows" in kinds) == (form == "native")
    before, by_variable, after = (tensor.numpy() for tensor in run())
    np.testing.assert_array_equal(before, start[rows])
    np.testing.assert_array_equal(after, np.where(rows.numpy()[:, np.newaxis] == 3, 0, start[rows]))
    expected = np.zeros_like(start)
    np.add.at(expected, rows.numpy(), 2 * start[rows])
    np.testing.assert_allclose(by_variable, expected, rtol=1e-6)
    assert sparse_gradients.read_rows(variable, rows[:0]).shape == (0, width)


def steps(name: str, slices: list[MergedSlices], form: str, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The weights and slots after a sparse step for each of the slices, in a graph."""
    monkeypatch.setenv("AFM_CTR_TABLE", form)
    optimizer = optimizers.build(name, **SETTINGS[name])
    weights = tf.Variable(np.random.default_rng(3).normal(size=[50, 5]).astype(np.float32))
    weights.placement = "replicated"  # a table
    optimizer.build([weights])

    @tf.function(reduce_retracing=True, autograph=False)
    def step(values: tf.Tensor, rows: tf.Tensor) -> None:
        optimizer.apply([MergedSlices(values, rows, tf.constant([50, 5], tf.int64))], [weights])

    for one in slices:
        step(one.values, one.indices)
    return [weights.numpy(), *(slot.numpy() for slot in optimizer.slots_of(weights).values())]


@pytest.mark.parametrize("name", optimizers.names())
def test_a_step_is_that_of_the_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gradients of all sizes, zero and minus zero among them, whose squares overflow or underflow or do not."""
    rng = np.random.default_rng(4)
    given = []
    for _ in range(6):
        rows = rng.choice(50, size=20, replace=False).astype(np.int64)
        values = rng.normal(size=[20, 5]) * 10.0 ** rng.integers(-25, 18, [20, 5])
        values[rng.random([20, 5]) < 0.2] = 0.0
        given.append(MergedSlices(tf.constant(values, tf.float32), tf.constant(rows)))
    given.append(MergedSlices(tf.zeros([0, 5]), tf.zeros([0], tf.int64)))
    ours, theirs = (steps(name, given, form, monkeypatch) for form in ("native", "tensorflow"))
    for have, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-30)
    assert len(ours) == 1 + len(optimizers.build(name).slots)


@pytest.mark.parametrize("name", optimizers.names())
def test_a_step_that_does_not_count_changes_nothing(name: str) -> None:
    optimizer = optimizers.build(name, **SETTINGS[name])
    weights = tf.Variable(tf.ones([4, 2]))
    optimizer.build([weights])
    slices = MergedSlices(tf.fill([1, 2], float("nan")), tf.constant([2], tf.int64), tf.constant([4, 2], tf.int64))
    before = [weights.numpy(), *(slot.numpy() for slot in optimizer.slots_of(weights).values())]
    with optimizer.only_if(tf.constant(False)):
        optimizer.apply([slices], [weights])
    after = [weights.numpy(), *(slot.numpy() for slot in optimizer.slots_of(weights).values())]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert int(optimizer.iterations) == 0


def test_what_was_read_of_a_variable_before_a_step_stays() -> None:
    weights = tf.Variable(tf.ones([4, 2]))
    before = weights.read_value()
    rows, gradient = tf.constant([1], tf.int64), tf.ones([1, 2])
    native.step_rows("sgd", [weights], rows, gradient, [0.5])
    between = weights.read_value()
    native.step_rows("sgd", [weights], rows, gradient, [0.5])
    assert before.numpy().tolist() == [[1.0, 1.0]] * 4
    assert between.numpy()[1].tolist() == [0.5, 0.5] and weights.numpy()[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "variables, gradient, options",
    [
        ([tf.Variable(tf.ones([4, 3]))], tf.ones([1, 2]), [0.1]),
        ([tf.Variable(tf.ones([4, 2]))], tf.ones([2, 2]), [0.1]),
        ([tf.Variable(tf.ones([4, 2]))], tf.ones([1, 2]), [0.1, 0.2]),
        ([tf.Variable(tf.ones([4, 2], tf.float64))], tf.ones([1, 2]), [0.1]),
    ],
)
def test_what_does_not_fit_is_refused(variables: list[Any], gradient: tf.Tensor, options: list[float]) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="table: "):
        native.step_rows("sgd", variables, tf.constant([1], tf.int64), gradient, options)
    assert (variables[0].numpy() == 1).all()


@pytest.mark.parametrize("rule, shapes", [("adam", [(4, 1)] * 2), ("adagrad", [(3, 1)]), ("adagrad", [(4, 3)])])
def test_a_slot_of_another_shape_is_refused(rule: str, shapes: list[tuple[int, int]]) -> None:
    """One number a row is a slot of Adagrad's only."""
    variables = [tf.Variable(tf.ones(shape)) for shape in [(4, 2), *shapes]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="weights and slots must be float"):
        native.step_rows(
            rule, variables, tf.constant([1], tf.int64), tf.ones([1, 2]), [0.1] * (2 * len(variables) - 2)
        )
    assert all((variable.numpy() == 1).all() for variable in variables)


def test_the_form_is_that_of_the_type_the_device_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.steps_tables(tf.float32) and not native.steps_tables(tf.float64)
    monkeypatch.setenv("AFM_CTR_TABLE", "tensorflow")
    assert not native.steps_tables(tf.float32)
    monkeypatch.setenv("AFM_CTR_TABLE", "quick")
    with pytest.raises(UserError, match="AFM_CTR_TABLE=quick: choose native or tensorflow"):
        native.steps_tables(tf.float32)
    monkeypatch.delenv("AFM_CTR_TABLE")
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["a GPU"])
    assert not native.steps_tables(tf.float32)


@pytest.mark.parametrize(
    "batch, slots, width, distinct", [(1, 1, 1, 1), (3, 2, 16, 4), (64, 39, 16, 200), (700, 7, 33, 5), (0, 3, 4, 2)]
)
def test_a_factorization_machine_of_rows_is_lemma_3_1(batch: int, slots: int, width: int, distinct: int) -> None:
    """Pair by pair in float64, with repeated rows in an example; the gradient in the order of the batch."""
    rng = np.random.default_rng(slots)
    w, v = rng.normal(size=[distinct, 1]), rng.normal(size=[distinct, width])
    position = rng.integers(0, distinct, [batch, slots])
    x = rng.normal(size=[batch, slots]) * (rng.random([batch, slots]) < 0.8)
    upstream = rng.normal(size=batch)
    weights, vectors, scale = (tf.constant(numbers, tf.float32) for numbers in (w, v, x))

    @tf.function(autograph=False)
    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([weights, vectors, scale])
            logits = sparse_gradients.fm_logits(weights, vectors, tf.constant(position), scale)
            total = tf.reduce_sum(logits * tf.constant(upstream, tf.float32))
        return [logits, *tape.gradient(total, [weights, vectors, scale])]

    logits, by_w, by_v, by_x = (tensor.numpy() for tensor in run())
    wanted, wanted_w, wanted_v = np.zeros(batch), np.zeros_like(w), np.zeros_like(v)
    wanted_x = np.zeros_like(x)
    for b in range(batch):
        u = v[position[b]] * x[b, :, np.newaxis]
        wanted[b] = w[position[b], 0] @ x[b] + sum(u[i] @ u[j] for i in range(slots) for j in range(i))
        for f, row in enumerate(position[b]):
            others = u.sum(axis=0) - u[f]
            wanted_w[row] += upstream[b] * x[b, f]
            wanted_v[row] += upstream[b] * x[b, f] * others
            wanted_x[b, f] = upstream[b] * (w[row, 0] + v[row] @ others)
    for found, expected in ((logits, wanted), (by_w, wanted_w), (by_v, wanted_v), (by_x, wanted_x)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(expected).max(initial=0)))
    np.testing.assert_array_equal(run()[2], by_v)


@pytest.mark.parametrize("position", [-1, 3])
def test_a_factorization_machine_refuses_a_position_outside(position: int) -> None:
    given = (tf.ones([3, 1]), tf.ones([3, 2]), tf.constant([[0, position]], tf.int64), tf.ones([1, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a position is outside \[0, 3\)"):
        native.fm(*given)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a position is outside \[0, 3\)"):
        native.fm_gradient(tf.ones([1]), tf.ones([1, 2]), *given[1:])


@pytest.mark.parametrize("pairs", ["all", "some"])
def test_fm_trains_alike_in_both_forms(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after five steps; the fused form is taken for all pairs only."""
    listed = [(0, 1), (0, 2), (1, 2)][: 3 if pairs == "all" else 2]
    rng = np.random.default_rng(1)
    batches = [
        {
            "feature_ids": tf.constant(rng.integers(0, 20, [16, 3])),
            "feature_vals": tf.constant(rng.normal(size=[16, 3]), tf.float32),
            "label": tf.constant(rng.integers(0, 2, 16), tf.float32),
        }
        for _ in range(5)
    ]

    def train(form: str) -> tuple[list[np.ndarray], set[str]]:
        monkeypatch.setenv("AFM_CTR_TABLE", form)
        model = CTRModel("fm", {"factors": 4, "init_stddev": 0.3}, 20, 3, listed)
        model.compile(optimizers.build("adam", learning_rate=0.1))
        step = tf.function(model.train_step, autograph=False)
        for batch in batches:
            step(batch)
        used = {op.type for op in step.get_concrete_function(batches[0]).graph.get_operations()}
        return [weight.numpy() for weight in model.trainable_variables], used

    (ours, used), (theirs, _) = train("native"), train("tensorflow")
    assert ("AfmCtrFm" in used) == (pairs == "all")
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
