"""Training that continues when ranks are lost, added or removed: a committed state, and a loop around it."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np

from afm_ctr.distributed.exchange import count_again
from afm_ctr.distributed.rendezvous import RankRemoved
from afm_ctr.distributed.shard_copies import ShardCopies
from afm_ctr.distributed.state import assign_blocks, blocks_of, check_alike, sharded_variables, training_state
from afm_ctr.distributed.steps import check_steps, end_epoch
from afm_ctr.distributed.world import World, raw_variable
from afm_ctr.errors import RunError, UserError, find_lost_rank
from afm_ctr.visible import visible

Result = TypeVar("Result")

_SHARE = 0.05  # of the time at most is spent on commits: large models are committed less often than configured
_GROWTH = 4  # the largest ratio of successive intervals, until a step's time is known
_VAIN = 5  # meetings in a row without a commit between them


class HostsChanged(Exception):
    """The job's hosts have changed: after a commit all ranks stop their work and meet again."""


class ElasticState:
    """The state that survives the loss of ranks: a model with its optimizer, and named values; kept in host memory.

    :meth:`commit` copies it all. When a rank is lost, :func:`run_elastic` goes back to the last commit, so only the
    steps after it are repeated; a new rank gets the last commit from the others. In a world that is not elastic
    nothing is copied, and the same program runs on one process or on a fixed number of ranks.

    The rows of a sharded table are copied on the rank that owns them and on another one, see :class:`ShardCopies`.
    When the ranks change, the model is rebuilt and each rank gets the rows that it then owns. If more ranks were lost
    than there are copies, the commit is lost, and the function is called with :attr:`lost` set.

    Args:
        model: built and compiled, its optimizer wrapped (:func:`wrap_optimizer`) and built.
        world: from :func:`afm_ctr.distributed.init`.
        commit_seconds: about how often a commit is :attr:`due`. A commit copies every variable (about 0.4 s per
            gigabyte); intervals are long enough that commits take at most a twentieth of the time.
        commit_steps: commit every ``commit_steps`` steps instead.
        rebuild: builds and compiles such a model for the current ranks; required with sharded tables.
        **values: anything that can be pickled: epoch, step, position in the data, callbacks' state.

    Attributes:
        values: the named values, which may be read and set; after a reset they are those of the last commit.
        model: the current one.
        committed: whether there is a commit to go back to.
        lost: whether the commit's rows are lost: resume from disk.

    Raises:
        UserError: negative intervals, or sharded tables without ``rebuild``.
    """

    def __init__(
        self,
        model: keras.Model,
        world: World,
        *,
        commit_seconds: float = 5.0,
        commit_steps: int | None = None,
        rebuild: Callable[[], keras.Model] | None = None,
        **values: Any,
    ) -> None:
        if world.elastic and rebuild is None and sharded_variables(model):
            raise UserError("a model with sharded tables needs rebuild= in an elastic job")
        if commit_seconds < 0 or (commit_steps is not None and commit_steps < 1):
            raise UserError("elastic commits: seconds must be at least 0, and steps at least 1")
        self.model, self.world, self.values = model, world, values
        self._seconds, self._steps = commit_seconds, commit_steps
        self._arrays: list[np.ndarray] = []
        self._pickled, self._cost = b"", 0.0
        self.serial = 0  # of the last commit; a commit has the same number on every rank
        self._torn = False  # whether variables are neither this rank's nor those of a commit
        self._interval, self._since = 1, 0
        self._last = time.monotonic()
        self._hosts_changed = False  # set on rank 0, which the launcher notifies
        self._rebuild, self.copies, self.lost = rebuild, ShardCopies(world), False
        self._neighbours: list[int] = []

    @property
    def committed(self) -> bool:
        return self.serial > 0

    def begin(self) -> None:
        """Give all ranks the variables of rank 0, and commit; does nothing if there is a commit already."""
        if not self.committed:
            state = training_state(self.model)
            check_alike(self.world, state)
            self.world.broadcast_variables(list(state.values()))
            self.commit()

    def count_step(self) -> None:
        """Count a finished step, on all ranks."""
        self._since += 1

    @property
    def due(self) -> bool:
        """Whether it is time for a commit, on every rank at the same step."""
        return self._since >= self._interval

    def commit(self) -> None:
        """Copy everything, then raise if hosts have changed; all ranks call it at the same step.

        Raises:
            HostsChanged: for :func:`run_elastic`; do not catch it.
        """
        if self.keep():
            raise HostsChanged

    def keep(self) -> bool:
        """:meth:`commit` without raising: returns whether hosts have changed, the same on every rank.

        Raise :class:`HostsChanged` when convenient; until then every commit returns True.
        """
        if not self.world.elastic:
            return False
        now = time.monotonic()
        changed, interval = self.world.broadcast_object((self._hosts_changed, self._next_interval(now)))
        self.copies.make(self.serial + 1, self.model)
        # Nothing is exchanged from here on, so that each rank makes the whole commit or none of it.
        self._copy()
        self.serial += 1
        self.copies.keep_only(self.serial)
        self._interval, self._since, self._last = interval, 0, time.monotonic()
        self._cost = self._last - now
        return bool(changed)

    def _next_interval(self, now: float) -> int:
        if self._steps is not None:
            return self._steps
        step = (now - self._last) / self._since if self._since else 0.0
        wanted = max(self._seconds, self._cost / _SHARE)
        fitting = wanted / step if step else 1.0
        return int(max(1, min(fitting, _GROWTH * self._interval)))

    def _copy(self) -> None:
        variables = [raw_variable(variable) for variable in training_state(self.model).values()]
        if not self._arrays:
            self._arrays = [np.empty(v.shape, v.dtype.as_numpy_dtype) for v in variables]
        for array, variable in zip(self._arrays, variables, strict=True):
            for place, block in blocks_of(variable):
                array[place] = block  # reuse the memory
        self._pickled = pickle.dumps(self.values, protocol=5)

    def restore(self) -> None:
        """Go back to the last commit, if there is one; rows of sharded tables return in :meth:`sync`."""
        if self.committed:
            for array, variable in zip(self._arrays, training_state(self.model).values(), strict=True):
                assign_blocks(variable, array)
            self.values = pickle.loads(self._pickled)

    def sync(self) -> None:
        """Give the newest commit of any rank to those with an older one or none; all ranks call it.

        Raises:
            RunError: every rank that held a commit is gone.
        """
        machine = _machine()
        everyone = self.world.allgather_object((self.serial, self._torn, machine, os.getpid()))
        self._neighbours = [pid for _, _, where, pid in everyone if where == machine and pid != os.getpid()]
        serials = [serial for serial, *_ in everyone]
        newest = max(serials)
        if not self.copies.restore(newest, self.model):
            say(self.world, "rows of the lost ranks are held by no other rank: back to the last checkpoint")
            self.serial, self._torn, self.lost = 0, False, True
        elif not newest:
            if any(torn for _, torn, *_ in everyone):
                raise RunError("every rank that held the state of the run is gone: start the same command again")
        elif min(serials) < newest:
            state, root = training_state(self.model), serials.index(newest)
            check_alike(self.world, state)
            self._torn = not self.committed
            self.world.broadcast_variables(list(state.values()), root)
            pickled = self.world.broadcast_object(self._pickled, root)
            self.values = pickle.loads(pickled)
            if self.serial < newest:
                self._copy()
            self.serial, self._torn = newest, False
        self._interval, self._since, self._last = self._steps or 1, 0, time.monotonic()

    def on_hosts_updated(self, timestamp: int, change: Any) -> None:
        """Called by Horovod's notification thread, on rank 0, when the launcher has found other hosts."""
        self._hosts_changed = True

    def reset(self, lost: bool = False) -> None:
        """Meet the current ranks, and drop what was compiled for the previous ones.

        Args:
            lost: a rank was lost: see :meth:`World.reset`.
        """
        self._hosts_changed = False
        self.world.reset(self._neighbours, lost)
        if self._rebuild is None:
            self.model.train_function = self.model.test_function = self.model.predict_function = None
            return
        del self.model  # free its memory before the next one is built
        gc.collect()
        count_again()
        self.model, self._torn = self._rebuild(), False
        self.restore()


