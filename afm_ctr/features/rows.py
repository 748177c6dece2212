"""Shared by the encoders: their result type, and local ids to table rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from afm_ctr.schema import ResolvedSchema


class EncodedSlots(NamedTuple):
    """An encoder's result for a batch, slots first (so that a slot's data is contiguous)."""

    ids: tf.Tensor  # int64 [s, B]
    vals: tf.Tensor  # float32 [s, B]
    present: tf.Tensor  # bool [s, B]; ids and vals are undefined elsewhere
    bad: tf.Tensor | None  # bool [fields, B], or ``None``: this encoder has no bad cells
    cut: tuple[tf.Tensor, ...] = ()  # int32 [B] for each of its multi-valued fields: values beyond ``max_values``


class TableRows:
    """Local ids to table rows for a stack of slots, each with the ranges of its space.

    A space has one range until its schema grows beyond its capacity; each further range shifts the ids from its
    start on by another constant.
    """

    def __init__(self, schema: ResolvedSchema, spaces: list[str]) -> None:
        owned = [schema.ranges_of(space) for space in spaces]
        longest = max(len(ranges) for ranges in owned)
        never = np.iinfo(np.int64).max
        self._starts = np.full((longest, len(spaces), 1), never, np.int64)
        self._shifts = np.zeros((longest, len(spaces), 1), np.int64)
        for slot, ranges in enumerate(owned):
            before = 0
            for number, r in enumerate(ranges):
                self._starts[number, slot] = r.local_start
                self._shifts[number, slot] = r.start - r.local_start - before
                before = r.start - r.local_start

    def __call__(self, local: tf.Tensor) -> tf.Tensor:
        """int64 [s, B] to int64 [s, B]."""
        ids = local + self._shifts[0]
        for start, shift in zip(self._starts[1:], self._shifts[1:], strict=True):
            ids += tf.where(local >= start, shift, np.int64(0))
        return ids
