"""The exchange of gradients between the ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from afm_ctr.distributed.world import World, is_replicated
from afm_ctr.slices import merge_slices

Gradient: TypeAlias = Any
"""A ``tf.Tensor``, a ``tf.IndexedSlices`` or None."""

_numbers = itertools.count()


def scaled(gradient: Gradient, factor: tf.Tensor) -> Gradient:
    """A gradient times a scalar."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    """Half floats are summed as float32: they overflow, and Horovod has no bfloat16."""
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.float16, tf.bfloat16) else tensor


class GradientExchange:
    """Sums gradients over the ranks: dense ones in one exchange, sparse ones row by row.

    A sparse gradient is merged (each row once), gathered and merged again, so that every rank ends with the same
    rows in the same order. The operations carry names of their own, alike on every rank as long as the ranks make
    their exchanges in the same order.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._name = f"afm_ctr_exchange_{next(_numbers)}"

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[Any], weight: tf.Tensor | None
    ) -> tuple[list[Gradient], tf.Tensor | None]:
        """Sum over the ranks.

        Args:
            gradients: dense tensors, ``tf.IndexedSlices`` or None, None at the same places on every rank.
            variables: what they are gradients of. The gradient of a sharded variable (see ``is_replicated``) is
                taken for summed already and only merged.
            weight: scalar, summed in the same exchange; None if there is none.

        Returns:
            The gradients summed (half floats as float32), each in its form, and the sum of the weights.
        """
        sums: list[Gradient] = list(gradients)
        dense: list[int] = []
        for place, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            if isinstance(gradient, tf.IndexedSlices):
                sums[place] = self._sum_rows(gradient, place, is_replicated(variable))
            elif gradient is not None and is_replicated(variable):
                dense.append(place)
        together = [_wide(tf.convert_to_tensor(gradients[place])) for place in dense]
        if weight is not None:
            together.append(_wide(weight))
        if together:
            together = self._world.grouped_sum(together, self._name)
        total = together.pop() if weight is not None else None
        for place, gradient in zip(dense, together, strict=True):
            sums[place] = gradient
        return sums, total

    def _sum_rows(self, gradient: tf.IndexedSlices, place: int, replicated: bool) -> tf.IndexedSlices:
        merged = merge_slices(tf.IndexedSlices(_wide(gradient.values), gradient.indices, gradient.dense_shape))
        if not replicated or self._world.size == 1:
            return merged
        values = self._world.allgather(merged.values, f"{self._name}_values_{place}")
        indices = self._world.allgather(merged.indices, f"{self._name}_indices_{place}")
        return merge_slices(tf.IndexedSlices(values, indices, gradient.dense_shape))
