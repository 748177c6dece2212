"""The metrics of the epoch under way, in a form that outlives a ``fit``."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.distributed import World
from afm_ctr.models import CTRModel


class RunningSums:
    """The variables of a model's metrics, summed over the ranks.

    Args:
        model: whose metrics hold nothing but sums.
        world: the ranks; all of them must make the calls.
    """

    def __init__(self, model: CTRModel, world: World) -> None:
        self._model, self._world = model, world
        self._waiting: dict[str, np.ndarray] = {}

    def read(self) -> dict[str, np.ndarray]:
        """The sums by name, the same on every rank."""
        if self._waiting:
            return dict(self._waiting)
        variables = self._variables()
        totals = self._world.grouped_sum([variable.value.read_value() for variable in variables.values()])
        return {name: total.numpy() for name, total in zip(variables, totals, strict=True)}

    def take_up(self, sums: dict[str, np.ndarray]) -> None:
        """Go on from these, once the epoch begins."""
        self._waiting = dict(sums)

    def begin_epoch(self) -> None:
        """Keras has just reset the metrics: give them what was taken up."""
        if self._waiting:
            for name, variable in self._variables().items():
                variable.assign(self._waiting[name] if self._world.is_chief else tf.zeros_like(variable.value))
            self._waiting = {}

    def _variables(self) -> dict[str, keras.Variable]:
        return {f"{metric.name}/{v.name}": v for metric in self._model.metrics for v in metric.variables}
