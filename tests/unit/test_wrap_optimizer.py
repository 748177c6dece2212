"""A wrapped optimizer steps as the plain one does, whatever it was given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError

NEED_OTHERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
STOCK = [
    kind
    for _, kind in inspect.getmembers(keras.optimizers, inspect.isclass)
    if issubclass(kind, keras.optimizers.Optimizer) and kind not in (keras.optimizers.Optimizer, *NEED_OTHERS)
]


def falling(rate: float = 0.1) -> keras.optimizers.schedules.LearningRateSchedule:
    return keras.optimizers.schedules.ExponentialDecay(rate, 1, 0.5)


def excluding(kind: Any, **options: Any) -> Any:
    optimizer = kind(0.1, weight_decay=0.3, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda kind: kind(0.1),
    "decay": lambda kind: kind(0.1, weight_decay=0.3),
    "decay but for the bias": excluding,
    "clipnorm": lambda kind: kind(0.1, clipnorm=0.5),
    "clipvalue": lambda kind: kind(0.1, clipvalue=0.2),
    "global_clipnorm": lambda kind: kind(0.1, global_clipnorm=0.5),
    "ema": lambda kind: kind(0.1, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2),
    "accumulation": lambda kind: kind(0.1, gradient_accumulation_steps=2),
    "loss scale": lambda kind: kind(0.1, loss_scale_factor=8.0),
    "schedule": lambda kind: kind(falling()),
    "function": lambda kind: kind(lambda: 0.05),
}


class Slowed(keras.optimizers.SGD):
    """Needs an argument that its configuration does not have; one of its attributes is a method of its own."""

    def __init__(self, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor
        self.how = self.slow
        self.also = functools.partial(self.slow)
        self.counts: list[Any] = []

    def build(self, variables: Any) -> None:
        super().build(variables)
        self.counts.append(self.add_variable((), name="count"))

    def slow(self, gradient: Any) -> Any:
        self.counts[0].assign_add(1)
        return gradient / (self.factor * self.counts[0].value)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(self.how(self.also(gradient)), variable, learning_rate)


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step: Any) -> Any:
        return 0.1 / (1.0 + keras.ops.cast(step, "float32"))


def set_later() -> Any:
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.beta_1 = 0.5
    optimizer.weight_decay = 0.2
    return optimizer


OTHERS: dict[str, Callable[[], Any]] = {
    "own class": lambda: Slowed(3.0, learning_rate=0.1),
    "own schedule": lambda: keras.optimizers.SGD(OwnSchedule()),
    "attributes set later": set_later,
    "dynamic loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        excluding(keras.optimizers.Adam), initial_scale=4.0, dynamic_growth_steps=2
    ),
    "two optimizers": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1), {".*bias": keras.optimizers.Adam(0.2)})
    ),
    **{
        f"afm_ctr {name}": functools.partial(optimizers.build, name, learning_rate=0.1) for name in optimizers.names()
    },
}

CASES = {
    f"{kind.__name__}, {name}": functools.partial(make, kind) for kind in STOCK for name, make in OPTIONS.items()
}


def variables() -> list[keras.Variable]:
    return [
        keras.Variable(np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), name="kernel"),
        keras.Variable(np.ones(2, np.float32), name="bias"),
    ]


GRADIENTS = [[tf.constant(np.sin(np.arange(6.0) + s).reshape(3, 2), tf.float32), tf.ones(2) * s] for s in range(1, 4)]


def test_the_stock_is_whole() -> None:
    assert {"SGD", "Adam", "AdamW", "Lion", "Muon", "Adafactor", "Ftrl", "Nadam"} <= {k.__name__ for k in STOCK}


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_a_wrapped_optimizer_steps_as_the_plain_one(name: str) -> None:
    make = {**CASES, **OTHERS}[name]
    # Two steps show what an option does; the rest counts steps.
    gradients = GRADIENTS if name in OTHERS or name.endswith(("ema", "accumulation")) else GRADIENTS[:2]

    def state(optimizer: Any, model: list[Any]) -> list[np.ndarray]:
        return [v.numpy() for v in [*model, *optimizer.variables]]

    for split in (1,) if name in CASES else (0, 1):  # built when it is wrapped, or not
        plain, model = make(), variables()
        begun = [v.numpy() for v in model]
        for gradient in gradients[:split]:
            plain.apply(gradient, model)
        at_split = [v.numpy() for v in model]
        wrapped = wrap_optimizer(plain, SingleWorld())
        for gradient in gradients[split:]:
            plain.apply(gradient, model)
        expected = state(plain, model)
        assert any((one != other).any() for one, other in zip(begun, expected, strict=False))
        for variable, value in zip(model, at_split, strict=True):
            variable.assign(value)
        for gradient in gradients[split:]:
            wrapped.apply(gradient, model)
        for one, other in zip(state(wrapped, model), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert [v.name for v in wrapped.variables] == [v.name for v in plain.variables]
        assert not {id(v) for v in wrapped.variables} & {id(v) for v in [*plain.variables, *model]}


def test_excluded_variables_may_be_given_themselves() -> None:
    model = variables()
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model[0]])
    wrap_optimizer(optimizer, SingleWorld()).apply([tf.zeros([3, 2]), tf.zeros([2])], model)
    assert model[0].numpy()[0, 0] == -1.0 and model[1].numpy()[0] == pytest.approx(0.95)


def test_variables_that_a_copy_makes_later_are_its_own_and_are_saved(tmp_path: Any) -> None:
    wrapped = wrap_optimizer(Slowed(3.0, learning_rate=0.1), SingleWorld())
    model = variables()
    wrapped.apply(GRADIENTS[0], model)
    assert wrapped.how.__self__ is wrapped and float(wrapped.counts[0]) == 4
    again = wrap_optimizer(Slowed(3.0, learning_rate=0.1), SingleWorld())
    again.build(model)
    path = tf.train.Checkpoint(optimizer=wrapped).save(str(tmp_path / "c"))
    tf.train.Checkpoint(optimizer=again).restore(path).assert_existing_objects_matched()
    assert float(again.counts[0]) == 4


def test_a_name_is_enough_and_nonsense_is_refused() -> None:
    assert type(wrap_optimizer("adam", SingleWorld())).__name__ == "Adam"
    for nonsense in ("adams", 3, keras.layers.Dense(1)):
        with pytest.raises(UserError, match=r"is not a Keras optimizer: give an instance"):
            wrap_optimizer(nonsense, SingleWorld())  # type: ignore[arg-type]


def test_what_would_read_the_original_is_refused_by_name() -> None:
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.learning_rate = lambda: 0.1 / (1.0 + float(optimizer.iterations.numpy()))
    with pytest.raises(UserError, match=r"^Adam: its learning_rate reads the optimizer itself[^\n]+Schedule"):
        wrap_optimizer(optimizer, SingleWorld())

    class Helper:
        def __init__(self, of: Any) -> None:
            self.steps = [of.iterations]

    optimizer = keras.optimizers.SGD(0.1)
    optimizer.helper = Helper(optimizer)
    with pytest.raises(UserError, match="SGD: its helper reads"):
        wrap_optimizer(optimizer, SingleWorld())


@pytest.mark.parametrize("factor", [None, 4.0])
def test_loss_scaling_around_a_wrapped_optimizer_is_refused(factor: float | None) -> None:
    def compiled(optimizer: Any) -> keras.Model:
        model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
        model.compile(optimizer, loss="mse", jit_compile=False)
        return model

    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        wrapped = wrap_optimizer(keras.optimizers.Adam(0.1, loss_scale_factor=factor), SingleWorld())
        with pytest.raises(UserError, match=r"wrap_optimizer\(keras.optimizers.LossScaleOptimizer\(Adam"):
            compiled(wrapped)
        inside = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1), initial_scale=4.0)
        model = compiled(wrap_optimizer(inside, SingleWorld()))
        assert type(model.optimizer).__name__ == "LossScaleOptimizer"
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
        assert int(model.optimizer.iterations) == 1
    finally:
        keras.mixed_precision.set_global_policy("float32")
