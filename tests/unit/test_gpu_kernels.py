"""Steps as they are traced on a machine with a GPU, op by op against TensorFlow's register of kernels.

No GPU is needed. What has no kernel there runs on the host, and its tensors are copied to it and back: nothing fails,
and it is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_world import FakeWorld
from tensorflow.python.framework import kernels, op_def_registry

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, World, wrap_optimizer
from afm_ctr.models import CTRModel

SLOTS, ROWS, BATCH, FACTORS = 6, 5000, 64, 4
PAIRS = np.array([(i, j) for i in range(SLOTS) for j in range(i + 1, SLOTS)], np.int32)
MODELS: dict[str, dict[str, Any]] = {
    "lr": {},
    "fm": {"factors": FACTORS},
    "afm": {"factors": FACTORS, "attention_dropout": 0.1, "pooled_dropout": 0.1, "attention_l2": 0.1},
    "deep_afm": {"factors": FACTORS, "attention_dropout": 0.1, "hidden": [8]},
}
# Sums of floats whose GPU kernel adds with atomics, in no fixed order.
ATOMIC = {
    *("UnsortedSegmentSum", "SegmentSum", "SparseTensorDenseMatMul", "ScatterNd", "TensorScatterAdd", "ScatterNdAdd"),
    *(
        "ResourceScatterAdd",
        "ResourceScatterSub",
        "ResourceScatterNdAdd",
        "ResourceScatterNdSub",
        "SparseSegmentSumGrad",
    ),
    *("UnsortedSegmentProd", "TensorScatterSub", "BiasAddGrad", "SparseSegmentMeanGrad"),
}
ONE_SUMMAND = {"reduce": {"ScatterNd": "a rank's rows, spread over the table: each place has one"}}


class Three(FakeWorld):
    """Three ranks; a gathered tensor comes from an op that takes int32 on a device, as Horovod's do."""

    def __init__(self) -> None:
        super().__init__(size=3)

    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        return tf.gather(tf.cast(tensor, tf.int64 if tensor.dtype.is_integer else tensor.dtype), tf.range(3), axis=0)

    def alltoall(self, tensor: Any, splits: Any, name: str | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(tensor, tf.range(tf.shape(tensor, tf.int64)[0])), splits

    def allreduce(self, tensor: Any, op: Any = "sum", name: str | None = None) -> tf.Tensor:
        return tensor * self.size


class Node(NamedTuple):
    """An op of a traced step, where it would run, and which of its outputs would lie on the host."""

    op: str
    name: str
    dtypes: tuple[str, ...]
    device: str
    on_host: list[tuple[str, tuple[int | None, ...]]]


def nodes_of(function: Callable[..., Any], *arguments: Any) -> Iterator[Node]:
    """Of the step and of all functions that it calls."""
    # As Keras traces it.
    graph = (
        tf.function(function, autograph=False).get_concrete_function(*arguments).graph.as_graph_def(add_shapes=True)
    )
    own = {part.signature.name for part in graph.library.function}
    for node in [*graph.node, *(node for part in graph.library.function for node in part.node_def)]:
        if node.op not in own:
            yield _look_up(node)


@cache
def kernels_of(op: str) -> list[Any]:
    """TensorFlow's kernels of an op: it reads its whole register for every question."""
    return list(kernels.get_registered_kernels_for_op(op).kernel)


def _look_up(node: Any) -> Node:
    fitting = [k for k in kernels_of(node.op) if _fits(k, node)]
    by_device = {kernel.device_type: kernel for kernel in reversed(fitting)}
    kernel = by_device.get("GPU") or by_device.get("DEFAULT")
    types = [tf.as_dtype(value.type).name for value in node.attr.values() if value.type]
    on_host = []
    definition = op_def_registry.get(node.op)
    if kernel is not None and definition is not None and len(definition.output_arg) == 1:
        (output,) = definition.output_arg
        dtype = node.attr[output.type_attr].type if output.type_attr else output.type
        if output.name in kernel.host_memory_arg and dtype:
            shapes = node.attr["_output_shapes"].list.shape
            on_host += [(tf.as_dtype(dtype).name, _dimensions(shape)) for shape in shapes]
    return Node(node.op, node.name, tuple(types), kernel.device_type if kernel else "CPU", on_host)


def _fits(kernel: Any, node: Any) -> bool:
    for constraint in kernel.constraint:
        if constraint.name not in node.attr:
            continue
        value = node.attr[constraint.name]
        allowed = constraint.allowed_values.list.type
        if any(kind not in allowed for kind in ([value.type] if value.type else value.list.type)):
            return False
    return True


def _dimensions(shape: Any) -> tuple[int | None, ...]:
    return (None,) if shape.unknown_rank else tuple(None if d.size < 0 else d.size for d in shape.dim)


def faults(nodes: Iterator[Node], allowed: dict[str, str]) -> list[str]:
    """What is wrong with a step on a GPU, in words."""
    found = set()
    for node in nodes:
        message = node.op == "Const" and "string" in node.dtypes  # of an Assert, which looks at one truth value
        if node.device == "CPU" and not message:
            found.add(f"{node.op} {node.dtypes} has no GPU kernel ({node.name})")
        floating = any(tf.as_dtype(kind).is_floating for kind in node.dtypes)
        if node.op in ATOMIC and floating and node.op not in allowed:
            found.add(f"{node.op} adds with atomics ({node.name})")
        for dtype, shape in node.on_host:
            size = None if None in shape else int(np.prod(shape))  # type: ignore[arg-type]
            if size is None or size >= BATCH:
                found.add(f"{node.op}: {dtype}{list(shape)} lies on the host ({node.name})")
    return sorted(found)


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(kernel.device_type == "GPU" for kernel in kernels_of("MatMul")):
        pytest.skip("this TensorFlow is built without CUDA, and does not list kernels of GPUs")
    gpu = SimpleNamespace(device_type="GPU", name="/physical_device:GPU:0")
    for name in ("get_visible_devices", "list_physical_devices"):
        plain = getattr(tf.config, name)

        def faked(kind: str | None = None, plain: Any = plain) -> list[Any]:
            return [gpu] if kind == "GPU" else plain(kind)

        monkeypatch.setattr(tf.config, name, faked)
    # Nothing is known of this GPU, so the step is traced with TensorFlow's form of pooling.
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: {})


