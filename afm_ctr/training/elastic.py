"""A session whose ranks may come and go."""

from __future__ import annotations

from typing import Any

import keras

from afm_ctr.distributed import BroadcastVariables, ElasticState, HostsChanged
from afm_ctr.training.session import Session


class ElasticSession(Session):
    """A session that commits what it is to host memory, and goes on from a commit on other ranks.

    The position of a commit is the global step, and readers divide a step's rows by rank and size: so the records of
    an epoch are those of an undisturbed run. In a world that is not elastic it is a plain session.

    Args:
        elastic: of the run; its values are this session's.
        **of_session: see :class:`~afm_ctr.training.session.Session`.
    """

    def __init__(self, elastic: ElasticState, **of_session: Any) -> None:
        super().__init__(**of_session)
        self._elastic = elastic
        self._hosts_changed = False

    def begin(self) -> None:
        """The run begins, or goes on from a checkpoint that rank 0 has restored: all ranks get its variables."""
        if self.world.elastic:
            self._hand_over()
            self._elastic.begin()

    def go_on(self) -> None:
        """Take up the last commit, whose variables all ranks hold."""
        values = self._elastic.values
        self.speed = values["speed"]
        self.take_up(*values["run"])
        # Later checkpoints are forgotten now, and the one of an epoch's end may have died with its writer.
        super().save()

    def save(self) -> None:
        """Before an epoch's checkpoint comes its commit: what is written is never ahead of what is kept.

        If hosts have changed the epoch is ended in order first, and :meth:`fit` leaves afterwards.
        """
        if self.world.elastic and self.position.step_in_epoch == 0:
            self._hand_over()
            self._hosts_changed = self._elastic.keep()
        super().save()

    def fit(self) -> None:
        super().fit()
        if self._hosts_changed and self.ended is None:
            raise HostsChanged

    def step_done(self) -> None:
        """After all other callbacks: commit if it is time. The end of an epoch does so by itself."""
        self._elastic.count_step()
        if self._elastic.due and self.position.step_in_epoch < self.reader.steps_per_epoch:
            self._hand_over()
            self._elastic.commit()

    def _hand_over(self) -> None:
        self._elastic.values.update(run=self.state(), speed=self.speed)

    def _callbacks(self) -> list[keras.callbacks.Callback]:
        callbacks = super()._callbacks()
        if not self.world.elastic:
            return callbacks
        # All ranks hold the same variables already.
        others = [callback for callback in callbacks if not isinstance(callback, BroadcastVariables)]
        return [*others, _LastOfStep(self)]


class _LastOfStep(keras.callbacks.Callback):
    def __init__(self, session: ElasticSession) -> None:
        super().__init__()
        self._session = session

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._session.step_done()
