"""The contents of a run's folder, and the data set to evaluate the run on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from afm_ctr.errors import UserError
from afm_ctr.io.files import read_json
from afm_ctr.io.secrets import without_secrets
from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training import TrainConfig
from afm_ctr.training.config import CONFIG
from afm_ctr.training.evaluation import check_readable
from afm_ctr.training.model_io import PROFILE, RUN
from afm_ctr.training.verdict import history_of


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as recorded in its folder."""

    folder: Path
    config: TrainConfig
    run: dict[str, Any]
    history: list[dict[str, Any]]  # one object per epoch, see ``history.jsonl``; empty during the first epoch
    profile: dict[str, Any] | None  # ``profile.json``, if a profile was taken

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read the folder; the run may be in progress. Raises UserError: no run, or a damaged file."""
        if not (folder / RUN).is_file() or not (folder / CONFIG).is_file():
            raise UserError(f"{folder} holds no training run (no {RUN} or {CONFIG}); afm-ctr train makes one")
        run, profile = without_secrets(read_json(folder / RUN)), None
        if "sessions" in run:
            run["sessions"] = [without_secrets(one) for one in run["sessions"]]
        if (folder / PROFILE).is_file():
            profile = read_json(folder / PROFILE)
        return cls(folder, TrainConfig.load(folder / CONFIG), run, history_of(folder), profile)

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """All ``train`` calls, oldest first."""
        return list(self.run.get("sessions") or [self.run])


@dataclasses.dataclass(frozen=True)
class Judged:
    """The data to evaluate a run on, if there is any."""

    folder: str | None = None  # of the data set; None: there is none
    manifest: Manifest | None = None
    split: str | None = None  # to evaluate on; None: there is no such split
    why_not: str = ""  # why ``folder`` or ``split`` is None: a sentence

    @classmethod
    def find(
        cls, record: RunRecord, schema: ResolvedSchema, data_dir: str | Path | None, split: str | None
    ) -> Judged:
        """The given data set, or else the run's own; the given split, or else test or validation.

        Raises:
            UserError: the given data set or split does not exist, or has another schema.
        """
        folder = str(data_dir if data_dir is not None else record.run.get("data", ""))
        try:
            manifest = Manifest.load(folder)
            check_readable(schema, ResolvedSchema.load(folder), folder)
        except UserError as error:
            if data_dir is not None:
                raise
            why = f"There is no figure of the model: the data set that it was trained on cannot be read ({error})."
            return cls(why_not=f"{why} Name it with --data.")
        if split is not None:
            manifest.shards_of(split)
            return cls(folder, manifest, split)
        validation = record.config.validation
        wanted = ["test", validation.split if validation is not None else "valid"]
        found = next((name for name in wanted if manifest.splits.get(name)), None)
        if found is None:
            there = ", ".join(f"{name} ({rows:,} rows)" for name, rows in manifest.splits.items()) or "none"
            why = (
                f"The data set has no rows in a split {' or '.join(wanted)}; its splits: {there}. Name one: --split."
            )
            return cls(folder, manifest, None, why)
        return cls(folder, manifest, found)
