"""A training step of AFM in parts: gradients, exchange between the ranks, optimizer; whole, or each separately."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import GradientExchange, SingleWorld, World, wrap_optimizer
from afm_ctr.distributed.exchange import scaled
from afm_ctr.models import CTRModel
from afm_ctr.sparse_gradients import merge_slices

Batch = dict[str, tf.Tensor]
Sums = tuple[list[Any], tf.Tensor]
_numbers = itertools.count()


def all_pairs(slots: int) -> np.ndarray:
    return np.argwhere(np.triu(np.ones((slots, slots), bool), 1)).astype(np.int32)


def make_model(slots: int, ids: int, k: int = 16, t: int = 16, shard_over: World | None = None) -> CTRModel:
    options = {"factors": k, "attention": t}
    return CTRModel("afm", options, ids + 1, slots, all_pairs(slots), shard_over=shard_over)


def as_batch(ids: np.ndarray, labels: np.ndarray) -> Batch:
    """Ids from 1, int64 [B, F], and labels [B]; every value is 1."""
    return {
        "feature_ids": tf.constant(ids, tf.int64),
        "feature_vals": tf.ones(ids.shape),
        "label": tf.constant(labels, tf.float32),
    }


def zipf_ids(rng: np.random.Generator, slots: int, ids: int, batch: int, exponent: float = 1.2) -> np.ndarray:
    """Zipf-distributed ids, from 1; every slot has its own table of the same size."""
    local = rng.zipf(exponent, size=(batch, slots)) % (ids // slots)
    return local + 1 + np.arange(slots) * (ids // slots)


def zipf_batches(slots: int, ids: int, batch: int, count: int, seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    return [as_batch(zipf_ids(rng, slots, ids, batch), rng.integers(0, 2, batch)) for _ in range(count)]


def distinct_rows(batch: Batch) -> int:
    return len(np.unique(batch["feature_ids"].numpy()))


class Pieces:
    """One way to take a step: ``gradients``, ``exchange`` and ``update`` in this order are a whole one.

    Args:
        model: its variables are trained.
        optimizer: built on them; not wrapped, since the exchange is a separate part here.
        world: the ranks.
        form: "gather" and "reduce" are those of this package. "raw" is what a model does that gathers its rows
            from the table and passes the gradient to ``hvd.allreduce``: every row of the batch travels as often as it
            occurs, and is merged where it arrives. "sharded" is for a model with a sharded table: its rows and their
            gradients travel while gradients are computed.
    """

    def __init__(self, model: CTRModel, optimizer: Any, world: World, form: str) -> None:
        self._model, self._optimizer, self._world, self._form = model, optimizer, world, form
        self._name = f"raw_{next(_numbers)}"  # the same on every rank, as all create the same ones in the same order
        form = "gather" if form == "sharded" else form
        self._sum = self._raw_sum if form == "raw" else GradientExchange(world, form=form)

    def gradients(self, batch: Batch) -> Sums:
        """The gradients of the sum of losses by every variable, and the number of rows."""
        model = self._model
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            if self._form == "raw":  # rows as often as they occur
                logits = model.interaction(model.inputs_of(batch), training=True) + model.bias.value
            else:
                logits = model(batch, training=True)
            loss = tf.reduce_sum(model.example_loss(batch["label"], logits))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        if self._form != "raw":
            gradients = model.table.touched(gradients, variables)
        return gradients, tf.cast(tf.shape(logits)[0], tf.float32)

    def exchange(self, gradients: list[Any], weight: tf.Tensor) -> Sums:
        """Their sums over the ranks, and the sum of the weights."""
        sums, total = self._sum(gradients, self._model.trainable_variables, weight)
        return sums, total

    def update(self, sums: list[Any], total: tf.Tensor) -> None:
        self._optimizer.apply([scaled(g, 1.0 / total) for g in sums], self._model.trainable_variables)

    def whole(self, batch: Batch) -> tf.Tensor:
        """Take a step; returns a tensor to wait for."""
        sums, total = self.exchange(*self.gradients(batch))
        self.update(sums, total)
        return total

    def _raw_sum(self, gradients: list[Any], _: Any, weight: tf.Tensor) -> Sums:
        import horovod.tensorflow as hvd  # only this form needs it

        sums = list(gradients)
        dense = [place for place, gradient in enumerate(gradients) if not isinstance(gradient, tf.IndexedSlices)]
        for place, gradient in enumerate(gradients):
            if place not in dense:
                sums[place] = merge_slices(hvd.allreduce(gradient, op=hvd.Sum, name=f"{self._name}_{place}"))
        group = self._world.grouped_sum([*(gradients[place] for place in dense), weight], f"{self._name}_dense")
        for place, total in zip(dense, group[:-1], strict=True):
            sums[place] = total
        return sums, group[-1]


def built_optimizer(model: CTRModel, name: str = "adam") -> Any:
    optimizer = optimizers.build(name, learning_rate=0.001)
    optimizer.build(model.trainable_variables)
    return optimizer


class _Shape:
    """Gradients as plain tensors and back: a graph's arguments and results do not keep that slices are merged."""

    def __init__(self) -> None:
        self._kinds: list[tuple[type, int]] = []  # of each gradient, and which earlier one it shares indices with

    def flat(self, gradients: list[Any]) -> list[tf.Tensor]:
        self._kinds, tensors = [], []
        rows: dict[int, int] = {}
        for place, gradient in enumerate(gradients):
            if isinstance(gradient, tf.IndexedSlices):
                first = rows.setdefault(id(gradient.indices), place)
                self._kinds.append((type(gradient), first))
                tensors += [gradient.values, gradient.indices]
            else:
                self._kinds.append((tf.Tensor, place))
                tensors.append(gradient)
        return tensors

    def full(self, tensors: list[tf.Tensor], variables: list[Any]) -> list[Any]:
        left, gradients = iter(tensors), []
        for place, (kind, first) in enumerate(self._kinds):
            gradient = next(left)
            if issubclass(kind, tf.IndexedSlices):
                indices = next(left)
                indices = indices if first == place else gradients[first].indices
                gradient = kind(gradient, indices, tf.constant(tuple(variables[place].shape), tf.int64))
            gradients.append(gradient)
        return gradients


