"""Checks without TensorFlow, which takes seconds to load: missing files, runs and data sets, and wrong configs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afm_ctr.errors import UserError

if TYPE_CHECKING:
    from afm_ctr.training import TrainConfig


def check_inputs(
    *,
    data: Path | None = None,
    run: Path | None = None,
    config: Path | None = None,
    origin: Path | None = None,
) -> None:
    """Refuse a missing data set, run, config or run to continue with the message of the code that reads it.

    Ranks leave this to the command: there one rank's refusal reaches the others.

    Raises:
        UserError: one of them is missing.
    """
    if "HOROVOD_RANK" in os.environ:
        return
    if config is not None and (config.is_dir() or not config.exists()):  # it may be a pipe: --config <(sed …)
        what = "is a folder" if config.is_dir() else "no such file"
        raise UserError(f"{config}: {what}; name a training config with --config")
    if run is not None and not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no training run (no config.yaml); afm-ctr train makes one")
    if origin is not None and not any((origin / name).is_file() for name in ("config.yaml", "checkpoint.json")):
        raise UserError(f"--from-checkpoint {origin}: neither a run's folder (no config.yaml) nor a checkpoint's")
    if data is not None and not (data / "manifest.json").is_file():
        raise UserError(f"{data} is not a prepared data set: no manifest.json; run afm-ctr prepare")


def training_config(
    run: Path, config: Path | None, overrides: Sequence[str], origin: Path | None = None
) -> TrainConfig | None:
    """The config of a file, or without one that of :func:`afm_ctr.training.defaults.known_config`.

    Raises:
        UserError: an invalid file, override, model or model option.
    """
    from afm_ctr.models import check_model
    from afm_ctr.training.config import TrainConfig
    from afm_ctr.training.overrides import apply_overrides

    if config is not None:
        found = TrainConfig.load(config, list(overrides))
    else:
        apply_overrides(TrainConfig, {}, overrides)  # unknown keys are found without a data set
        from afm_ctr.training.defaults import known_config

        known = known_config(run, origin, overrides)
        if known is None:
            return None
        found = known
    check_model(found.model.name, found.model.options)
    return found
