"""The ranks of a job, and the exchanges between them."""

from __future__ import annotations

import abc
import pickle
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

Op = Literal["sum", "min", "max", "mean"]


def is_replicated(variable: Any) -> bool:
    """Whether every rank holds the whole of this variable.

    False for one with the attribute ``placement = "sharded"``: broadcast, the sum of gradients and the drift check
    skip it.
    """
    return getattr(variable, "placement", "replicated") != "sharded"


def raw_variable(variable: Any) -> tf.Variable:
    """The ``tf.Variable`` of a Keras variable; a ``tf.Variable`` is returned unchanged."""
    return variable if isinstance(variable, tf.Variable) else variable.value


class World(abc.ABC):
    """The ranks of one job and their exchanges.

    There are two implementations: Horovod's, if ``horovodrun`` started the process, and a single process, where every
    exchange is the identity. All ranks must make the same calls in the same order.

    Attributes:
        rank: this process, 0 .. size-1.
        size: number of processes.
        local_rank: this process among those on its machine.
        local_size: number of processes on this machine.
        elastic: whether ranks may come and go; then the four above change at a :meth:`reset`.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    elastic: bool = False

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0, which writes what is not sharded."""
        return self.rank == 0

    @abc.abstractmethod
    def allreduce(self, tensor: Any, op: Op = "sum", name: str | None = None) -> tf.Tensor:
        """Reduce element by element over the ranks. Shape and dtype (not bfloat16) are the same on all ranks.

        ``name`` identifies the exchange among those in flight; in a graph give one whenever the ranks' graphs might
        differ in anything else. Works eagerly and in a ``tf.function`` without ``jit_compile``.
        """

    @abc.abstractmethod
    def grouped_sum(self, tensors: Sequence[tf.Tensor], name: str | None = None) -> list[tf.Tensor]:
        """Sums of many tensors in one exchange (one per dtype)."""

    @abc.abstractmethod
    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        """All ranks' tensors along dimension 0, the only one that may differ (0 is fine)."""

    @abc.abstractmethod
    def alltoall(self, tensor: Any, splits: Any, name: str | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Send rows to each rank, and receive rows from each.

        Args:
            tensor: ``[n, ...]``; the first rows go to rank 0, the next to rank 1, and so on.
            splits: int32 ``[size]``: the number for each rank.
            name: as in :meth:`allreduce`.

        Returns:
            The received rows, by rank, and the number from each rank: int32 ``[size]``.
        """

    @abc.abstractmethod
    def broadcast(self, tensor: Any, name: str | None = None, root: int = 0) -> tf.Tensor:
        """The tensor of rank ``root``; shape and dtype are the same on all ranks."""

    @abc.abstractmethod
    def broadcast_variables(self, variables: Sequence[Any], root: int = 0) -> None:
        """Assign the values of rank ``root`` to the others' Keras or TensorFlow variables, in place, one by one.

        Sharded variables (see :func:`is_replicated`) are skipped. No copy of a variable is made.
        """

    @abc.abstractmethod
    def shutdown(self) -> None:
        """Leave the job; no exchange is possible afterwards."""

    def reset(self, neighbours: Sequence[int] = (), lost: bool = False) -> None:
        """Meet the current ranks, after one was lost or hosts changed; all ranks of the job call it.

        Rank and size are new afterwards, and functions traced before must not be called again.

        Args:
            neighbours: process ids of the other ranks on this machine: a stopped one is killed.
            lost: an exchange failed: ranks that still wait for this one must fail too.

        Raises:
            RankRemoved: this rank's host is no longer part of the job.
            RunError: the others did not arrive in time.
            RuntimeError: the world is not elastic.
        """
        raise RuntimeError("the ranks of this job do not change: it was not started with --host-discovery-script")

    def allgather_object(self, obj: Any) -> list[Any]:
        """Every rank's picklable object, by rank."""
        data = np.frombuffer(pickle.dumps(obj, protocol=5), np.uint8)
        sizes = self.allgather(tf.constant([data.size], tf.int64)).numpy()
        everything = self.allgather(tf.constant(data)).numpy()
        parts: list[Any] = np.split(everything, np.cumsum(sizes)[:-1])
        return [pickle.loads(part) for part in parts]

    def broadcast_object(self, obj: Any = None, root: int = 0) -> Any:
        """The picklable object of rank ``root``; the other ranks' argument is ignored."""
        mine = self.rank == root
        data = np.frombuffer(pickle.dumps(obj if mine else None, protocol=5), np.uint8)
        size = int(self.broadcast(tf.constant(data.size, tf.int64), root=root).numpy())
        return pickle.loads(
            self.broadcast(tf.constant(data if mine else np.zeros(size, np.uint8)), root=root).numpy()
        )

    def allgather_numpy(self, array: Any) -> list[np.ndarray]:
        """Every rank's array, by rank; shapes and dtypes (strings too) may differ from rank to rank."""
        return self.allgather_object(np.asarray(array))

    def agree(self, n: int, op: Literal["min", "max", "sum"] = "max") -> int:
        """One integer from every rank's, such as the number of steps: short ranks pad the rest."""
        return int(self.allreduce(tf.constant(n, tf.int64), op).numpy())

    def barrier(self) -> None:
        """Wait until every rank arrives."""
        self.agree(0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"


class SingleWorld(World):
    """A world of one rank, which needs no Horovod: every exchange is the identity."""

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