def compiled(kind: str, optimizer: str, world: World, shard_over: World | None = None) -> CTRModel:
    options: dict[str, Any] = {"row_l2": 1e-5, "seed": 1, "mark_rows": True, "shard_over": shard_over}
    model = CTRModel(kind, MODELS[kind], ROWS, SLOTS, PAIRS, **options)
    built = wrap_optimizer(optimizers.build(optimizer, learning_rate=1e-3), world)
    model.compile(optimizer=built, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


BATCHES = {
    "feature_ids": tf.TensorSpec([BATCH, SLOTS], tf.int64),
    "feature_vals": tf.TensorSpec([BATCH, SLOTS], tf.float32),
    "label": tf.TensorSpec([BATCH], tf.float32),
    "weight": tf.TensorSpec([BATCH], tf.float32),
    "row": tf.TensorSpec([BATCH], tf.int64),
}


@pytest.mark.parametrize(
    ("kind", "optimizer"), [*((kind, "adam") for kind in MODELS), *(("fm", name) for name in optimizers.names())]
)
def test_training(kind: str, optimizer: str) -> None:
    model = compiled(kind, optimizer, SingleWorld())
    assert faults(nodes_of(model.train_step, BATCHES), {}) == []


@pytest.mark.parametrize("kind", MODELS)
def test_evaluation_and_prediction(kind: str) -> None:
    model = compiled(kind, "sgd", SingleWorld())
    for step in (model.test_step, model.predict_step):
        assert faults(nodes_of(step, BATCHES), {}) == []


@pytest.mark.parametrize("form", ["gather", "reduce"])
def test_the_exchange_of_three_ranks(form: str) -> None:
    model = compiled("fm", "adam", Three())
    for column in model.table.columns.values():
        column.exchange = form
    assert faults(nodes_of(model.train_step, BATCHES), ONE_SUMMAND.get(form, {})) == []


def test_a_table_spread_over_three_ranks() -> None:
    model = compiled("fm", "adam", Three(), Three())
    for step in (model.train_step, model.test_step, model.predict_step):
        assert faults(nodes_of(step, BATCHES), {}) == []


def test_faults_are_found() -> None:
    def step(indices: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        marks = tf.Variable(tf.zeros([9], tf.int32)) if not made else made[0]
        made.append(marks)
        marks.scatter_update(tf.IndexedSlices(tf.zeros_like(indices), indices))
        return tf.math.unsorted_segment_sum(values, tf.reshape(indices, [-1]), 9)

    made: list[Any] = [tf.Variable(tf.zeros([9], tf.int32))]
    found = faults(nodes_of(step, tf.TensorSpec([BATCH], tf.int32), tf.TensorSpec([BATCH, 2])), {})
    text = "\n".join(found)
    assert "ResourceScatterUpdate ('int32', 'int32') has no GPU kernel" in text
    assert "UnsortedSegmentSum adds with atomics" in text and f"Reshape: int32[{BATCH}] lies on the host" in text


def test_plain_keras_models_too() -> None:
    """Those of others are their own business, but the exchange around them is ours."""
    ids = keras.Input([SLOTS], dtype="int64")
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Embedding(ROWS, 2)(ids))))
    model.compile(wrap_optimizer(keras.optimizers.Adam(), Three()), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    data = (tf.TensorSpec([BATCH, SLOTS], tf.int64), tf.TensorSpec([BATCH, 1]))
    ours = (node for node in nodes_of(lambda x, y: model.train_step((x, y)), *data) if "exchange" in node.name)
    assert faults(ours, {}) == []
