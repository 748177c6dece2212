"""Train and be killed: ``killed_run.py DATA RUN CONFIG STEP [write]``.

SIGKILL comes right after step STEP has changed the weights, or with ``write`` in the middle of writing the first
checkpoint that is due at STEP or later.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from afm_ctr import distributed, training
from afm_ctr.training import checkpoint
from afm_ctr.training.session import Session

data, run, config, step, *rest = sys.argv[1:]
counted, write_column = Session.on_train_batch_end, checkpoint._write_column
at = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count(self: Session, batch: int, logs: dict[str, Any] | None = None) -> None:
    global at
    at = self.position.step + 1
    if not rest and at == int(step):
        die()
    counted(self, batch, logs)


def write(*arguments: Any) -> dict[str, Any]:
    written = write_column(*arguments)
    if rest and at >= int(step):
        die()
    return written


Session.on_train_batch_end = count  # type: ignore[method-assign]
checkpoint._write_column = write
training.train(data, run, training.TrainConfig.load(config), distributed.init())
