"""The exponential average of weights, stored as its distance from them: rows without gradient cost nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.embedding import assign_rows

AVERAGE = "average"  # name of the slot
_GROWTH = 16.0  # ln of the largest ratio of the stored distances to the real ones
_BLOCK_NUMBERS = 1 << 21


@dataclass(frozen=True)
class Average:
    """How a slot stores e − w of weights w and their average e.

    With t the number of the step and d its decay, t/(t + 1) while that is less than ``decay``::

        e ← d e + (1 − d) w,   so   e − w ← d (e − w + w_before − w)

    A row without gradient keeps its w, and its e − w shrinks by d as all others do. So the slot stores (e − w) / s,
    with s the product of all d so far: then only the rows of a batch change. Before s is too small for float32 the
    slot is multiplied by it, once in thousands of steps.

    Reference:
        Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 30 (1992).
    """

    # The final d; the average is over about 1 / (1 − d) steps. Before that it is the mean of all of them.
    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"average must be above 0 and below 1, got {self.decay}")

    @property
    def warm(self) -> int:
        """Steps until the decay is constant."""
        return round(self.decay / (1.0 - self.decay))

    @property
    def period(self) -> int:
        """Steps between multiplications of the slot."""
        return max(int(-_GROWTH / math.log(self.decay)), 1)

    def begin_step(self, slot: tf.Variable, steps: tf.Tensor, counts: tf.Tensor | None) -> None:
        """Multiply the slot by s if it is time; ``counts`` (scalar bool): whether the step counts; None: it does."""
        after = tf.maximum(steps - self.warm, 0)
        due = tf.logical_and(after > 0, after % self.period == 0)
        if counts is not None:
            due = tf.logical_and(due, counts)

        def shrink() -> tf.Tensor:
            slot.assign(slot * tf.cast(self.decay**self.period, slot.dtype))
            return tf.constant(True)

        tf.cond(due, shrink, lambda: tf.constant(False))

    def moved(self, kept: tf.Tensor, before: tf.Tensor, after: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        """The slot of weights after a step; ``steps`` int64: the number of steps before it."""
        growth = tf.cast(tf.minimum(steps, self.warm) + 1, before.dtype)
        since = tf.cast(tf.maximum(steps - self.warm, 0) % self.period, before.dtype)
        return kept + (before - after) * growth * tf.pow(tf.cast(self.decay, before.dtype), -since)

    def scale(self, steps: int) -> float:
        """The factor of a slot that gives e − w after this number of steps."""
        if steps <= self.warm:
            return 1.0 / (steps + 1)
        return float(self.decay ** ((steps - self.warm - 1) % self.period + 1)) / (self.warm + 1)


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Within it the trainable variables of a compiled model hold their averages; afterwards their previous values.

    Nothing changes for an optimizer that keeps no averages. The weights are copied meanwhile, once.

    Example:
        >>> with averaged_weights(model):
        ...     model.evaluate(rows)
    """
    average = getattr(model.optimizer, "averaging", None)
    if average is None:
        yield
        return
    scale = average.scale(int(model.optimizer.iterations))
    before = [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables]
    try:
        for variable in model.trainable_variables:
            add_average(variable, model.optimizer.slots_of(variable)[AVERAGE].value, scale)
        yield
    finally:
        for variable, value in zip(model.trainable_variables, before, strict=True):
            for start, rows in _row_blocks(variable):
                assign_rows(variable.value, start, tf.gather(value, rows))
            if not len(variable.shape):
                variable.assign(value)


def add_average(variable: Any, slot: Any, scale: float) -> None:
    """Replace weights by their averages, from the slot and :meth:`Average.scale`."""
    scale = tf.cast(scale, variable.dtype)
    for start, rows in _row_blocks(variable):
        assign_rows(variable.value, start, tf.gather(variable.value, rows) + scale * tf.gather(slot, rows))
    if not len(variable.shape):
        variable.assign(variable.value + scale * slot)


def _row_blocks(variable: Any) -> Iterator[tuple[int, tf.Tensor]]:
    """Numbers of consecutive rows, and the first of them, for writing in blocks without a second copy."""
    count = variable.shape[0] if len(variable.shape) else 0
    step = max(1, _BLOCK_NUMBERS // max(1, int(np.prod(variable.shape[1:]))))
    for start in range(0, count, step):
        yield start, tf.range(start, min(start + step, count))