class Commits(keras.callbacks.Callback):
    """Under ``fit``: after every batch increment ``state.values["step"]``, and commit when it is due.

    Put it last in the list, so that the state includes the work of the other callbacks.

    Raises:
        DistributedError: the ranks have unequal numbers of batches: see :mod:`afm_ctr.distributed.steps`.
    """

    def __init__(self, state: ElasticState) -> None:
        super().__init__()
        self.state = state

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        check_steps(self.state.world, (self.params or {}).get("steps"))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        end_epoch(self.model.optimizer)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.state.values["step"] = self.state.values.get("step", 0) + 1
        self.state.count_step()
        if self.state.due:
            self.state.commit()


def run_elastic(function: Callable[[ElasticState], Result], state: ElasticState) -> Result:
    """Call ``function(state)``, again after each loss or change of ranks, until it returns.

    At each call all ranks hold the same commit (or none has one: the run begins), and ``state.world`` has the current
    rank and size. In a world that is not elastic the function is called once.

    ::

        world = distributed.init()
        model.compile(distributed.wrap_optimizer(keras.optimizers.Adam(1e-3), world), loss="mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        state = distributed.ElasticState(model, world, epoch=0, step=0)

        def train(state):
            state.begin()
            while state.values["epoch"] < 10:
                part = my_part(state.values["epoch"], state.values["step"], world.rank, world.size)
                model.fit(part, callbacks=[distributed.Commits(state)])
                state.values.update(epoch=state.values["epoch"] + 1, step=0)
                state.commit()

        distributed.run_elastic(train, state)

    Args:
        function: may exchange anything, but only within this call; before it, new ranks wait in :meth:`sync`.
        state: one for the whole run.

    Returns:
        What ``function`` returned.

    Raises:
        RankRemoved: this rank's host left the job; uncaught, it ends the process with code 0.
        RunError: ranks are lost repeatedly without a commit between.
        Exception: any exception of ``function``, except for the loss of a rank.
    """
    if not state.world.elastic:
        return function(state)
    vain, serial, again, lost = 0, 0, False, False
    with _host_changes(state):
        while True:
            try:
                if again:
                    state.reset(lost)
                state.sync()
                if state.committed and sharded_variables(state.model):
                    state.commit()  # until then some rows have only one copy, or only their owner's
                    serial = state.serial
                return function(state)
            except HostsChanged:
                lost = False
                say(state.world, "hosts have changed: the ranks meet again")
            except RankRemoved:
                say(state.world, "this host has left the job: ending")
                raise
            except Exception as error:
                if find_lost_rank(error) is None:
                    raise
                lost = True
                vain = vain + 1 if state.serial == serial else 1
                serial = state.serial
                if vain >= _VAIN:
                    raise RunError(f"ranks were lost {vain} times in a row without a commit between") from error
                say(state.world, "another rank was lost: back to the last commit, on the remaining ranks")
                if state._rebuild is None:
                    state.restore()
            again = True


@contextlib.contextmanager
def _host_changes(state: ElasticState) -> Iterator[None]:
    """Within it the launcher's news about hosts reaches the state."""
    from horovod.common.elastic import notification_manager

    notification_manager.init()
    notification_manager.register_listener(state)
    try:
        yield
    finally:
        notification_manager.remove_listener(state)


def _machine() -> str:
    """An identifier shared by the processes that see each other's process ids."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {os.getpid()}"


def say(world: World, text: str) -> None:
    print(f"afm-ctr: rank {world.rank} of {world.size}: {visible(text)}", file=sys.stderr, flush=True)
