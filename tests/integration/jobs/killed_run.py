"""Train and be killed: ``killed_run.py DATA RUN CONFIG STEP [write]``.

SIGKILL comes right after step STEP has changed the weights, or with ``write`` in the middle of writing the first
checkpoint that is due at STEP or later, once the training has done a step beyond it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afm_ctr import distributed, training
from afm_ctr.training import snapshot
from afm_ctr.training.trainer import Trainer

data, run, config, step, *rest = sys.argv[1:]
counted, write_columns = Trainer.on_train_batch_end, snapshot.write_columns
at = 0
moved = threading.Condition()


def die(doing: str) -> None:
    print(f"killed {doing}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def count(self: Trainer, batch: int, logs: dict[str, Any] | None = None) -> None:
    global at
    with moved:
        at = self.position.step + 1
        moved.notify_all()
    if not rest and at == int(step):
        die(f"after step {at}")
    counted(self, batch, logs)


def write(folder: Path, columns: Any, position: snapshot.Position, progress: Callable[[], None]) -> Any:
    def after_a_block() -> None:
        if rest and position.step >= int(step):
            with moved:
                moved.wait_for(lambda: at > position.step, timeout=60)
                die(f"after step {at}, while step {position.step} was written")
        progress()

    return write_columns(folder, columns, position, after_a_block)


Trainer.on_train_batch_end = count  # type: ignore[method-assign]
snapshot.write_columns = write
training.train(data, run, training.TrainConfig.load(config), distributed.init())
