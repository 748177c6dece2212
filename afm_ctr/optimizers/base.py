"""The base class of the optimizers: one rule for a block of weights, applied to whole variables or to single rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from afm_ctr import native
from afm_ctr.huge_pages import on_large_pages
from afm_ctr.optimizers.average import AVERAGE, Average
from afm_ctr.sparse_gradients import merge_slices, read_rows

# Options of Keras that would touch every row, or that differ between slices and the dense gradient.
_REFUSED = {
    "weight_decay": "it would move every row of a table in every step; use the model's row L2",
    "clipnorm": "it is not defined for sparse rows",
    "clipvalue": "it is not defined for sparse rows",
    "global_clipnorm": "it is not defined for sparse rows",
    "use_ema": "it would read every row of a table in every step; use average",
    "gradient_accumulation_steps": "it would keep a dense gradient of every table; use a larger batch",
    "loss_scale_factor": "the models train in float32",
}
_HARMLESS = {"ema_momentum", "ema_overwrite_frequency"}


class RowOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer given by :meth:`rule`, whose sparse step reads and writes only the batch's rows.

    Keras passes a sparse gradient with repeated rows and leaves them to each optimizer; here they are added up first
    (except in :class:`MergedSlices`, where they are unique), so that the step is that of the dense gradient,
    restricted to the rows that the batch touched.

    A subclass adds its slots to :attr:`slots` (name and initial value) and implements :meth:`rule`. It may also name
    the rule of :func:`afm_ctr.native.step_rows`, which then takes the sparse steps on CPUs, and all steps on GPUs.

    Args:
        learning_rate: a float, a schedule or a callable, as in Keras.
        name: name of the optimizer, which its variables' paths begin with; by default that of the class.
        average: decay of an exponential average of the weights, over about 1 / (1 − decay) steps, kept in a slot that
            no step reads; None: there is none. See :func:`afm_ctr.optimizers.averaged_weights`.
        **refused: options of the Keras base class; only their neutral values are accepted.

    Raises:
        ValueError: an option of the base class that does not work for rows.
    """

    slots: dict[str, float]
    native_rule = ""
    default_name: str | None = None

    def __init__(
        self, learning_rate: Any, name: str | None = None, average: float | None = None, **refused: Any
    ) -> None:
        for option, value in refused.items():
            if option in _REFUSED and value not in (None, False):
                raise ValueError(f"option {option!r} is not supported: {_REFUSED[option]}")
            if option not in _REFUSED and option not in _HARMLESS:
                raise ValueError(f"there is no option {option!r}")
        super().__init__(learning_rate=_rate(learning_rate), name=name or self.default_name)
        self.averaging = None if average is None else Average(float(average))
        self.slots = {} if average is None else {AVERAGE: 0.0}
        self._slot_variables: dict[str, list[keras.Variable]] = {}
        self.counts: tf.Tensor | None = None
        self._of_step: dict[str, tf.Tensor] | None = None

    @classmethod
    def option_names(cls) -> set[str]:
        """The options of the constructor that Keras' base class does not have."""
        return set(inspect.signature(cls.__init__).parameters) - {"self", "common"} | {"average"}

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots of all variables. A second call is a no-op, as in Keras' own optimizers."""
        if self.built:
            return
        super().build(list(variables))
        for slot, initial in self.slots.items():
            self._slot_variables[slot] = [self._add_slot(slot, initial, variable) for variable in variables]

    def _add_slot(self, slot: str, initial: float, owner: keras.Variable) -> keras.Variable:
        path = getattr(owner, "path", owner.name.replace(":", "_")).replace("/", "_")  # named as in Keras
        shape = (owner.shape[0], self.slot_width(slot, owner.shape[1])) if _is_table(owner) else owner.shape
        variable = self.add_variable(shape, _Filled(initial), owner.dtype, name=f"{path}_{slot}")
        on_large_pages(variable.value)
        for mark in ("placement", "shards"):  # a slot is stored where its rows are
            if hasattr(owner, mark):
                setattr(variable, mark, getattr(owner, mark))
        return variable

    def slot_width(self, slot: str, width: int) -> int:
        """Width of a slot for a table's rows of ``width`` numbers: the same, or less in a subclass."""
        return width

    def slots_of(self, variable: keras.Variable | tf.Variable) -> dict[str, keras.Variable]:
        """The slot variables of one variable, by slot name. Of tables they are ``[rows, slot_width]``."""
        index = self._get_variable_index(variable)
        return {slot: variables[index] for slot, variables in self._slot_variables.items()}

    @contextmanager
    def only_if(self, counts: tf.Tensor) -> Iterator[None]:
        """A step taken within it changes no variable, no slot and no iteration if ``counts`` is False.

        It selects old or new values instead of using a conditional, whose predicate a GPU would have to send to the
        host. The step may then compute anything, NaN included. ``self.counts`` is ``counts`` meanwhile.
        """
        self.counts = counts
        try:
            yield
            self.iterations.assign_sub(tf.cast(tf.logical_not(counts), self.iterations.dtype))
        finally:
            self.counts = None

    def _chosen(self, new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
        return new if self.counts is None else tf.where(self.counts, new, old)

    def rule(
        self, weights: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The update of a block of rows: new weights and new slots, in the shapes that came in."""
        raise NotImplementedError

    def native_options(self, rate: tf.Tensor) -> list[tf.Tensor | float]:
        """The scalars for the rule of ``native_rule`` in this step."""
        raise NotImplementedError

    def _moved(
        self, weights: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """:meth:`rule`, and the average's slot."""
        moved, kept = self.rule(weights, gradient, slots, rate)
        if self.averaging is None:
            return moved, kept
        return moved, {**kept, AVERAGE: self.averaging.moved(slots[AVERAGE], weights, moved, self._steps)}

    @property
    def _steps(self) -> tf.Tensor:
        """Number of steps taken before this one."""
        return tf.cast(self.iterations.value, tf.int64)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """One step of all variables: see ``keras.optimizers.Optimizer.apply``."""
        self._of_step = {}
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._of_step = None

    def once_a_step(self, name: str, make: Callable[[], tf.Tensor]) -> tf.Tensor:
        """The result of ``make``, computed for the first variable of a step and reused for the others."""
        if self._of_step is None:  # a step of one variable
            return make()
        if name not in self._of_step:
            self._of_step[name] = make()
        return self._of_step[name]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable, which is a Keras variable or, under ``fit``, a bare ``tf.Variable``.

        Args:
            gradient: a tensor of the variable's shape, or ``tf.IndexedSlices`` of its rows, repeats allowed.
        """
        slots = {slot: _bare(kept) for slot, kept in self.slots_of(variable).items()}
        weights = _bare(variable)
        rate = tf.cast(learning_rate, weights.dtype)
        if self.averaging is not None:
            self.averaging.begin_step(slots[AVERAGE], self._steps, self.counts)
        if isinstance(gradient, tf.IndexedSlices):
            gradient = merge_slices(gradient)
        if self._step_on_gpu(gradient, weights, slots, rate):
            return
        if isinstance(gradient, tf.IndexedSlices):
            self._move_rows(gradient, weights, slots, rate)
            return
        old, before = weights.read_value(), {slot: value.read_value() for slot, value in slots.items()}
        moved, kept = self._moved(old, tf.cast(gradient, weights.dtype), before, rate)
        weights.assign(self._chosen(moved, old))
        for slot, value in kept.items():
            slots[slot].assign(self._chosen(value, before[slot]))

    def _native_options(self, rate: tf.Tensor) -> tf.Tensor:
        """:meth:`native_options` in one tensor."""
        return self.once_a_step(
            "options", lambda: tf.stack([tf.cast(option, tf.float32) for option in self.native_options(rate)])
        )

    def _step_on_gpu(
        self, gradient: Any, weights: tf.Variable, slots: dict[str, tf.Variable], rate: tf.Tensor
    ) -> bool:
        """Take the step in one GPU kernel, if there is one for it."""
        variables = [weights, *slots.values()]
        if self.averaging is not None or not native.steps_on_gpu(self.native_rule, variables):
            return False
        rows, values = None, gradient
        if isinstance(gradient, tf.IndexedSlices):
            rows, values = tf.cast(gradient.indices, tf.int64), gradient.values
        values = tf.cast(values, weights.dtype)
        native.step_on_gpu(self.native_rule, variables, rows, values, self._native_options(rate), self.counts)
        return True

    def _move_rows(
        self, slices: tf.IndexedSlices, weights: tf.Variable, slots: dict[str, tf.Variable], rate: tf.Tensor
    ) -> None:
        """Gather the rows and their slots, apply the rule, write them back; the slices' rows are unique."""
        rows = slices.indices
        if self.native_rule and native.steps_tables(weights.dtype) and weights.shape.rank == 2:
            values = tf.cast(slices.values, weights.dtype)
            variables = [weights, *(slots[slot] for slot in self.slots if slot != AVERAGE)]
            options, places = self._native_options(rate), tf.cast(rows, tf.int64)
            old = None if self.averaging is None else read_rows(weights, places)
            native.step_rows(self.native_rule, variables, places, values, options, self.counts)
            if self.averaging is not None:
                kept = read_rows(slots[AVERAGE], places)
                kept = self.averaging.moved(kept, old, read_rows(weights, places), self._steps)
                slots[AVERAGE].scatter_update(tf.IndexedSlices(kept, rows))
            return
        old, before = tf.gather(weights, rows), {slot: tf.gather(value, rows) for slot, value in slots.items()}
        moved, kept = self._moved(old, tf.cast(slices.values, weights.dtype), before, rate)
        weights.scatter_update(tf.IndexedSlices(self._chosen(moved, old), rows))
        for slot, value in kept.items():
            slots[slot].scatter_update(tf.IndexedSlices(self._chosen(value, before[slot]), rows))

    def get_config(self) -> dict[str, Any]:
        own = {} if self.averaging is None else {"average": self.averaging.decay}
        return {**super().get_config(), **own}


class _Filled(keras.initializers.Initializer):
    """One value everywhere. Keras' Constant multiplies it by ones, and so needs a second table's memory."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        return tf.fill(shape, tf.cast(self._value, dtype))


def _is_table(variable: Any) -> bool:
    """Whether it holds a row for each id: our tables are marked, ``keras.layers.Embedding`` uses a fixed name."""
    return len(variable.shape) == 2 and (hasattr(variable, "placement") or variable.name == "embeddings")


def _bare(variable: Any) -> tf.Variable:
    """The ``tf.Variable``: gathering from a Keras variable reads all of it."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _rate(value: Any) -> Any:
    """A learning rate for Keras, which refuses an ``int``; checked if it is a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not value >= 0:
            raise ValueError(f"learning_rate must not be negative, got {value}")
        return float(value)
    return value


def check(name: str, value: float, low: float, high: float | None = None) -> float:
    """An option's value as a float, if ``low <= value`` and, with a bound, ``value < high``."""
    number = float(value)
    if not (low <= number and (high is None or number < high)):
        raise ValueError(f"{name} must be at least {low}" + (f" and below {high}" if high else "") + f", got {value}")
    return number