def one_by_one(pieces: Pieces, model: CTRModel, batches: list[Batch]) -> dict[str, Callable[[], Any]]:
    """Calls of "gradients", "exchange" and "optimizer", each on the results of the part before it."""
    local, summed, variables = _Shape(), _Shape(), model.trainable_variables

    @tf.function(reduce_retracing=True, autograph=False)
    def gradients(batch: Batch) -> Any:
        found, weight = pieces.gradients(batch)
        return local.flat(found), weight

    @tf.function(reduce_retracing=True, autograph=False)
    def exchange(tensors: list[tf.Tensor], weight: tf.Tensor) -> Any:
        found, total = pieces.exchange(local.full(tensors, variables), weight)
        return summed.flat(found), total

    @tf.function(reduce_retracing=True, autograph=False)
    def optimizer(tensors: list[tf.Tensor], total: tf.Tensor) -> tf.Tensor:
        pieces.update(summed.full(tensors, variables), total)
        return total

    before = [gradients(batch) for batch in batches]
    after = [exchange(*each) for each in before]
    for each in after:
        optimizer(*each)
    return {
        "gradients": _over(gradients, [(batch,) for batch in batches]),
        "exchange": _over(exchange, before),
        "optimizer": _over(optimizer, after),
    }


def sharded_exchange(model: CTRModel, batches: list[Batch]) -> Callable[[], Any]:
    """Calls of a sharded table's whole exchange: the batch's ids to their owners, rows back, gradient rows there."""
    columns = list(model.table.columns.values())

    @tf.function(reduce_retracing=True, autograph=False)
    def exchange(ids: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            rows = model.table.lookup(ids).rows
            total = tf.add_n([tf.reduce_sum(part) for part in rows.values()])
        found = tape.gradient(total, [column.value for column in columns])
        return model.table.touched(found, columns)[0].values

    for batch in batches[:2]:
        exchange(batch["feature_ids"])
    return _over(exchange, [(batch["feature_ids"],) for batch in batches])


def training_steps(model: CTRModel, name: str, batches: list[Batch]) -> Callable[[], Any]:
    """Calls that take the training loop's own step in a single process, with a new optimizer, on the next batch."""
    model.compile(wrap_optimizer(optimizers.build(name, learning_rate=0.001), SingleWorld()), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step)
    for batch in batches:
        step(batch)
    return _over(lambda batch: step(batch)["loss"], [(batch,) for batch in batches])


def whole_steps(pieces: Pieces, batches: list[Batch]) -> Callable[[], Any]:
    """A call that takes a step on the next batch each time."""
    step = tf.function(pieces.whole, reduce_retracing=True, autograph=False)
    for batch in batches[:2]:
        step(batch)
    return _over(step, [(batch,) for batch in batches])


def _over(function: Callable[..., Any], arguments: list[Any]) -> Callable[[], Any]:
    """Calls on the next arguments each time, which return when the work is done."""
    ready = itertools.cycle(arguments)
    return lambda: tf.nest.flatten(function(*next(ready)))[0].numpy()


def seconds(steps: Mapping[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, list[float]]:
    """Seconds per call of each, in every round; they take turns, and the first round does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            if turn:
                taken[name].append((time.perf_counter() - start) / repeats)
    return taken
