"""The folder of a run: its files, and whether a run may begin or resume there."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from afm_ctr.errors import UserError
from afm_ctr.installed import versions_of
from afm_ctr.io.files import exclusive_lock, read_json, remove_temporaries, write_json, write_text
from afm_ctr.io.secrets import mask_words, without_secrets
from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.checkpoint import Checkpoint
from afm_ctr.training.checkpoint_manager import CheckpointManager
from afm_ctr.training.config import CONFIG, TrainConfig
from afm_ctr.training.model_io import CHECKPOINTS, RUN
from afm_ctr.training.progress import Say

# Packages that a run's figures depend on.
PACKAGES = ("afm-ctr", "tensorflow", "keras", "horovod", "numpy")


def data_id(manifest: Manifest, split: str) -> str:
    """16 hexadecimal digits that change when the rows of a split or their order do."""
    content = [[shard.file, shard.rows, shard.sha256] for shard in manifest.shards_of(split)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def machine() -> dict[str, Any]:
    """This machine's ``processor``, ``cores``, ``system``, and ``gpus``, which TensorFlow may use."""
    import tensorflow as tf

    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):  # not Linux, or a processor without a name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", "unknown")
            for gpu in tf.config.get_visible_devices("GPU")
        ],
    }


@dataclasses.dataclass(frozen=True)
class RunDir:
    """A run's folder.

    It holds ``config.yaml``, ``schema.yaml`` with ``vocab/``, ``run.json``, ``history.jsonl``, ``checkpoints/`` and
    ``tensorboard/``. ``run.json`` is written first: a folder that holds it is a run's.
    """

    path: Path

    def checkpoints(self, keep: int, warn: Say) -> CheckpointManager:
        """The run's checkpoints."""
        return CheckpointManager(self.path / CHECKPOINTS, keep, warn)

    def check(
        self, config: TrainConfig, schema: ResolvedSchema, data: str, resume: Literal["auto", "never"], warn: Say
    ) -> Checkpoint | None:
        """The checkpoint that the run resumes from; None if it begins. Raises if it may do neither here.

        Args:
            data: :func:`data_id` of the train split.

        Raises:
            UserError: the folder is used for something else, the config would make it another run, the data has a
                foreign schema, or other data is given in the middle of an epoch.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--model-dir {self.path} is a file")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return None
        if resume == "never":
            raise UserError(
                f"--resume never: {self.path} is not empty; name a new --model-dir, or resume there by --resume auto"
            )
        if not (self.path / RUN).is_file():
            raise UserError(f"{self.path} is not empty and holds no run (no {RUN}); name a new --model-dir")
        if not (self.path / CONFIG).is_file():
            return None  # interrupted while it was being set up
        difference = config.changed_from(TrainConfig.load(self.path / CONFIG))
        if difference is not None:
            raise UserError(
                f"{self.path} was trained with another config ({difference}); undo the change, or name a new "
                "--model-dir"
            )
        checkpoint = self.checkpoints(config.checkpoint.keep, warn).latest()
        known = ResolvedSchema.load(self.path).id if checkpoint is None else checkpoint.schema_id
        if not schema.descends_from(known):
            raise UserError(
                f"foreign schema: the data has {schema.id}, the run in {self.path} was started with {known}; "
                f"prepare the data with the schema.yaml of the run, or name a new --model-dir"
            )
        if checkpoint is not None and checkpoint.position.step_in_epoch and checkpoint.state["data_id"] != data:
            raise UserError(
                f"the data changed in the middle of epoch {checkpoint.position.epoch + 1} of the run in {self.path}: "
                "finish the epoch on the old data first (--set epochs=…)"
            )
        return checkpoint

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and lock it: one run at a time. The system releases the lock however the process ends.

        Raises:
            UserError: another process is training there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(
            self.path, f"another process is training in {self.path}: wait for it or name another one"
        ):
            yield

    def record(
        self, config: TrainConfig, schema: ResolvedSchema, session: dict[str, Any], command: Sequence[str]
    ) -> None:
        """Write the config, the schema and ``run.json``; a resumed run adds a session to ``run.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.path)
        sessions: list[dict[str, Any]] = []
        path = self.path / RUN
        if path.is_file():
            try:
                sessions = [without_secrets(one) for one in read_json(path)["sessions"]]
            except (KeyError, TypeError) as error:
                raise UserError(f"{path} is damaged: {error}") from error
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"started": now, "command": mask_words(command), "versions": versions_of(*PACKAGES)}
        entry |= {"machine": machine(), "schema_id": schema.id, **session}
        run = {"format_version": 1, **entry, "seed": config.seed, "config": config.model_dump(mode="json")}
        write_json(path, {**run, "sessions": [*sessions, entry]})
        schema.save(self.path)
        write_text(self.path / CONFIG, config.to_yaml())
