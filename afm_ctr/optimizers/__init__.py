"""Keras 3 optimizers whose step costs as much as the batch touches, not as the table holds."""

from __future__ import annotations

from typing import Any

import keras

from afm_ctr.errors import UserError
from afm_ctr.optimizers.average import averaged_weights
from afm_ctr.optimizers.base import RowOptimizer
from afm_ctr.optimizers.rules import FTRL, SGD, Adagrad, LazyAdam, RowWiseAdagrad
from afm_ctr.sparse_gradients import merge_slices

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "LazyAdam",
    "RowOptimizer",
    "RowWiseAdagrad",
    "averaged_weights",
    "build",
    "merge_slices",
    "names",
]

_CLASSES: dict[str, type[RowOptimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "adam": LazyAdam,
    "ftrl": FTRL,
    "rowwise_adagrad": RowWiseAdagrad,
}

# So that compile("LazyAdam") finds it; the other class names also exist in Keras.
keras.saving.get_custom_objects().update(LazyAdam=LazyAdam, RowWiseAdagrad=RowWiseAdagrad)


def names() -> list[str]:
    """The names for :func:`build`."""
    return sorted(_CLASSES)


def build(name: str, **options: Any) -> RowOptimizer:
    """The optimizer of that name, with the options of its class.

    Example:
        >>> build("adam", learning_rate=1e-3)

    Raises:
        UserError: an unknown name or option, or an invalid value.
    """
    if name not in _CLASSES:
        raise UserError(f"there is no optimizer {name!r}; there are: {', '.join(names())}")
    known = _CLASSES[name].option_names()
    for option in options:
        if option not in known:
            raise UserError(f"optimizer {name!r} has no option {option!r}; it has: {', '.join(sorted(known))}")
    try:
        return _CLASSES[name](**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {name!r}: {error}") from error
