"""The single-process twin, and all that needs no second rank."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_world import FakeWorld

from afm_ctr import distributed
from afm_ctr.distributed import (
    DistributedError,
    Form,
    GradientExchange,
    SingleWorld,
    check_steps,
    end_epoch,
    exchanged_bytes,
    horovod,
    wrap_optimizer,
)
from afm_ctr.distributed.steps import end_training
from afm_ctr.errors import UserError
from afm_ctr.sparse_gradients import MergedSlices, merge_slices


def test_merge_slices_adds_rows_of_like_index() -> None:
    merged = merge_slices(
        tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([5, 2, 5], tf.int32), tf.constant([9, 1]))
    )
    assert merged.indices.numpy().tolist() == [5, 2] and merged.indices.dtype == tf.int64
    assert merged.values.numpy().tolist() == [[5.0], [2.0]] and merged.dense_shape.numpy().tolist() == [9, 1]
    empty = merge_slices(tf.IndexedSlices(tf.zeros([0, 3], tf.float64), tf.zeros([0], tf.int64)))
    assert empty.values.shape == (0, 3) and empty.values.dtype == tf.float64


def test_single_world_is_the_identity() -> None:
    world = SingleWorld()
    assert (world.rank, world.size, world.is_chief) == (0, 1, True)
    assert world.agree(7) == 7 and world.broadcast_object({"a": 1}) == {"a": 1}
    assert [a.tolist() for a in world.allgather_numpy(["x", "yz"])] == [["x", "yz"]]
    assert world.allreduce([1, 2], "mean").numpy().tolist() == [1, 2]
    world.barrier()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="connections are found in /proc: Linux only")
def test_a_rank_hangs_up_on_the_connections_that_horovod_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """On those alone, and no file stays open."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.create_connection(listener.getsockname()), listener.accept()[0]

    def init() -> None:
        pairs.append(pair())

    pairs = [pair()]
    reductions = {"Sum": 0, "Min": 0, "Max": 0, "Average": 0}
    fake = SimpleNamespace(init=init, rank=int, size=int, local_rank=int, local_size=int, **reductions)
    monkeypatch.setattr(horovod, "load", lambda: fake)
    world = horovod.HorovodWorld()
    pairs.append(pair())
    open_files = len(os.listdir("/proc/self/fd"))
    world.hang_up()
    assert len(os.listdir("/proc/self/fd")) == open_files
    before, horovods, after = pairs
    assert horovods[1].recv(1) == b""
    for one, other in (before, after, pair()):
        one.sendall(b"x")
        assert other.recv(1) == b"x"


def test_init_without_a_launcher_needs_no_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.delitem(sys.modules, "afm_ctr.distributed.horovod", raising=False)
    monkeypatch.setattr(distributed, "pin_gpu", lambda *place: None)  # TensorFlow is at work already
    monkeypatch.setattr(distributed, "_world", None)
    monkeypatch.delenv("HOROVOD_RANK", raising=False)
    world = distributed.init()
    assert world.size == 1 and distributed.init() is world
    monkeypatch.setattr(distributed, "_world", None)
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(UserError, match=r"scripts/build_horovod\.py") as caught:
        distributed.init()
    assert len(str(caught.value).splitlines()) == 1


OPTIMIZERS: list[keras.optimizers.Optimizer] = [
    keras.optimizers.SGD(0.1, momentum=0.9),
    keras.optimizers.Adagrad(0.1),
    keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)),
    keras.optimizers.Ftrl(0.1),
]


