"""Wraps any Keras 3 optimizer so that it steps on the gradients of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from afm_ctr.distributed.exchange import Gradient, GradientExchange, scaled
from afm_ctr.distributed.optimizer_copy import copy_optimizer
from afm_ctr.distributed.world import World, raw_variable
from afm_ctr.errors import UserError
from afm_ctr.sparse_gradients import change_values

Penalty = Callable[[Sequence[Gradient], Sequence[Any]], Sequence[Gradient]]

_MARK = "_afm_ctr_world"
_EXCHANGE = "_afm_ctr_exchange"
_READY = "_afm_ctr_ready"


def world_of(optimizer: keras.optimizers.Optimizer) -> World | None:
    """The world that :func:`wrap_optimizer` gave this optimizer; None if it is not wrapped."""
    return getattr(type(optimizer), _MARK, None)


def exchange_of(optimizer: keras.optimizers.Optimizer) -> GradientExchange | None:
    """How a wrapped optimizer exchanges its gradients; None if it is not wrapped."""
    return getattr(type(optimizer), _EXCHANGE, None)


def wrap_optimizer(optimizer: keras.optimizers.Optimizer | str, world: World) -> keras.optimizers.Optimizer:
    """A copy of the optimizer whose ``apply`` first sums the gradients over the ranks.

    It works under ``model.fit`` (compile with ``jit_compile=False``) and in a custom training loop, for any Keras
    model: Keras passes every gradient to ``apply``. Class name, configuration and variables are the plain
    optimizer's, so ``.keras`` files and checkpoints load without this package. Nothing else is scaled: neither the
    learning rate nor the loss.

    The copy's ``apply(grads, trainable_variables=None, *, weight=None, penalty=None)`` takes

    * ``weight``: scalar; ``grads`` are of the rank's *sum* of weighted losses and ``weight`` is its sum of weights.
      The step is taken on sum(grads) / sum(weight) over all ranks, whatever each rank's share; if sum(weight) is 0,
      nothing changes: no variable, no slot, no iteration. Without ``weight`` the step is taken on the mean over
      ranks, which is right if all have equally many rows.
    * ``penalty``: called as ``penalty(grads, variables) -> grads`` on the reduced gradients, hence once, not once per
      rank. Its ``tf.IndexedSlices`` have unique rows.

    Sparse gradients arrive at the optimizer merged (unique rows), in a single process too. A variable's attribute
    ``exchange`` may set how they are summed over the ranks: see :class:`GradientExchange`.

    The copy has every attribute of the original, so that it steps in the same way: variables excluded from weight
    decay, schedules and functions as learning rate, attributes of custom classes. No configuration is needed.

    Dynamic loss scaling (``mixed_float16``) goes inside: ``wrap_optimizer(keras.optimizers.LossScaleOptimizer(...))``
    decides for all ranks by the reduced gradients. Around the wrapped optimizer, where Keras' ``compile`` puts it, it
    would decide by one rank's, and is refused.

    Args:
        optimizer: built or not; its variables' values are copied. The original is not changed. Or a name for
            ``keras.optimizers.get``.
        world: from :func:`afm_ctr.distributed.init`.

    Raises:
        ValueError: the optimizer is already wrapped.
        UserError: it is not a Keras optimizer, or holds what cannot be copied: see :func:`copy_optimizer`.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        given = optimizer
        try:
            optimizer = keras.optimizers.get(given)
        except (TypeError, ValueError):
            optimizer = None
        if optimizer is None:
            raise UserError(f"{given!r} is not a Keras optimizer: give an instance, e.g. keras.optimizers.Adam(1e-3)")
    if world_of(optimizer) is not None:
        raise ValueError(f"{optimizer.name} is already wrapped")
    wrapped = copy_optimizer(optimizer, _subclass(type(optimizer), world))
    setattr(wrapped, _READY, True)
    return wrapped


def _subclass(plain: Any, world: World) -> Any:
    exchange = GradientExchange(world)

    def apply(
        self: Any,
        grads: Sequence[Gradient],
        trainable_variables: Sequence[Any] | None = None,
        *,
        weight: Any = None,
        penalty: Penalty | None = None,
    ) -> None:
        if penalty is not None and (self.loss_scale_factor or isinstance(self, keras.optimizers.LossScaleOptimizer)):
            raise ValueError("a penalty does not work with loss scaling: it would be added to scaled gradients")
        if trainable_variables is None:
            variables = list(self._trainable_variables)
        else:
            variables = list(trainable_variables)
            if not self.built:  # not within the conditional below, where variables cannot be created
                with tf.init_scope(), keras.name_scope(self.name, caller=self):
                    self.build(variables)
        reduced, total = exchange(grads, variables, None if weight is None else _as_weight(weight))
        if total is None:
            share = tf.constant(1.0 / world.size, tf.float64)
        else:
            share = tf.math.divide_no_nan(tf.constant(1.0, tf.float64), tf.cast(total, tf.float64))

        def step() -> tf.Tensor:
            with tf.name_scope("optimizer"):
                exact = total is None and world.size == 1
                mean = reduced if exact else [scaled(gradient, share) for gradient in reduced]
                if penalty is not None:
                    mean = list(penalty(mean, variables))
                plain.apply(self, [_like(g, v) for g, v in zip(mean, variables, strict=True)], variables)
                return tf.constant(True)

        if total is None:
            step()
        elif hasattr(self, "only_if"):
            with self.only_if(tf.not_equal(total, 0)):
                step()
        else:
            tf.cond(tf.not_equal(total, 0), step, lambda: tf.constant(False))

    def set_attribute(self: Any, name: str, value: Any) -> None:
        # Only keras.optimizers.LossScaleOptimizer sets this on the optimizer that it wraps.
        if name == "loss_scale_factor" and value is None and getattr(self, _READY, False):
            raise UserError(
                f"loss scaling around a wrapped optimizer would look at one rank's gradients only; put it inside: "
                f"wrap_optimizer(keras.optimizers.LossScaleOptimizer({plain.__name__}(...)), world)"
            )
        plain.__setattr__(self, name, value)

    members = {
        "apply": tf.autograph.experimental.do_not_convert(apply),
        "__setattr__": set_attribute,
        _MARK: world,
        _EXCHANGE: exchange,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
    }
    subclass = type(plain.__name__, (plain,), members)
    registered = keras.saving.get_registered_name(plain)
    if registered != plain.__name__:
        # Saved files must name the plain class. Registering both leaves the plain one registered.
        package, name = registered.split(">", 1)
        keras.saving.register_keras_serializable(package, name)(subclass)
        keras.saving.register_keras_serializable(package, name)(plain)
    return subclass


def _as_weight(weight: Any) -> tf.Tensor:
    weight = tf.convert_to_tensor(weight)
    if not weight.dtype.is_floating:
        weight = tf.cast(weight, tf.float32)
    return tf.reshape(weight, [])


def _like(gradient: Gradient, variable: Any) -> Gradient:
    """The gradient in its variable's dtype: half floats were widened for the exchange."""
    dtype = raw_variable(variable).dtype
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return change_values(gradient, tf.cast(gradient.values, dtype))
    return tf.cast(gradient, dtype)
