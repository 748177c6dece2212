"""Refusals that need no TensorFlow, which takes seconds to load: no such file, run or data set."""

from __future__ import annotations

import os
from pathlib import Path

from afm_ctr.errors import UserError


def check_inputs(*, data: Path | None = None, run: Path | None = None, config: Path | None = None) -> None:
    """Refuse a data set, run or config that is not there, in the words of those who read them.

    Ranks leave it to the command itself: there one rank's refusal is made known to the others.

    Raises:
        UserError: one of them is not there.
    """
    if "HOROVOD_RANK" in os.environ:
        return
    if config is not None and not config.is_file():
        raise UserError(f"{config}: no such file; name a training config with --config")
    if run is not None and ":/" not in str(run) and not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no training run (no config.yaml); afm-ctr train makes one")
    if data is not None and ":/" not in str(data) and not (data / "manifest.json").is_file():
        raise UserError(f"{data} is not a prepared data set: no manifest.json; run afm-ctr prepare")
