"""Keras callbacks for a job with several ranks. All work in a single process too."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal

import keras
import numpy as np

from afm_ctr.distributed.optimizer import world_of
from afm_ctr.distributed.state import DistributedError, agreed_state, check_alike, checksum, training_state
from afm_ctr.distributed.steps import check_steps, end_epoch, end_training
from afm_ctr.distributed.world import World
from afm_ctr.errors import UserError


class BroadcastVariables(keras.callbacks.Callback):
    """Before the first step: build the optimizer, then copy rank 0's variables to every rank.

    These are weights, optimizer slots and counters, and the states of seed generators; sharded variables are skipped.
    It also checks that all ranks take equally many steps: see :mod:`afm_ctr.distributed.steps`.

    Raises (with more than one rank):
        UserError: as training begins: the model is not built, its optimizer is not wrapped, or it was compiled with
            ``jit_compile``.
        DistributedError: as training begins: the ranks' variables differ in number, shape or dtype, or they expect
            unequal numbers of batches. As an epoch or the training ends: this rank has ended it, others have not.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self._epochs = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        if self.world.size > 1:
            if not model.built:
                raise UserError("the model is not built: call it on a batch, or give its input's shape, before fit")
            if world_of(model.optimizer) is None:
                raise UserError(
                    "the optimizer is not wrapped, so no gradient would be exchanged: compile with "
                    "distributed.wrap_optimizer(optimizer, world)"
                )
            if model.jit_compile:
                raise UserError("Horovod's operations do not compile under XLA: compile with jit_compile=False")
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        if self.world.size > 1:
            state = training_state(model)
            check_alike(self.world, state)
            check_steps(self.world, (self.params or {}).get("steps"))
            self.world.broadcast_variables(list(state.values()))
        self._epochs = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epochs += 1
        end_epoch(self.model.optimizer)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._epochs:
            end_training(self.model.optimizer)


