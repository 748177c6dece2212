"""The checkpoints of a run: the last few, the best one, and a thread that writes them."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras

from afm_ctr.distributed import World
from afm_ctr.errors import UserError
from afm_ctr.io.files import new_folder, remove_folder, remove_temporaries, write_json
from afm_ctr.training.checkpoint import Checkpoint, DamagedCheckpoint
from afm_ctr.training.snapshot import Snapshot, Written, own_rows, write_columns
from afm_ctr.training.supervisor import on_chief, on_every, unwritable, writing

BEST = "best.json"
_FOLDER = re.compile(r"step-(\d{9,})$")
_SECONDS_BETWEEN_LOOKS = 0.5


class CheckpointManager:
    """The checkpoints of a run: the last ``keep``, and the best one.

    Args:
        folder: holds ``step-…/`` and ``best.json``, which names the best by its step.
    """

    def __init__(self, folder: Path, keep: int = 3, warn: Callable[[str], None] = lambda text: None) -> None:
        self.folder = folder
        self.keep = keep
        self._warn = warn

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint, whether or not it exists."""
        return self.folder / f"step-{step:09d}"

    def steps(self) -> list[int]:
        """Steps of the folders, ascending, without unfinished ones."""
        if not self.folder.is_dir():
            return []
        found = (_FOLDER.match(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in found if match)

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint, None in an empty folder; damaged ones are reported and skipped.

        Raises:
            UserError: there are checkpoints and all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return Checkpoint.open(self.path(step))
            except DamagedCheckpoint as error:
                self._warn(f"the checkpoint of step {step} is damaged ({error}): going back to the one before it")
        if steps:
            raise UserError(f"{self.folder}: every checkpoint is damaged; train again with another --model-dir")
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint that ``best.json`` names, None if no epoch has been validated.

        Raises:
            UserError: it is missing or damaged. Using another one would silently change the model.
        """
        pointer = self.folder / BEST
        if not pointer.exists():
            return None
        try:
            return Checkpoint.open(self.path(int(json.loads(pointer.read_text(encoding="utf-8"))["step"])))
        except (DamagedCheckpoint, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"the best checkpoint is damaged ({error}); use the latest one instead") from error

    def mark_best(self, best: dict[str, Any] | None) -> None:
        """Write ``best.json``: ``{"step", "epoch", "metric", "value"}``; None removes it."""
        pointer = self.folder / BEST
        if best is None:
            pointer.unlink(missing_ok=True)
        else:
            write_json(pointer, best)

    def save(
        self, snapshot: Snapshot, best: dict[str, Any] | None, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Write a checkpoint, update ``best.json``, and remove the checkpoints that are no longer kept.

        Args:
            best: what :meth:`mark_best` writes; its step must be in the folder, or be this one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        snapshot.write(self.path(snapshot.position.step), progress)
        self._keep(best)

    def save_sharded(
        self,
        world: World,
        model: keras.Model,
        snapshot: Snapshot,
        best: dict[str, Any] | None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """The same for a model with a sharded table; all ranks must call it, and wait until it is complete.

        Each rank writes its own rows into the one folder, from its variables; rank 0 adds the rest, manifest last.

        Args:
            snapshot: of all other state; rank 0's is written.

        Raises:
            UserError: on every rank: a value is not finite, a file cannot be written, or rank 0 does not see a file.
        """
        at, run = snapshot.position, self.folder.parent
        with contextlib.ExitStack() as held:

            def begin() -> str:
                self.folder.mkdir(parents=True, exist_ok=True)
                return str(held.enter_context(new_folder(self.path(at.step), overwrite=True)))

            def end() -> None:
                for part in parts:
                    for name, content in part.files.items():
                        if not (seen := temporary / name).is_file() or seen.stat().st_size != content["bytes"]:
                            raise UserError(
                                f"{seen}: written by another rank and not seen by rank 0: --model-dir must be a "
                                "folder that all ranks share"
                            )
                snapshot.fill(temporary, progress, parts)
                held.close()
                self._keep(best)

            temporary = Path(on_chief(world, writing(run)(begin)))

            def own() -> Written:
                snapshot.check_finite()
                return write_columns(temporary, own_rows(model), at, progress)

            parts = on_every(world, writing(run)(own))
            on_chief(world, writing(run)(end))

    def _keep(self, best: dict[str, Any] | None) -> None:
        self.mark_best(best)
        stay = {*self.steps()[-self.keep :], *([int(best["step"])] if best else [])}
        self._remove(step for step in self.steps() if step not in stay)
        remove_temporaries(self.folder)

    def rewind(self, step: int, best: dict[str, Any] | None) -> None:
        """Remove the checkpoints after ``step``: the run continues from there and will write those steps again."""
        self._remove(later for later in self.steps() if later > step)
        self.mark_best(best)

    def _remove(self, steps: Iterable[int]) -> None:
        for step in list(steps):
            remove_folder(self.path(step))


class Saver:
    """Writes checkpoints in a background thread, one at a time. Only rank 0's is used.

    A failure to write is raised by the next call, or by :meth:`flush` at the run's end: the training continues until
    then, and the previous checkpoint stays.

    Args:
        beat: called while waiting for a writer that makes progress, for a watchdog.
    """

    def __init__(self, checkpoints: CheckpointManager, beat: Callable[[], None] = lambda: None) -> None:
        self._checkpoints = checkpoints
        self._beat = beat
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._files = 0

    def save(self, take: Callable[[], Snapshot], best: dict[str, Any] | None) -> None:
        """Take a snapshot and have it written; returns as soon as it is taken.

        First waits for the previous one, so that there is never more than one copy of the state in memory.

        Raises:
            UserError: the previous one could not be written, or its values are not finite.
        """
        self.flush()
        self._thread = threading.Thread(
            target=self._write, args=(take(), best), name="afm-ctr-checkpoint", daemon=True
        )
        self._thread.start()

    def flush(self) -> None:
        """Wait until everything is on disk. Raises UserError: see :meth:`save`."""
        self._wait()
        failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            raise unwritable(self._checkpoints.folder.parent, failure) from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait as :meth:`flush` does, but raise nothing: the run has another reason to end."""
        self._wait()

    def _wait(self) -> None:
        files = self._files
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(_SECONDS_BETWEEN_LOOKS)
            if files != self._files:  # a disk that hangs is left to the watchdog
                files = self._files
                self._beat()
        self._thread = None

    def _write(self, snapshot: Snapshot, best: dict[str, Any] | None) -> None:
        try:
            self._checkpoints.save(snapshot, best, self._count)
        except Exception as error:
            self._failure = error

    def _count(self) -> None:
        self._files += 1
