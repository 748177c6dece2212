"""Callbacks, checksums and the watchdog, without a second rank."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_world import FakeWorld

from afm_ctr import distributed
from afm_ctr.distributed import SingleWorld, Watchdog, World, wrap_optimizer
from afm_ctr.errors import UserError


def compiled(world: World, **how: Any) -> keras.Model:
    model = keras.Sequential([keras.layers.Input([2]), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)])
    model.compile(wrap_optimizer(keras.optimizers.SGD(0.1), world), loss="mse", **({"jit_compile": False} | how))
    return model


def test_broadcast_refuses_what_would_train_apart_in_silence() -> None:
    world = FakeWorld()
    x = np.ones((2, 2), np.float32)
    callback = distributed.BroadcastVariables(world)
    plain = keras.Sequential([keras.layers.Input([2]), keras.layers.Dense(1)])
    plain.compile("sgd", loss="mse", jit_compile=False)
    with pytest.raises(UserError, match="not wrapped"):
        plain.fit(x, x[:, :1], verbose=0, callbacks=[callback])
    with pytest.raises(UserError, match="jit_compile"):
        compiled(world, jit_compile=True).fit(x, x[:, :1], verbose=0, callbacks=[callback])
    world.others = [[("a", (2, 1), "float32")]]
    with pytest.raises(distributed.DistributedError, match="different models"):
        compiled(world).fit(x, x[:, :1], verbose=0, callbacks=[callback])


def test_training_state_has_weights_seeds_and_slots_but_no_metrics_and_nothing_sharded() -> None:
    model = compiled(SingleWorld())
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0, callbacks=[distributed.BroadcastVariables(SingleWorld())])
    names = list(distributed.training_state(model))
    assert any("seed_generator_state" in name for name in names) and any("kernel" in name for name in names)
    assert any("iteration" in name for name in names) and not any("loss" in name for name in names)
    model.layers[-1].kernel.placement = "sharded"
    assert not any("kernel" in name for name in distributed.training_state(model))


def test_agreed_state_leaves_batch_statistics_out() -> None:
    model = keras.Sequential([keras.layers.Input([2]), keras.layers.BatchNormalization()])
    model.compile("sgd")
    names = list(distributed.agreed_state(model))
    assert any("gamma" in name for name in names) and not any("moving" in name for name in names)


def test_checksum_sees_every_bit_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(1000, dtype=np.float32).reshape(100, 10)
    variable = tf.Variable(values)
    whole = distributed.checksum(variable)
    monkeypatch.setattr("afm_ctr.distributed.state._CHUNK_BYTES", 120)
    assert distributed.checksum(variable) == whole
    values[57, 3] = np.nextafter(values[57, 3], np.float32(np.inf))
    assert distributed.checksum(tf.Variable(values)) != whole
    assert distributed.checksum(keras.Variable(3, dtype="int64")) == distributed.checksum(
        tf.Variable(3, dtype=tf.int64)
    )
    assert isinstance(distributed.checksum(tf.Variable(tf.ones([2], tf.bfloat16))), int)


@pytest.mark.parametrize(
    ("size", "changed", "text"),
    [(2, [1], "rank 0 and rank 1 disagree"), (3, [2], "rank 2 holds other values"), (5, [1, 3], "rank 1, 3 holds")],
)
def test_drift_names_the_variable_and_the_ranks(size: int, changed: list[int], text: str) -> None:
    model = compiled(SingleWorld())
    model.build()
    state = distributed.agreed_state(model)
    honest = np.array([distributed.checksum(v) for v in state.values()], np.int64)
    bias = next(number for number, name in enumerate(state) if "bias" in name)
    others = [honest.copy() for _ in range(size - 1)]
    for rank in changed:
        others[rank - 1][bias:] += 1
    world = FakeWorld(size=size)
    world.others = others
    check = distributed.DriftCheck(world)
    check.set_model(model)
    with pytest.raises(distributed.DistributedError, match=text) as raised:
        check.check()
    assert list(state)[bias] in str(raised.value) and "\n" not in str(raised.value)
    assert "TF_DETERMINISTIC_OPS=1" in str(raised.value)
    world.others = [honest] * (size - 1)
    check.check()


class Rates(keras.callbacks.Callback):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(round(float(self.model.optimizer.learning_rate), 6))


def rates(schedule: distributed.LearningRateSchedule, steps: int) -> list[float]:
    model, noted = compiled(SingleWorld()), Rates()
    x = np.ones((steps, 2), np.float32)
    model.fit(x, x[:, :1], batch_size=1, verbose=0, callbacks=[schedule, noted])
    return noted.seen


def test_warmup_is_linear_then_lets_go_and_goes_on_after_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    world = FakeWorld(size=2)
    assert rates(distributed.LearningRateSchedule(world, 0.8, 4), 6) == [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    assert "learning rate: rises from 0 to 0.8 over 4 steps\n" in capsys.readouterr().out
    first = distributed.LearningRateSchedule(world, 0.8, 4, start="one_rank", verbose=False)
    assert rates(first, 2) == [0.5, 0.6]
    second = distributed.LearningRateSchedule(world, 0.8, 4, start="one_rank", verbose=False)
    second.set_state(first.get_state())
    assert rates(second, 3) == [0.7, 0.8, 0.8]
    assert rates(distributed.LearningRateSchedule(world, 0.8, 0), 2) == [0.1, 0.1]


def test_decay_falls_from_the_end_of_the_warmup_to_the_end_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    world = FakeWorld(size=2)
    linear = distributed.LearningRateSchedule(world, 0.8, 2, decay="linear", total_steps=6)
    assert rates(linear, 6) == [0.4, 0.8, 0.8, 0.6, 0.4, 0.2]
    said = "learning rate: rises from 0 to 0.8 over 2 steps, then falls from 0.8 to 0 by step 6 (linear)"
    assert capsys.readouterr().out.splitlines() == [said]
    cosine = {"decay": "cosine", "total_steps": 4, "verbose": False}
    first = distributed.LearningRateSchedule(world, 0.8, **cosine)
    assert rates(first, 3) == [0.8, 0.682843, 0.4]
    second = distributed.LearningRateSchedule(world, 0.8, **cosine)
    second.set_state(first.get_state())
    assert rates(second, 1) == [0.117157]
    assert second.describe() is None
    with pytest.raises(UserError, match="run's 4 steps end within its 4 of warm-up: take fewer"):
        distributed.LearningRateSchedule(world, 0.8, 4, **cosine)


def test_a_schedule_of_the_optimizers_own_is_refused() -> None:
    model = compiled(SingleWorld())
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    warmup = distributed.LearningRateSchedule(SingleWorld(), 0.8, 3)
    warmup.set_model(model)
    with pytest.raises(UserError, match="schedule"):
        warmup.on_train_begin()


class Barking(Watchdog):
    """Notes the line in place of ending the process."""

    line: ClassVar[str] = ""

    def _end(self, line: str) -> None:
        type(self).line = line
        self.barked.set()

    barked: ClassVar[threading.Event] = threading.Event()


def test_watchdog_barks_with_rank_step_and_place_but_not_while_paused() -> None:
    dog = Barking(FakeWorld(rank=1), timeout=0.2, first_timeout=0.2)
    dog.start()
    with dog.paused():
        assert not Barking.barked.wait(0.6)
    dog.beat(12)
    assert Barking.barked.wait(20)
    dog.stop()
    assert "rank 1 of 2" in Barking.line and "last finished step: 12" in Barking.line
    assert "test_distributed_callbacks.py" in Barking.line or "threading.py" in Barking.line


def watching() -> bool:
    return any(thread.name == "afm-ctr-watchdog" for thread in threading.enumerate())


def test_watchdog_sleeps_alone_and_ends_with_fit() -> None:
    alone = Watchdog(SingleWorld(), timeout=0.01)
    alone.start()
    assert not watching()
    dog = Watchdog(FakeWorld(), timeout=60)
    model = compiled(SingleWorld())
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, verbose=0, callbacks=[dog])
    assert not watching() and dog.step == 2
    with pytest.raises(UserError, match="not above 0"):
        Watchdog(SingleWorld(), timeout=0)


def test_fit_asks_for_the_number_of_batches_and_agrees_as_epochs_and_training_end() -> None:
    class Ended(FakeWorld):
        marks: ClassVar[list[float]] = []

        def grouped_sum(self, tensors: Any, name: str | None = None) -> list[tf.Tensor]:
            if not isinstance(tensors[-1], tf.__internal__.EagerTensor) and name is not None:
                self.marks.append(float(tf.get_static_value(tensors[-1])[0]))
            return super().grouped_sum(tensors, name)

    world, x = Ended(), np.ones((4, 2), np.float32)
    callback = distributed.BroadcastVariables(world)
    compiled(world).fit(x, x[:, :1], batch_size=2, epochs=2, verbose=0, callbacks=[callback])
    assert world.marks == [0, 1, 1, 1 << 20]  # the step's trace, two epochs, the training
    kinds = [(name, tuple(v.shape), str(v.dtype)) for name, v in distributed.training_state(compiled(world)).items()]
    world.allgather_object = lambda obj: [obj, kinds if isinstance(obj, list) else 3]  # type: ignore[method-assign]
    with pytest.raises(distributed.DistributedError, match="rank 0 has 2 batches per epoch and rank 1 has 3"):
        compiled(world).fit(x, x[:, :1], batch_size=2, verbose=0, callbacks=[callback])
