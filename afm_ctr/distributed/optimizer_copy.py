"""Copies a Keras optimizer with every attribute, not only those in its configuration."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.errors import UserError

_REACH = 4  # depth of the search for references to copied objects


def copy_optimizer(optimizer: keras.optimizers.Optimizer, kind: Any) -> Any:
    """An optimizer of class ``kind`` that steps in the same way, with its own variables.

    Its variables are copied, inner optimizers too (``LossScaleOptimizer``, ``MultiOptimizer``), and so are containers
    of them; the model's variables, learning-rate schedules, functions and other objects are shared. Methods of the
    optimizer become the copy's.

    Args:
        optimizer: built or not.
        kind: its class, or a subclass without further attributes.

    Raises:
        UserError: a function or an object among its attributes holds the optimizer or one of its variables, so that
            the copy would read variables that no longer change.
    """
    return _Copier().optimizer(optimizer, kind)


class _Copier:
    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}  # by the id of the original
        self._shared: list[tuple[str, str, Any]] = []  # optimizer, attribute, value
        self._depth = 0

    def optimizer(self, source: Any, kind: Any) -> Any:
        made = self._copies[id(source)] = kind.__new__(kind)
        made._lock = False  # read by the base class before any attribute is set
        self._depth += 1
        models = {id(variable) for variable in getattr(source, "_trainable_variables", ())}
        for variable in source._variables:
            if id(variable) not in models and id(variable) not in self._copies:
                self._copies[id(variable)] = _copy_variable(variable)
        tracker = source._tracker
        listed = []
        for name, value in vars(source).items():
            if name == "_tracker" or name.startswith("_self_"):  # bookkeeping, redone as attributes are set
                continue
            setattr(made, name, self._value(value, type(source).__name__, name))
            if getattr(value, "tracker", None) is tracker:
                listed.append(name)
        test, _ = tracker.config["variables"]
        made._tracker = type(tracker)({"variables": (test, made._variables)})
        made._tracker.stored_ids["variables"].update(map(id, made._variables))
        for name in listed:  # containers whose later variables count as the optimizer's
            setattr(made, name, copy.copy(getattr(made, name)))
        self._depth -= 1
        if not self._depth:
            self._check_shared()
        return made

    def _value(self, value: Any, owner: str, name: str) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)]
        again = functools.partial(self._value, owner=owner, name=name)
        if isinstance(value, keras.optimizers.Optimizer):
            return self.optimizer(value, type(value))
        if isinstance(value, keras.optimizers.OptimizerMap):
            made = self._copies[id(value)] = copy.copy(value)
            vars(made).update({key: again(one) for key, one in vars(value).items()})
            return made
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(again, value))
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                return kind(map(again, value))
        if isinstance(value, dict):
            return {key: again(one) for key, one in value.items()}
        if isinstance(value, np.ndarray):
            return value.copy()
        if isinstance(value, types.MethodType) and id(value.__self__) in self._copies:
            return types.MethodType(value.__func__, self._copies[id(value.__self__)])
        if isinstance(value, functools.partial):
            return functools.partial(again(value.func), *map(again, value.args), **again(value.keywords))
        self._shared.append((owner, name, value))
        return value

    def _check_shared(self) -> None:
        for owner, name, value in self._shared:
            if _holds(value, self._copies, _REACH):
                raise UserError(
                    f"{owner}: its {name.lstrip('_')} reads the optimizer itself, and would not see the copy "
                    "that steps: give a keras.optimizers.schedules.LearningRateSchedule, which gets the step, or "
                    "make it a method of the optimizer's class"
                )


def _copy_variable(source: keras.Variable) -> keras.Variable:
    alike = {name: getattr(source, name) for name in ("shape", "dtype", "trainable", "aggregation", "name")}
    made = keras.Variable(lambda shape, dtype: tf.identity(source.value), autocast=source._autocast, **alike)
    made._path = source.path
    for name, value in vars(source).items():
        if name not in vars(made):  # attributes that others have added, such as `placement`
            setattr(made, name, value)
    return made


def _holds(value: Any, targets: dict[int, Any], reach: int) -> bool:
    """Whether a value refers to one of the objects with these ids."""
    if id(value) in targets:
        return True
    return reach > 0 and any(_holds(one, targets, reach - 1) for one in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, types.FunctionType):
        names, everything = value.__code__.co_names, value.__globals__
        return [
            *(cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)),
            *(value.__defaults__ or ()),
            *(value.__kwdefaults__ or {}).values(),
            *(everything[name] for name in names if name in everything),
        ]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, keras.Layer | keras.Variable | tf.Variable | tf.Tensor | type | types.ModuleType):
        return ()
    return getattr(value, "__dict__", {}).values()


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
