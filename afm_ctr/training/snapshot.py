"""A copy of a run's state, and how it is written as :mod:`afm_ctr.training.checkpoint` describes."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.errors import UserError
from afm_ctr.io.files import HashingWriter, new_folder
from afm_ctr.training.checkpoint import FORMAT_VERSION, MANIFEST, MIXED, SHARDED_VERSION, Checkpoint, Position
from afm_ctr.training.model_state import TableColumn, split_variables

ROWS_PER_FILE = 1_000_000


class NotFinite(UserError):
    """A state with a number that is not finite."""


@dataclasses.dataclass(frozen=True)
class ColumnCopy:
    """The rows of one column of a table, or of a slot of it; all rows or this rank's."""

    table: str
    key: str  # of :class:`~afm_ctr.training.model_state.TableColumn`
    shape: list[int]  # ``[V, ...]``
    # the rows in order, ``[<= rows_per_file, ...]`` each, in host memory; a rank's are copied one block at a time
    blocks: Iterable[tf.Tensor]
    start: int | None = None  # position of a rank's first row; None: all rows, by id


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that the run's next step depends on; see :meth:`take`."""

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
            state: other state, as JSON values.
            extra: arrays next to the variables (running metric sums).
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
            [_copy(column, rows_per_file) for column in columns if column.shards is None],
        )

    def write(self, folder: Path, progress: Callable[[], None] = lambda: None) -> Checkpoint:
        """Write it as a checkpoint, all or nothing. Sharded tables are not part of it.

        Args:
            folder: the final folder; an existing one is replaced.

        Raises:
            NotFinite: a value is not finite: such a state is useless, and the previous checkpoint must stay.
            OSError: the folder cannot be written.
        """
        self.check_finite()
        with new_folder(folder, overwrite=True) as temporary:
            manifest = self.fill(temporary, progress)
        return Checkpoint(folder, manifest)

    def check_finite(self) -> None:
        """Check that the small variables are finite. Raises :class:`NotFinite`."""
        for name, value in self.dense.items():
            group, _, number = name.partition("/")
            _check_finite(value, self.names[group][int(number)] if group in self.names else number, self.position)

    def fill(
        self, temporary: Path, progress: Callable[[], None], parts: Sequence[Written] | None = None
    ) -> dict[str, Any]:
        """Write all files of the checkpoint, the manifest last, flushed to disk; call :meth:`check_finite` before.

        Args:
            parts: the files of sharded tables that each rank has written there; None: there are none.

        Returns:
            The manifest.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **self.dense)  # type: ignore[arg-type]
        with HashingWriter(temporary / "dense.npz") as writer:
            writer.write(buffer.getbuffer())
        files: dict[str, dict[str, Any]] = {"dense.npz": writer.content}
        tables: dict[str, dict[str, Any]] = {}
        for part in [write_columns(temporary, self.columns, self.position, progress), *(parts or ())]:
            files |= part.files
            for table, entries in part.tables.items():
                for key, entry in entries.items():
                    kept = tables.setdefault(table, {}).setdefault(key, entry)
                    if kept is not entry:
                        kept["files"] += entry["files"]
        manifest = {
            "format_version": FORMAT_VERSION if parts is None else SHARDED_VERSION,
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


class Written(NamedTuple):
    """Written files of a checkpoint: ``{"sha256", "bytes"}`` by name, and the tables' part of a manifest."""

    files: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, Any]]


def write_columns(
    temporary: Path, columns: Iterable[ColumnCopy], position: Position, progress: Callable[[], None]
) -> Written:
    """Write the rows of columns, one file per block.

    Raises:
        NotFinite: a value is not finite.
        OSError: a file cannot be written.
    """
    written = Written({}, {})
    for column in columns:
        (temporary / "tables" / column.table).mkdir(parents=True, exist_ok=True)
        names: list[Any] = []
        start = column.start or 0
        for block in column.blocks:
            values = np.asarray(memoryview(block))  # without another copy
            _check_finite(values, f"{column.table}.{column.key}", position)
            stop = start + len(values)
            order = "rows" if column.start is None else MIXED
            name = f"tables/{column.table}/{order}-{start}-{stop}.{column.key}.npy"
            with HashingWriter(temporary / name) as writer:
                np.lib.format.write_array(writer, values, allow_pickle=False)
            written.files[name] = writer.content
            names.append([start, stop, name])
            start = stop
            progress()
        entry = {"rows": column.shape[0], "shape": column.shape, "files": names}
        if column.start is not None:
            entry["order"] = MIXED
        written.tables.setdefault(column.table, {})[column.key] = entry
    return written


def own_rows(model: keras.Model, rows_per_file: int = ROWS_PER_FILE) -> Iterator[ColumnCopy]:
    """This rank's rows of the sharded tables of a model and its optimizer, copied block by block as they are read."""
    for column in split_variables(model)[1]:
        if (shards := column.shards) is not None:
            shape = [shards.rows, *column.variable.shape[1:]]
            blocks = _blocks(column, shards.stop - shards.start, rows_per_file)
            yield ColumnCopy(column.table, column.key, shape, blocks, shards.start)


def _check_finite(values: np.ndarray, name: str, position: Position) -> None:
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise NotFinite(f"{name} is not finite after step {position.step}")


def _copy(column: TableColumn, rows_per_file: int) -> ColumnCopy:
    shape = list(column.variable.shape)
    return ColumnCopy(column.table, column.key, shape, list(_blocks(column, shape[0], rows_per_file)))


def _blocks(column: TableColumn, rows: int, rows_per_file: int) -> Iterator[tf.Tensor]:
    # A gather copies only its rows, where a slice first copies the whole variable.
    for start in range(0, rows, rows_per_file):
        with tf.device("CPU:0"):
            block = tf.gather(column.variable.value, tf.range(start, min(rows, start + rows_per_file)))
            yield tf.identity(block)
