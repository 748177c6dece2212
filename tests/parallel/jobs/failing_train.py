"""``failing_train.py HOW ARGUMENTS...``: ``afm-ctr ARGUMENTS`` in which one rank fails after step 8, as told.

``killed``, ``stopped``, ``stuck``, ``memory`` and ``signal`` befall the last rank, ``disk`` rank 0, others nobody.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from afm_ctr.cli.main import main
from afm_ctr.training.trainer import Trainer

how = sys.argv.pop(1)
counted = Trainer.on_train_batch_end


def count(self: Trainer, batch: int, logs: dict[str, Any] | None = None) -> None:
    if self.position.step == 7 and self.world.rank == (0 if how == "disk" else self.world.size - 1):
        fail()
    counted(self, batch, logs)


def fail() -> None:
    print(f"fails at {time.time()}", flush=True)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    if how == "stuck":
        time.sleep(600)
    if how == "disk":  # from now on no file takes more than so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    if how == "memory":  # nothing more can be had of the system
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now, resource.RLIM_INFINITY))


Trainer.on_train_batch_end = count  # type: ignore[method-assign]
main()
