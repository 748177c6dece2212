"""Worlds of several ranks without any other process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.distributed import SingleWorld


class FakeWorld(SingleWorld):
    """A world that says it is larger than it is and lets a test put words into the other ranks' mouths.

    Attributes:
        others: what the other ranks say where objects are gathered; empty: the same as this one.
        resets: how often the ranks met anew.
        hung_up: how often because one was lost.
    """

    def __init__(self, rank: int = 0, size: int = 2, elastic: bool = False) -> None:
        self.rank, self.size = rank, size
        self.elastic = elastic  # type: ignore[misc]
        self.others: list[Any] = []
        self.resets = self.hung_up = 0

    def grouped_sum(self, tensors: Any, name: str | None = None) -> list[tf.Tensor]:
        return [tensor * self.size for tensor in tensors]  # every rank holds the same

    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        return tf.concat([tensor] * self.size, 0)

    def allgather_object(self, obj: Any) -> list[Any]:
        return [obj, *self.others] if self.others else [obj] * self.size

    def reset(self, neighbours: Sequence[int] = (), lost: bool = False) -> None:
        self.resets += 1
        self.hung_up += lost


class ThreadWorld(SingleWorld):
    """One of several ranks that are threads of this process; they share a ``meeting``."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.join(rank, meeting)

    def join(self, rank: int, meeting: Meeting) -> None:
        """Be another rank from now on, as after a reset."""
        self.rank, self.size, self._meeting = rank, len(meeting.said), meeting

    def allgather_object(self, obj: Any) -> list[Any]:
        self._meeting.said[self.rank] = obj
        self._meeting.barrier.wait()
        everything = list(self._meeting.said)
        self._meeting.barrier.wait()
        return everything

    def broadcast_object(self, obj: Any = None, root: int = 0) -> Any:
        return self.allgather_object(obj)[root]

    def alltoall(self, tensor: Any, splits: Any, name: str | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        parts = []
        for theirs, cuts in self.allgather_object((np.asarray(tensor), np.asarray(splits))):
            assert len(theirs) == sum(cuts)
            parts.append(np.split(theirs, np.cumsum(cuts)[:-1])[self.rank])
        return tf.constant(np.concatenate(parts)), tf.constant([len(part) for part in parts])

    def barrier(self) -> None:
        self._meeting.barrier.wait()


class Meeting:
    """What the threads of some ranks share."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.said: list[Any] = [None] * size


def together(work: Callable[[int], Any], ranks: int) -> list[Any]:
    """What a function of the rank gives for each, all at the same time; raises the cause where one failed."""
    with ThreadPoolExecutor(ranks) as pool:
        asked = [pool.submit(work, rank) for rank in range(ranks)]
    failed = [error for one in asked if (error := one.exception()) is not None]
    for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the cause, before those who waited for it in vain
    return [one.result() for one in asked]
