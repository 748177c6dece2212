"""A copy of a run's state in memory, and how it becomes a checkpoint folder.

Taking the copy is all that the training waits for: :meth:`Snapshot.write` reads nothing that a step changes.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.errors import UserError
from afm_ctr.io.files import HashingWriter, new_folder
from afm_ctr.training.checkpoint import FORMAT_VERSION, MANIFEST, Checkpoint, Position
from afm_ctr.training.variables import TableColumn, split_variables

ROWS_PER_FILE = 1_000_000


class NotFinite(UserError):
    """A state with a number in it that is none."""


@dataclasses.dataclass(frozen=True)
class ColumnCopy:
    """The rows of one column of a table, or of a slot of it.

    Attributes:
        table: the table's name.
        key: of :class:`~afm_ctr.training.variables.TableColumn`.
        shape: ``[V, ...]``.
        blocks: the rows in order, ``[<= rows_per_file, ...]`` each, in host memory.
    """

    table: str
    key: str
    shape: list[int]
    blocks: list[tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that the run's next step depends on; made by :meth:`take`."""

    position: Position
    schema_id: str
    state: dict[str, Any]
    dense: dict[str, np.ndarray]
    names: dict[str, list[str]]
    columns: list[ColumnCopy]

    @classmethod
    def take(
        cls,
        model: keras.Model,
        position: Position,
        *,
        schema_id: str,
        state: Mapping[str, Any],
        extra: Mapping[str, np.ndarray] | None = None,
        rows_per_file: int = ROWS_PER_FILE,
    ) -> Snapshot:
        """Copy the variables of a model and its optimizer.

        Args:
            model: built and compiled with a built optimizer.
            position: the step that comes next.
            schema_id: id of the resolved schema of the data.
            state: whatever else, as JSON can hold it.
            extra: arrays beside the variables (running metric sums).
            rows_per_file: rows of a table in one file.
        """
        groups, columns = split_variables(model)
        dense = {f"extra/{name}": np.array(value) for name, value in (extra or {}).items()}
        for group, variables in groups.items():
            dense |= {f"{group}/{number}": np.array(variable) for number, variable in enumerate(variables)}
        return cls(
            position,
            schema_id,
            copy.deepcopy(dict(state)),
            dense,
            {group: [variable.path for variable in variables] for group, variables in groups.items()},
            [_copy(column, rows_per_file) for column in columns],
        )

    def write(self, folder: Path, progress: Callable[[], None] = lambda: None) -> Checkpoint:
        """Write it as a checkpoint: all of it or nothing.

        Args:
            folder: the folder to be; replaced when it exists.
            progress: called after every file.

        Raises:
            NotFinite: a value is not finite: such a state is of no use, and the one before it must stay.
            OSError: the folder cannot be written.
        """
        with new_folder(folder, overwrite=True) as temporary:
            manifest = self._fill(temporary, progress)
        return Checkpoint(folder, manifest)

    def _fill(self, temporary: Path, progress: Callable[[], None]) -> dict[str, Any]:
        """All files of the checkpoint, the manifest last, flushed to the disk."""
        files: dict[str, dict[str, Any]] = {}
        for name, value in self.dense.items():
            group, _, number = name.partition("/")
            self._check_finite(value, self.names[group][int(number)] if group in self.names else number)
        buffer = io.BytesIO()
        np.savez(buffer, **self.dense)  # type: ignore[arg-type]
        with HashingWriter(temporary / "dense.npz") as writer:
            writer.write(buffer.getbuffer())
        files["dense.npz"] = writer.content
        tables: dict[str, dict[str, Any]] = {}
        for column in self.columns:
            entry = self._write_column(temporary, column, files, progress)
            tables.setdefault(column.table, {})[column.key] = entry
        manifest = {
            "format_version": FORMAT_VERSION,
            "position": dataclasses.asdict(self.position),
            "schema_id": self.schema_id,
            "dense": self.names,
            "tables": tables,
            "state": self.state,
            "files": files,
        }
        with HashingWriter(temporary / MANIFEST) as last:
            last.write((json.dumps(manifest, indent=1) + "\n").encode())
        return manifest

    def _write_column(
        self, temporary: Path, column: ColumnCopy, files: dict[str, dict[str, Any]], progress: Callable[[], None]
    ) -> dict[str, Any]:
        names: list[Any] = []
        (temporary / "tables" / column.table).mkdir(parents=True, exist_ok=True)
        start = 0
        for block in column.blocks:
            values = np.asarray(memoryview(block))  # without a further copy
            self._check_finite(values, f"{column.table}.{column.key}")
            stop = start + len(values)
            name = f"tables/{column.table}/rows-{start}-{stop}.{column.key}.npy"
            with HashingWriter(temporary / name) as writer:
                np.lib.format.write_array(writer, values, allow_pickle=False)
            files[name] = writer.content
            names.append([start, stop, name])
            start = stop
            progress()
        return {"rows": start, "shape": column.shape, "files": names}

    def _check_finite(self, values: np.ndarray, name: str) -> None:
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise NotFinite(f"{name} is not finite after step {self.position.step}")


def _copy(column: TableColumn, rows_per_file: int) -> ColumnCopy:
    rows = int(column.variable.shape[0])
    blocks = []
    # A gather copies its rows and no others, where a slice first copies the whole variable.
    for start in range(0, rows, rows_per_file):
        with tf.device("CPU:0"):
            block = tf.gather(column.variable.value, tf.range(start, min(rows, start + rows_per_file)))
            blocks.append(tf.identity(block))
    return ColumnCopy(column.table, column.key, list(column.variable.shape), blocks)
