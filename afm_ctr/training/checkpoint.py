"""The state of a run as a folder that is complete or does not exist.

    checkpoints/step-000000500/
        dense.npz                       every small variable: weights, seed generators, optimizer scalars
        tables/<name>/rows-<a>-<b>.<column>.npy           rows a..b-1 of a column of an embedding table
        tables/<name>/rows-<a>-<b>.<column>.<slot>.npy    the optimizer's slot of those rows
        checkpoint.json                 position, callbacks' state, sha256 and size of each file; last

The folder is written (:mod:`afm_ctr.training.snapshot`) under a name that starts with ``.tmp-``, flushed to the disk,
and renamed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.io.files import sha256_of
from afm_ctr.training.variables import LAST_SEEN, TableColumn, split_variables

MANIFEST = "checkpoint.json"
FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Position:
    """The step that comes next.

    Attributes:
        epoch: epochs that are complete.
        step_in_epoch: steps done of the epoch under way.
        step: steps done since the run began.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0


class DamagedCheckpoint(Exception):
    """The folder's content is not what its manifest says. The text names the file."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose manifest has been read."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def position(self) -> Position:
        return Position(**self.manifest["position"])

    @property
    def schema_id(self) -> str:
        return str(self.manifest["schema_id"])

    @property
    def state(self) -> dict[str, Any]:
        """What the snapshot was given as ``state``: callbacks' state and the like."""
        return dict(self.manifest["state"])

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the manifest and check every file against it.

        Raises:
            DamagedCheckpoint: a file is missing, of another size, or of another content.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            version, files = manifest["format_version"], manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{folder / MANIFEST}: {error}") from error
        if version != FORMAT_VERSION:
            raise UserError(f"{folder}: checkpoint format {version}; this version reads {FORMAT_VERSION}")
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                raise DamagedCheckpoint(f"{path} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(
                    f"{path} has {path.stat().st_size} bytes where {expected['bytes']} were written"
                )
            if sha256_of(path) != expected["sha256"]:
                raise DamagedCheckpoint(f"{path} has another content than was written")
        return cls(folder, manifest)

    def restore(self, model: keras.Model, *, optimizer: bool = True) -> None:
        """Put the values into a built model, and into its built optimizer unless ``optimizer`` is False.

        A table may have grown since (a descendant of the schema): the rows beyond the stored ones keep the
        initial values that they were built with, in the weights and in the slots.

        Raises:
            UserError: a variable is missing, or has another shape or type.
        """
        groups, columns = split_variables(model)
        with np.load(self.folder / "dense.npz", allow_pickle=False) as arrays:
            for group, variables in groups.items():
                if group == "optimizer" and not optimizer:
                    continue
                stored = self.manifest["dense"][group]
                if len(stored) != len(variables):
                    raise UserError(
                        f"{self.folder}: holds {len(stored)} {group} variables where this model has {len(variables)}"
                    )
                for number, variable in enumerate(variables):
                    value = arrays[f"{group}/{number}"]
                    if value.shape != tuple(variable.shape) or str(value.dtype) != variable.dtype:
                        raise UserError(
                            f"{self.folder}: {stored[number]} is {value.dtype} {list(value.shape)}, "
                            f"this model's {variable.path} is {variable.dtype} {list(variable.shape)}"
                        )
                    variable.assign(value)
        for column in columns:
            if column.slot is None or optimizer:
                self._restore_column(column)

    def marks_rows(self, table: str) -> bool:
        """Whether it says of each row of a table when it was touched last."""
        return LAST_SEEN in self.manifest["tables"][table]

    def extra(self) -> dict[str, np.ndarray]:
        """The arrays that the snapshot was given as ``extra``."""
        with np.load(self.folder / "dense.npz", allow_pickle=False) as arrays:
            return {name.removeprefix("extra/"): arrays[name] for name in arrays.files if name.startswith("extra/")}

    def _restore_column(self, column: TableColumn) -> None:
        stored = self.manifest["tables"].get(column.table, {}).get(column.key)
        if stored is None and column.key == LAST_SEEN:
            return  # a run that kept no marks
        if stored is None:
            raise UserError(f"{self.folder}: holds no column {column.key} of table {column.table}")
        rows, variable = stored["rows"], column.variable
        if rows > variable.shape[0] or stored["shape"][1:] != list(variable.shape[1:]):
            raise UserError(
                f"{self.folder}: {column.table}.{column.key} is {stored['shape']}, "
                f"this model's is {list(variable.shape)}"
            )
        for start, stop, name in stored["files"]:
            # Through the tf.Variable itself, so that a table is never held twice.
            variable.value[start:stop].assign(np.load(self.folder / name, mmap_mode="r", allow_pickle=False))
