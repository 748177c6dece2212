"""The table of ids: where its rows start, what a batch reads, what its gradient looks like."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.embedding import EmbeddingTable, assign_rows
from afm_ctr.errors import find_user_error
from afm_ctr.huge_pages import on_large_pages
from afm_ctr.sparse_gradients import MergedSlices, merge_slices


def table(rows: int = 50, **options: object) -> EmbeddingTable:
    arguments = {"columns": {"linear": 1, "vectors": 4}, "seed": 3, "stddev": {"vectors": 0.5}, **options}
    return EmbeddingTable(rows, **arguments)


def test_a_row_starts_the_same_whatever_the_size_of_the_table() -> None:
    small, large = table(50), table(20_000)
    values = large.columns["vectors"].numpy()
    np.testing.assert_array_equal(small.columns["vectors"].numpy(), values[:50])
    # In one go, in parts, across the blocks that are hashed at a time.
    np.testing.assert_array_equal(large.initial_rows("vectors", 8000, 8400), values[8000:8400])
    np.testing.assert_array_equal(large.initial_rows("vectors", 19_999, 20_000), values[19_999:])
    assert large.initial_rows("vectors", 7, 7).shape == (0, 4)


def test_a_row_starts_by_seed_name_and_column() -> None:
    one = table(columns={"a": 4, "b": 4}, stddev={"a": 0.5, "b": 0.5})
    first = one.initial_rows("a", 1, 50)
    assert np.all(first != one.initial_rows("b", 1, 50))
    options = {"columns": {"a": 4}, "stddev": {"a": 0.5}}
    assert np.all(first != table(seed=4, **options).initial_rows("a", 1, 50))
    assert np.all(first != table(name="other", **options).initial_rows("a", 1, 50))
    np.testing.assert_array_equal(first, table(**options).initial_rows("a", 1, 50))


def test_the_stream_by_hand() -> None:
    import hashlib

    base = int.from_bytes(hashlib.sha256(b"3\0ids\0vectors").digest()[:8], "little")
    found = table().initial_rows("vectors", 2, 12).ravel()
    for place, value in enumerate(found.tolist(), 2 * 4 + 1):  # rows of four numbers, counted from 1
        x = (base + place * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
        total = sum((x >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
        assert value == pytest.approx((total - 131070) * 0.5 / np.sqrt((2**32 - 1) / 3), rel=1e-6)


def test_initial_values_look_normal() -> None:
    values = table(50_000).columns["vectors"].numpy()[1:] / 0.5
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(1.0, abs=0.01)
    assert np.mean(np.abs(values) < 1) == pytest.approx(0.6827, abs=0.02)
    assert np.abs(values).max() < 3.47
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.02


def test_row_zero_and_columns_without_a_deviation_are_zero() -> None:
    columns = table().columns
    assert np.all(columns["vectors"].numpy()[0] == 0)
    assert np.all(columns["linear"].numpy() == 0)


def test_lookup_reads_each_row_once_and_lays_them_out() -> None:
    ids = tf.constant([[3, 7, 3], [0, 7, 49]], tf.int64)
    kept = table()
    lookup = kept.lookup(ids)
    assert sorted(lookup.unique_ids.numpy()) == [0, 3, 7, 49]
    assert lookup.rows["vectors"].shape == (4, 4)
    np.testing.assert_array_equal(lookup.expand("vectors"), kept.columns["vectors"].numpy()[ids.numpy()])
    np.testing.assert_array_equal(kept.read(ids)["vectors"], lookup.expand("vectors"))


def test_the_gradient_has_each_row_once() -> None:
    kept = table()
    ids = tf.constant([[3, 7, 3], [0, 7, 3]], tf.int64)
    factor = tf.constant([[1.0, 2.0, 4.0], [0.0, 16.0, 32.0]])[..., tf.newaxis]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(kept.lookup(ids).expand("vectors") * factor)
    gradient = tape.gradient(total, kept.columns["vectors"].value)
    assert isinstance(gradient, tf.IndexedSlices)
    found = dict(zip(gradient.indices.numpy().tolist(), gradient.values.numpy()[:, 0].tolist(), strict=True))
    assert found == {3: 37.0, 7: 18.0, 0: 0.0}


def test_the_rows_that_a_batch_touches_are_known_to_be_merged_and_row_zero_is_none_of_them() -> None:
    kept = table()
    other = tf.Variable([1.0])
    for ids in ([[3, 7, 3]], [[0, 3, 7]]):
        with tf.GradientTape() as tape:
            lookup = kept.lookup(tf.constant(ids, tf.int64))
            assert int(lookup.unique_ids[0]) == 0
            total = tf.reduce_sum(lookup.expand("vectors")) + tf.reduce_sum(lookup.expand("linear")) + other[0]
        variables = [kept.columns["vectors"], other, kept.columns["linear"]]
        plain = tape.gradient(total, [kept.columns["vectors"].value, other, kept.columns["linear"].value])
        vectors, scalar, linear = kept.touched(plain, variables)
        assert isinstance(vectors, MergedSlices) and vectors.indices is linear.indices
        assert merge_slices(vectors) is vectors and scalar is plain[1]
        assert vectors.indices.numpy().tolist() == [3, 7] and vectors.dense_shape.numpy().tolist() == [50, 4]
        np.testing.assert_array_equal(vectors.values[:, 0], linear.values[:, 0])
        foreign = tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), tf.constant([1]))
        assert kept.touched([foreign, plain[1]], [other, kept.columns["linear"]]) == [foreign, plain[1]]


def test_apply_moves_the_rows_it_is_given() -> None:
    kept = table()
    before = kept.columns["vectors"].numpy()
    lookup = kept.lookup(tf.constant([3, 7, 3], tf.int64))
    optimizer = optimizers.build("sgd", learning_rate=0.5)
    gradient = tf.ones((3, 4)) * [[0.0], [1.0], [2.0]]  # of rows 0, 3 and 7
    kept.apply(lookup.unique_ids, {"vectors": gradient}, optimizer)
    after = kept.columns["vectors"].numpy()
    np.testing.assert_allclose(after[[3, 7]], before[[3, 7]] - [[0.5], [1.0]], rtol=1e-6)
    np.testing.assert_array_equal(np.delete(after, [3, 7], 0), np.delete(before, [3, 7], 0))


def test_a_lookup_reads_no_whole_table() -> None:
    kept = table(1000)
    graph = (
        tf.function(lambda ids: kept.lookup(ids).rows).get_concrete_function(tf.TensorSpec([None, 3], tf.int64)).graph
    )
    kinds = {operation.type for operation in graph.get_operations()}
    assert "ResourceGather" in kinds
    assert "ReadVariableOp" not in kinds


@pytest.mark.parametrize("bad", [-1, 50])
@pytest.mark.parametrize("method", ["lookup", "read"])
@pytest.mark.parametrize("in_graph", [True, False])
def test_an_id_outside_is_the_users_mistake(bad: int, method: str, in_graph: bool) -> None:
    call = getattr(table(), method)
    call = tf.function(call) if in_graph else call
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        call(tf.constant([[1, bad]], tf.int64))
    found = find_user_error(caught.value)
    assert found is not None and "outside [0, 50)" in str(found)


def test_config_round_trip() -> None:
    kept = table()
    again = EmbeddingTable.from_config(kept.get_config())
    assert again.get_config() == kept.get_config()
    np.testing.assert_array_equal(again.columns["vectors"].numpy(), kept.columns["vectors"].numpy())
    assert [variable.path for variable in kept.variables] == ["ids/linear", "ids/vectors"]
    assert all(variable.placement == "replicated" for variable in kept.variables)


def test_impossible_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="feature_size"):
        table(0)
    with pytest.raises(ValueError, match="placement"):
        table(placement="sharded")


def test_large_pages_change_no_value() -> None:
    start = np.arange(5_000_000, dtype=np.float32).reshape(-1, 4)  # 20 MB
    variable = tf.Variable(start)
    on_large_pages(variable)
    np.testing.assert_array_equal(variable.numpy(), start)
    variable.scatter_update(tf.IndexedSlices(tf.zeros([1, 4]), tf.constant([1_249_999])))
    assert float(variable[-1, 0]) == 0 and float(variable[-2, 0]) == start[-2, 0]


def test_a_step_marks_the_rows_that_it_touches_and_no_other() -> None:
    """Sparse and dense gradients; a gradient of any size counts, row 0 has nothing to forget."""
    table = EmbeddingTable(6, {"linear": 1}, seed=0, mark_rows=True)
    shape = tf.constant([6, 1], tf.int64)

    def sparse(rows: list[int]) -> tf.IndexedSlices:
        return tf.IndexedSlices(tf.ones([len(rows), 1]), tf.constant(rows, tf.int64), shape)

    def marks() -> list[int]:
        assert table.last_seen is not None
        return table.last_seen.value.numpy().tolist()

    table.mark(sparse([0, 2, 5]), tf.constant(3))
    assert marks() == [0, 0, 3, 0, 0, 3]
    table.mark(tf.constant([[0.0], [1e-30], [0.0], [-2.0], [1.0], [0.0]]), tf.constant(4))
    assert marks() == [0, 4, 3, 4, 4, 3]
    for gradient in (sparse([1, 2]), tf.ones([6, 1])):  # a step that does not count
        table.mark(gradient, tf.constant(9), counts=tf.constant(False))
    assert marks() == [0, 4, 3, 4, 4, 3]


def test_rows_are_assigned_where_the_variable_lies() -> None:
    """A slice of the variable would be read first, and the whole of it copied: once a block, and held twice."""
    variable = tf.Variable(tf.zeros([1000, 16]))
    assign_rows(variable, 10, np.ones([20, 16]))
    assign_rows(variable, 500, tf.ones([500, 16]))
    graph = tf.function(lambda: assign_rows(variable, 0, tf.zeros([10, 16]))).get_concrete_function().graph
    operations = {operation.type for operation in graph.get_operations()}
    assert "ResourceStridedSliceAssign" in operations and "ReadVariableOp" not in operations
    np.testing.assert_array_equal(np.flatnonzero(variable.numpy()[:, 3]), [*range(10, 30), *range(500, 1000)])
