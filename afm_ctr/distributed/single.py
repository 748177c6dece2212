"""The single process: every exchange is the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from afm_ctr.distributed.world import Op, World


class SingleWorld(World):
    """A world of one rank, which needs no Horovod."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def allreduce(self, tensor: Any, op: Op = "sum", name: str | None = None) -> tf.Tensor:
        return tf.identity(tensor)

    def grouped_sum(self, tensors: Sequence[tf.Tensor], name: str | None = None) -> list[tf.Tensor]:
        return list(tensors)

    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        return tf.identity(tensor)

    def alltoall(self, tensor: Any, splits: Any, name: str | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.identity(tensor), tf.identity(splits)

    def broadcast(self, tensor: Any, name: str | None = None, root: int = 0) -> tf.Tensor:
        return tf.identity(tensor)

    def broadcast_variables(self, variables: Sequence[Any], root: int = 0) -> None:
        pass

    def shutdown(self) -> None:
        pass
