"""Refusals that need no TensorFlow, which takes seconds to load: no such file, run or data set, a wrong config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from afm_ctr.errors import UserError


def check_inputs(
    *, data: Path | None = None, run: Path | None = None, config: Path | None = None, overrides: Sequence[str] = ()
) -> None:
    """Refuse a data set, run or config that is not there, and keys that no config has, as those who read them would.

    Ranks leave it to the command itself: there one rank's refusal is made known to the others.

    Raises:
        UserError: one of them is not there, or the config is refused.
    """
    if "HOROVOD_RANK" in os.environ:
        return
    if config is not None and not config.is_file():
        raise UserError(f"{config}: no such file; name a training config with --config")
    if run is not None and ":/" not in str(run) and not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no training run (no config.yaml); afm-ctr train makes one")
    if data is not None and ":/" not in str(data) and not (data / "manifest.json").is_file():
        raise UserError(f"{data} is not a prepared data set: no manifest.json; run afm-ctr prepare")
    if config is not None or overrides:
        from afm_ctr.training.config import TrainConfig
        from afm_ctr.training.overrides import apply_overrides

        if config is not None:
            TrainConfig.load(config, list(overrides))
        else:  # what they will be set over is not known yet, and so not whether all fits together
            apply_overrides(TrainConfig, {}, overrides)
