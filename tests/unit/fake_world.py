"""A world of several ranks without any other process."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from afm_ctr.distributed import SingleWorld


class FakeWorld(SingleWorld):
    """A world that says it is larger than it is and lets a test put words into the other ranks' mouths."""

    def __init__(self, rank: int = 0, size: int = 2, elastic: bool = False) -> None:
        self.rank, self.size = rank, size
        self.elastic = elastic  # type: ignore[misc]
        self.others: list[Any] = []

    def grouped_sum(self, tensors: Any, name: str | None = None) -> list[tf.Tensor]:
        return [tensor * self.size for tensor in tensors]  # every rank holds the same

    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        return tf.concat([tensor] * self.size, 0)

    def allgather_object(self, obj: Any) -> list[Any]:
        return [obj, *self.others] if self.others else [obj] * self.size
