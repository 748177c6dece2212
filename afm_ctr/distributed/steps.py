"""Checks that all ranks take equally many steps: each step is one of all ranks together.

A rank with an extra batch would exchange the gradient of another epoch than the others, or wait forever.
"""

from __future__ import annotations

from typing import Any

from afm_ctr.distributed.exchange import UNEVEN
from afm_ctr.distributed.optimizer import exchange_of
from afm_ctr.distributed.state import DistributedError
from afm_ctr.distributed.world import World

# A rank's summand: so far apart that no mixture of ranks adds up to the sum of all ranks with one kind.
_EPOCH, _TRAINING = 1, 1 << 20


def check_steps(world: World, steps: int | None) -> None:
    """Check that all ranks expect equally many batches per epoch; all must call it, before the first step.

    Args:
        steps: of this rank; None if unknown (then :func:`end_epoch` checks).

    Raises:
        DistributedError: the numbers differ.
    """
    if world.size == 1:
        return
    everyone = world.allgather_object(steps)
    known = [(rank, theirs) for rank, theirs in enumerate(everyone) if theirs is not None]
    for rank, theirs in known:
        first, expected = known[0]
        if theirs != expected:
            raise DistributedError(
                f"rank {first} has {expected} batches per epoch and rank {rank} has {theirs}: {UNEVEN}"
            )


def end_epoch(optimizer: Any) -> None:
    """Check that all ranks have ended their epoch; every rank calls it after its last step.

    In a custom training loop it keeps ranks from running into the next epoch while others have batches left. Under
    ``fit`` :class:`BroadcastVariables` and :class:`Commits` call it. It costs an exchange without rows.

    Args:
        optimizer: from :func:`wrap_optimizer`.

    Raises:
        DistributedError: other ranks have batches left, or this rank has never taken a step. The step of those ranks
            fails with ``tf.errors.InvalidArgumentError``.
    """
    _end(optimizer, _EPOCH)


def end_training(optimizer: Any) -> None:
    """The same after the last epoch: some ranks may have stopped early."""
    _end(optimizer, _TRAINING)


def _end(optimizer: Any, what: int) -> None:
    exchange = exchange_of(optimizer)
    if exchange is None or exchange.world.size == 1:
        return
    if not exchange.traced:
        raise DistributedError(f"rank {exchange.world.rank} has ended an epoch without a batch: {UNEVEN}")
    if exchange.finish(what) != what * exchange.world.size:
        kind = "an epoch" if what == _EPOCH else "the training"
        raise DistributedError(
            f"rank {exchange.world.rank} has ended {kind} after step {int(optimizer.iterations.numpy())}, other "
            f"ranks continue: {UNEVEN}"
        )