@pytest.mark.parametrize("plain", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_a_wrapped_optimizer_keeps_name_config_and_variables(plain: keras.optimizers.Optimizer) -> None:
    variable = keras.Variable(np.ones((3, 2), np.float32))
    plain = type(plain).from_config(plain.get_config())
    plain.apply([tf.ones([3, 2])], [variable])
    wrapped = wrap_optimizer(plain, SingleWorld())
    assert type(wrapped).__name__ == type(plain).__name__ and wrapped.get_config() == plain.get_config()
    for one, other in zip(wrapped.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    back = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(wrapped))
    assert type(back) is type(plain)
    with pytest.raises(ValueError, match="already"):
        wrap_optimizer(wrapped, SingleWorld())


@keras.saving.register_keras_serializable(package="test_distributed")
class OwnOptimizer(keras.optimizers.SGD):
    pass


def test_registered_optimizers_of_others_load_as_themselves() -> None:
    wrapped = wrap_optimizer(OwnOptimizer(0.5), SingleWorld())
    config = keras.saving.serialize_keras_object(wrapped)
    assert config["registered_name"] == "test_distributed>OwnOptimizer"
    assert type(keras.saving.deserialize_keras_object(config)) is OwnOptimizer


def test_a_keras_file_written_with_a_wrapped_optimizer_loads_with_the_plain_one(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Input([2]), keras.layers.Dense(1)])
    model.compile(wrap_optimizer(keras.optimizers.Adam(0.1), SingleWorld()), loss="mse", jit_compile=False)
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    model.fit(x, x[:, :1], verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is keras.optimizers.Adam and int(loaded.optimizer.iterations) == 1
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def one_step(rows: list[int], **how: Any) -> np.ndarray:
    """A table of ones after one Adagrad step (lr 0.1) on a gradient of ones at ``rows``."""
    table = keras.Variable(np.ones((4, 1), np.float32))
    optimizer = wrap_optimizer(keras.optimizers.Adagrad(0.1), how.pop("world", SingleWorld()))
    gradient = tf.IndexedSlices(tf.ones([len(rows), 1]), tf.constant(rows, tf.int64), tf.constant([4, 1], tf.int64))
    optimizer.apply([gradient], [table], **how)
    return table.numpy()[:, 0]


def adagrad(gradient: float) -> float:
    return 1 - 0.1 * gradient / np.sqrt(0.1 + gradient**2 + 1e-7)


def test_repeated_rows_are_merged_in_the_single_process_too() -> None:
    np.testing.assert_allclose(one_step([1, 1, 2]), [1, adagrad(2), adagrad(1), 1], rtol=1e-6)


def test_the_weight_divides_and_the_penalty_comes_after() -> None:
    seen = []

    def penalty(grads: list[Any], variables: list[Any]) -> list[Any]:
        seen.append([grads[0].indices.numpy().tolist(), grads[0].values.numpy().ravel().tolist()])
        return [tf.IndexedSlices(grads[0].values + 1.0, grads[0].indices, grads[0].dense_shape)]

    got = one_step([1, 1, 2], weight=4, penalty=penalty)
    assert seen == [[[1, 2], [0.5, 0.25]]]
    np.testing.assert_allclose(got, [1, adagrad(1.5), adagrad(1.25), 1], rtol=1e-6)


def test_two_equal_ranks_step_like_one() -> None:
    np.testing.assert_allclose(one_step([1, 2], world=FakeWorld()), one_step([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(
        one_step([1, 2], world=FakeWorld(), weight=2.0), one_step([1, 2], weight=2.0), rtol=1e-6
    )


class Counting(FakeWorld):
    """Counts what is exchanged; a sum over all ranks is that of equal ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        self.sent.append(len(tensor.numpy().tobytes()))
        return super().allgather(tensor, name)

    def allreduce(self, tensor: Any, op: Any = "sum", name: str | None = None) -> tf.Tensor:
        self.sent.append(len(tensor.numpy().tobytes()))
        return tensor * self.size


@pytest.mark.parametrize("form", get_args(Form))
def test_columns_that_share_their_rows_are_exchanged_together(form: Form) -> None:
    rows = tf.constant([7, 2, 4], tf.int64)
    values = {2: np.arange(6.0).reshape(3, 2), 1: np.zeros((3, 1))}
    gradients = [
        MergedSlices(tf.constant(v, tf.float32), rows, tf.constant([9, width], tf.int64))
        for width, v in values.items()
    ]
    variables = [keras.Variable(np.zeros((9, width), np.float32)) for width in values]
    world = Counting()
    sums, weight = GradientExchange(world, form)(gradients, variables, tf.constant(3.0))
    assert float(weight) == 6
    for got, given in zip(sums, values.values(), strict=True):
        assert isinstance(got, MergedSlices) and got.indices is sums[0].indices
        order = np.argsort(got.indices.numpy())
        assert got.indices.numpy()[order].tolist() == [2, 4, 7]  # one of them with a gradient of zero
        np.testing.assert_array_equal(got.values.numpy()[order], 2 * given[[1, 2, 0]])
    assert len(world.sent) == {"gather": 2, "reduce": 1}[form]
    assert sum(world.sent) == exchanged_bytes(form, touched=3, rows=9, width=3)


def test_a_variable_may_say_how_its_gradient_is_exchanged() -> None:
    world = Counting()
    variable = keras.Variable(np.zeros((9, 2), np.float32))
    gradient = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([3, 3]), tf.constant([9, 2], tf.int64))
    variable.exchange = "reduce"
    (got,), _ = GradientExchange(world)([gradient], [variable], None)
    assert got.indices.numpy().tolist() == [3] and got.values.numpy().tolist() == [[4.0, 4.0]]
    assert len(world.sent) == 1
    variable.exchange = "scatter"
    with pytest.raises(ValueError, match="gather, reduce, got 'scatter'"):
        GradientExchange(world)([gradient], [variable], None)


@pytest.mark.parametrize("graph", [False, True])
def test_a_step_of_weight_zero_changes_nothing(graph: bool) -> None:
    variable = keras.Variable(np.ones(2, np.float32))
    optimizer = wrap_optimizer(keras.optimizers.Adam(0.1), SingleWorld())
    optimizer.build([variable])

    def step(weight: tf.Tensor) -> None:
        optimizer.apply([tf.ones(2)], [variable], weight=weight)

    run = tf.function(step) if graph else step
    before = [v.numpy() for v in [variable, *optimizer.variables]]
    run(tf.constant(0.0))
    for old, new in zip(before, [variable, *optimizer.variables], strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    run(tf.constant(2.0))
    assert int(optimizer.iterations) == 1 and variable.numpy()[0] == pytest.approx(0.9, abs=1e-5)


def test_missing_gradients_half_and_double_floats() -> None:
    kinds = ["float16", "bfloat16", "float64", "float32"]
    variables = [keras.Variable(np.ones(2), dtype=kind) for kind in kinds]
    optimizer = wrap_optimizer(keras.optimizers.SGD(0.5), SingleWorld())
    grads = [*(tf.ones(2, tf.as_dtype(kind)) for kind in kinds[:3]), None]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(grads, variables, weight=2)
    assert [float(v.numpy()[0]) for v in variables] == [0.75, 0.75, 0.75, 1.0]


def test_a_penalty_refuses_loss_scaling() -> None:
    optimizer = wrap_optimizer(keras.optimizers.SGD(0.5, loss_scale_factor=8.0), SingleWorld())
    with pytest.raises(ValueError, match="loss scaling"):
        optimizer.apply([tf.ones(2)], [keras.Variable(np.ones(2))], penalty=lambda g, v: g)


def test_sharded_gradients_are_divided_but_not_summed() -> None:
    sharded, replicated = (keras.Variable(np.ones(2, np.float32)) for _ in range(2))
    sharded.placement = "sharded"
    optimizer = wrap_optimizer(keras.optimizers.SGD(1.0), FakeWorld())
    optimizer.apply([tf.ones(2), tf.ones(2)], [sharded, replicated], weight=2.0)
    assert sharded.numpy()[0] == pytest.approx(0.75) and replicated.numpy()[0] == pytest.approx(0.5)


class Marks(FakeWorld):
    """Whose other ranks send this mark with their gradients; names of what is exchanged are noted."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark, self.names = mark, []  # type: ignore[var-annotated]

    def grouped_sum(self, tensors: Any, name: str | None = None) -> list[tf.Tensor]:
        self.names.append((name, [(tensor.shape, tensor.dtype) for tensor in tensors]))
        return [*super().grouped_sum(tensors[:-1]), tensors[-1] + self.mark * (self.size - 1)]

    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        self.names.append((name, tensor.dtype, tensor.shape[1:]))
        return super().allgather(tensor, name)

    def allreduce(self, tensor: Any, op: Any = "sum", name: str | None = None) -> tf.Tensor:
        self.names.append((name, tensor.dtype, tensor.shape[1:]))
        return tensor * self.size


@pytest.mark.parametrize("size", [2, 3, 4, 7, 1000])
def test_no_mixture_of_ranks_looks_as_if_all_had_ended_alike(size: int) -> None:
    """One rank has ended its epoch, another the training, and others are in a step, whose mark is 0."""
    marks: list[float] = []
    exchange = SimpleNamespace(world=FakeWorld(size=size), traced=True)
    optimizer = type("Wrapped", (), {"_afm_ctr_exchange": exchange, "iterations": tf.constant(5)})()

    def ended(end: Any, others: float) -> bool:
        exchange.finish = lambda mark: marks.append(mark) or float(np.float32(mark) + np.float32(others))
        try:
            end(optimizer)
        except DistributedError:
            return False
        return True

    ended(end_epoch, 0.0)
    ended(end_training, 0.0)
    epoch, training = marks
    for at_epoch in range(min(size, 8)):
        for at_training in range(min(size - at_epoch, 8)):
            others = at_epoch * epoch + at_training * training
            assert ended(end_epoch, others) == (at_epoch == size - 1)
            assert ended(end_training, others) == (at_training == size - 1)


@pytest.mark.parametrize("graph", [False, True])
def test_an_ended_epoch_is_noticed_on_either_side_and_changes_nothing(graph: bool) -> None:
    world = Marks(0)
    table, other, bias = (keras.Variable(np.ones(shape, np.float32)) for shape in ([4, 2], [5, 1], [3]))
    other.exchange = "reduce"
    optimizer = wrap_optimizer(keras.optimizers.Adam(0.1), world)
    optimizer.build([table, other, bias])

    def step() -> None:
        rows = tf.constant([1, 1, 3], tf.int64)
        slices = [
            tf.IndexedSlices(tf.ones([3, v.shape[1]]), rows, tf.constant(list(v.shape), tf.int64))
            for v in (table, other)
        ]
        optimizer.apply([*slices, tf.ones(3)], [table, other, bias], weight=2.0)

    with pytest.raises(DistributedError, match="rank 0 has ended an epoch without a batch: give every rank as many"):
        end_epoch(optimizer)
    run = tf.function(step) if graph else step
    run()
    in_step, world.names = world.names, []
    world.mark = 1
    before = [v.numpy() for v in [table, other, bias, *optimizer.variables]]
    end_epoch(optimizer)
    assert world.names == in_step  # the operations meet those of a step, whoever takes which
    for old, new in zip(before, [table, other, bias, *optimizer.variables], strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    world.mark = 0
    with pytest.raises(DistributedError, match="rank 0 has ended an epoch after step 1, other ranks continue"):
        end_epoch(optimizer)
    world.mark = 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="another rank has ended its epoch"):
        (tf.function(step) if graph else step)()


def test_ranks_that_expect_unequal_numbers_of_batches_are_refused() -> None:
    world = FakeWorld(size=4)
    check_steps(SingleWorld(), 3)
    world.others = [3, None, 3]
    check_steps(world, None)
    check_steps(world, 3)
    world.others = [3, None, 2]
    with pytest.raises(DistributedError, match="rank 1 has 3 batches per epoch and rank 3 has 2: give every rank"):
        check_steps(world, None)
