"""Horovod for Keras 3: any Keras model on several processes, or on a single one with the same code.

::

    world = distributed.init()
    model.compile(distributed.wrap_optimizer(keras.optimizers.Adam(1e-3), world), loss="mse", jit_compile=False)
    model.fit(my_part_of_the_data, callbacks=[distributed.BroadcastVariables(world)])

``horovodrun -np 4 python train.py`` runs it on four ranks, ``python train.py`` on one, which does not even need
Horovod.
"""

from __future__ import annotations

import os

from afm_ctr.devices import grow_gpu_memory, pin_gpu
from afm_ctr.distributed.callbacks import BroadcastVariables, DriftCheck, LearningRateSchedule
from afm_ctr.distributed.elastic import Commits, ElasticState, HostsChanged, run_elastic
from afm_ctr.distributed.exchange import Form, GradientExchange, Traffic, exchanged_bytes, sent_bytes
from afm_ctr.distributed.optimizer import world_of, wrap_optimizer
from afm_ctr.distributed.rendezvous import RankRemoved
from afm_ctr.distributed.sharded_table import ShardedTable
from afm_ctr.distributed.state import DistributedError, agreed_state, checksum, training_state
from afm_ctr.distributed.steps import check_steps, end_epoch
from afm_ctr.distributed.watchdog import Watchdog
from afm_ctr.distributed.world import SingleWorld, World, is_replicated

__all__ = [
    "BroadcastVariables",
    "Commits",
    "DistributedError",
    "DriftCheck",
    "ElasticState",
    "Form",
    "GradientExchange",
    "HostsChanged",
    "LearningRateSchedule",
    "RankRemoved",
    "ShardedTable",
    "SingleWorld",
    "Traffic",
    "Watchdog",
    "World",
    "agreed_state",
    "check_steps",
    "checksum",
    "end_epoch",
    "exchanged_bytes",
    "init",
    "is_replicated",
    "launched",
    "pin_gpu",
    "run_elastic",
    "sent_bytes",
    "training_state",
    "world_of",
    "wrap_optimizer",
]

_world: World | None = None


def launched() -> bool:
    """Whether ``horovodrun`` started this process."""
    return "HOROVOD_RANK" in os.environ and "HOROVOD_SIZE" in os.environ


def init(require_horovod: bool = False) -> World:
    """The world of this process, the same object at every call. Call it before anything touches a GPU.

    Under ``horovodrun`` it is Horovod's; otherwise a single process. Each rank is pinned to the GPU of its local
    rank, with memory growth, a single process to the first GPU: see :func:`pin_gpu`.

    Args:
        require_horovod: use Horovod even without a launcher (a world of size 1).

    Raises:
        UserError: Horovod does not load under ``horovodrun`` (or when required), or there are more ranks than GPUs.
    """
    global _world
    if _world is None:
        world: World = SingleWorld()
        if launched() or require_horovod:
            from afm_ctr.distributed.horovod import HorovodWorld

            world = HorovodWorld()
        grow_gpu_memory()
        pin_gpu(world.local_rank, world.local_size)
        _world = world
    return _world
