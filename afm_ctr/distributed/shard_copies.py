"""Copies of sharded tables' rows in the memory of two ranks each: a lost rank's rows are restored from the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from afm_ctr.distributed.state import block_rows, blocks_of, sharded_variables
from afm_ctr.distributed.world import World, raw_variable
from afm_ctr.embedding import assign_rows
from afm_ctr.row_shards import RowShards


class _Copy(NamedTuple):
    """The rows of some ranks at one commit: by rank, for each sharded variable; this rank's own first."""

    ranks: int
    rows: dict[int, list[np.ndarray]]


class ShardCopies:
    """The rows of a model's sharded variables, this rank's and those of another, in host memory.

    The ranks form a ring in which each holds a copy of another's rows, of another host's if the hosts are of one
    size. A copy is made in two steps, so that the ranks always have one commit in common: :meth:`make` keeps the
    previous copy and ends when all ranks have the new one; :meth:`keep_only` drops the old one. In between a rank
    holds four times its rows in host memory, afterwards twice.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.kept: dict[int, _Copy] = {}
        self._distance = 0

    def make(self, serial: int, model: keras.Model) -> None:
        """Copy the rows as commit ``serial``; all ranks call it. Does nothing without sharded variables."""
        variables, world = sharded_variables(model), self._world
        if not variables:
            return
        to, held = ((world.rank + step) % world.size for step in (self._distance, -self._distance))
        copy = _Copy(world.size, {rank: [] for rank in (world.rank, held)})
        for raw in map(raw_variable, variables):
            for rows in copy.rows.values():
                rows.append(np.empty(raw.shape, raw.dtype.as_numpy_dtype))
            for place, block in blocks_of(raw):
                copy.rows[world.rank][-1][place] = block
                if held != world.rank:
                    splits = np.zeros(world.size, np.int32)
                    splits[to] = len(block)
                    copy.rows[held][-1][place] = world.alltoall(block, splits)[0].numpy()
        self.kept[serial] = copy
        world.barrier()

    def keep_only(self, serial: int) -> None:
        """Drop all copies except those of one commit."""
        self.kept = {kept: copy for kept, copy in self.kept.items() if kept == serial}

    def restore(self, serial: int, model: keras.Model) -> bool:
        """Give the sharded variables of a new model their rows, whichever rank holds them; all current ranks call it.

        Each rank gets those that it owns now. They travel in blocks: no rank holds more of them than it will keep.

        Returns:
            False, on every rank, if no rank holds some of them; then all copies are dropped.
        """
        variables = sharded_variables(model)
        if not variables:
            return True
        self.keep_only(serial)
        copy = self.kept.get(serial)
        host = os.environ.get("HOROVOD_HOSTNAME", "")
        mine = (0, []) if copy is None else (copy.ranks, list(copy.rows))
        everyone = self._world.allgather_object((host, *mine))
        self._distance = ring_distance([host for host, *_ in everyone])
        if not serial:
            return True
        holder: dict[int, int] = {}
        for place in (1, 0):  # the rank's own copy, if it still exists
            holder |= {held[place]: rank for rank, (_, _, held) in enumerate(everyone) if len(held) > place}
        if len(holder) < max(1, *(ranks for _, ranks, _ in everyone)):
            self.kept = {}
            return False
        for number, variable in enumerate(variables):
            rows = {} if copy is None else {rank: parts[number] for rank, parts in copy.rows.items()}
            self._share_out(variable, rows, holder)
        return True

    def _share_out(self, variable: Any, held: dict[int, np.ndarray], holder: dict[int, int]) -> None:
        """Send rows of a variable to their owners.

        Args:
            held: rows by the rank that owned them.
            holder: for each of those ranks, the rank that sends its rows.
        """
        world, raw, own = self._world, raw_variable(variable), variable.shards
        senders = sorted(holder, key=lambda rank: (holder[rank], rank))  # in order of arrival
        before = {rank: RowShards(own.rows, rank, len(holder)) for rank in holder}
        now = [RowShards(own.rows, rank, world.size) for rank in range(world.size)]
        step = block_rows(raw)
        for first in range(0, before[0].per_rank, step):

            def span(of: int, to: int, first: int = first) -> tuple[int, int]:
                block = before[of].start + first
                start = max(block, now[to].start)
                return start, max(start, min(block + step, before[of].stop, now[to].stop))

            sent, splits = [np.empty((0, *raw.shape[1:]), raw.dtype.as_numpy_dtype)], []
            for to in range(world.size):
                spans = [(of, *span(of, to)) for of in senders if holder[of] == world.rank]
                sent += [held[of][a - before[of].start : b - before[of].start] for of, a, b in spans]
                splits.append(sum(b - a for _, a, b in spans))
            came = world.alltoall(np.concatenate(sent), np.array(splits, np.int32))[0]
            at = 0
            for of in senders:
                start, stop = span(of, world.rank)
                if start < stop:
                    assign_rows(raw, start - own.start, came[at : at + stop - start])
                    at += stop - start


def ring_distance(hosts: Sequence[str]) -> int:
    """How many ranks further a rank's rows are held: on another host for as many ranks as possible."""

    def apart(distance: int) -> int:
        return sum(host != hosts[(rank + distance) % len(hosts)] for rank, host in enumerate(hosts))

    return max(range(1, len(hosts)), key=apart, default=0)