class LearningRateSchedule(keras.callbacks.Callback):
    """The learning rate as a function of the step: a linear rise, then ``target``, or a decay to the run's end.

    Steps count from 1. Step t of the first ``warmup_steps`` uses start + (target - start) t / warmup_steps. Without
    ``decay`` the callback then leaves the rate alone, so that others may lower it. With it, the n-th of the m
    remaining steps uses target · (1 - x) (``linear``) or target · (1 + cos πx) / 2 (``cosine``; Loshchilov, Hutter:
    SGDR, ICLR 2017, equation 5, without restarts) with x = (n - 1) / m: the last rate is small and never 0.

    The rate is never scaled by the number of ranks, unless ``start="one_rank"`` or the given ``target`` does so.

    Args:
        world: for its size, and so that only rank 0 prints.
        target: the rate to reach.
        warmup_steps: number of steps of the rise; 0 = none.
        start: ``zero``, or ``one_rank`` = target / number of ranks (Goyal et al., "Accurate, Large Minibatch SGD",
            2017, section 2.2), or a number.
        decay: how the rate falls after the rise; None: it does not.
        total_steps: of the run, at which the decay ends.
        verbose: whether rank 0 prints one line about it as training begins.

    Raises:
        UserError: a negative number of steps, no step left for the decay after the rise, or (as training begins) an
            optimizer with its own schedule.
    """

    def __init__(
        self,
        world: World,
        target: float,
        warmup_steps: int = 0,
        start: float | Literal["zero", "one_rank"] = "zero",
        decay: Literal["linear", "cosine"] | None = None,
        total_steps: int = 0,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise UserError(f"warm-up steps: {warmup_steps} is negative")
        if decay is not None and total_steps <= warmup_steps:
            raise UserError(
                f"{decay} decay: the run's {total_steps} steps end within its {warmup_steps} of warm-up: take fewer"
            )
        self.warmup_steps, self.decay, self.total_steps = warmup_steps, decay, total_steps
        self.target = float(target)
        self.start = {"zero": 0.0, "one_rank": self.target / world.size}[start] if isinstance(start, str) else start
        self.step = 0
        self._begun = 0
        self._speaks = verbose and world.is_chief

    def get_state(self) -> dict[str, Any]:
        """The number of steps taken, for a checkpoint."""
        return {"step": self.step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`get_state` left off."""
        self.step = int(state["step"])

    def rate(self, step: int) -> float:
        """The learning rate of the step with this number, counted from 1."""
        if step <= self.warmup_steps:
            return self.start + (self.target - self.start) * step / self.warmup_steps
        if self.decay is None:
            return self.target
        done = min(1.0, (step - 1 - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.target * ((1 - done) if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2)

    def describe(self) -> str | None:
        """The schedule ahead, in words; None if the rate is constant."""
        ahead = []
        if self.step < self.warmup_steps:
            done = f", {self.step:,} of them done" if self.step else ""
            ahead.append(f"rises from {self.start:g} to {self.target:g} over {self.warmup_steps:,} steps{done}")
        if self.decay is not None and self.step < self.total_steps:
            ahead.append(f"falls from {self.target:g} to 0 by step {self.total_steps:,} ({self.decay})")
        return ", then ".join(ahead) or None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        ahead = self.describe()
        if ahead is None:
            return
        if not isinstance(self.model.optimizer._learning_rate, keras.Variable):
            raise UserError("this sets the learning rate itself: give the optimizer a number, not a schedule")
        if self._speaks:
            print(f"learning rate: {ahead}", flush=True)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._begun = batch
        if self.step < self.warmup_steps or self.decay is not None:
            self.model.optimizer.learning_rate = self.rate(self.step + 1)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += batch - self._begun + 1  # more than one with steps_per_execution


class DriftCheck(keras.callbacks.Callback):
    """Compare checksums of the replicated variables over the ranks every few steps and as training ends.

    For a sharded table, whose rows differ by rank, the ranks compare who owns which rows.

    It reads every variable once: about a second per gigabyte. Ranks are expected to be bit-identical: they step on
    the same reduced gradients, and what this package adds after the exchange has a fixed order, on GPUs too.

    Args:
        every: steps between checks.

    Raises (on every rank alike, in one line):
        DistributedError: naming the first variable that drifted and the ranks that differ.
    """

    def __init__(self, world: World, every: int = 1000) -> None:
        super().__init__()
        if every < 1:
            raise UserError(f"drift check: every {every} steps is less than 1")
        self.world = world
        self.every = every
        self._step = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step += 1
        if self._step % self.every == 0:
            self.check()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.check()

    def check(self) -> None:
        """Compare now; all ranks must call it."""
        if self.world.size == 1:
            return
        found = {name: checksum(variable) for name, variable in agreed_state(self.model).items()}
        for variable in self.model.variables:
            if hasattr(variable, "shards"):
                found[f"{variable.path} (who owns its rows)"] = variable.shards.digest()
        everyone = self.world.allgather_numpy(np.array(list(found.values()), np.int64))
        for number, name in enumerate(found):
            sums = [int(theirs[number]) for theirs in everyone]
            if len(set(sums)) > 1:
                common, votes = Counter(sums).most_common(1)[0]
                if 2 * votes > len(sums):
                    apart = ", ".join(str(rank) for rank, value in enumerate(sums) if value != common)
                    where = f"rank {apart} holds other values than the rest"
                else:
                    groups = sorted([rank for rank, value in enumerate(sums) if value == kind] for kind in set(sums))
                    where = "rank " + " and rank ".join(", ".join(map(str, group)) for group in groups) + " disagree"
                raise DistributedError(
                    f"variable {name} has drifted apart after {self._step} steps: {where}; something changes it "
                    "outside the exchange (another callback, an unwrapped optimizer, a random operation, or on GPUs "
                    "an operation that is not deterministic: try TF_DETERMINISTIC_OPS=1)"
                )
