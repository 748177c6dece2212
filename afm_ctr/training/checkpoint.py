"""The state of a run as a folder that is either complete or absent.

    checkpoints/step-000000500/
        dense.npz                       every small variable: weights, seed generators, optimizer scalars
        tables/<name>/rows-<a>-<b>.<column>.npy           rows a..b-1 of a column of an embedding table
        tables/<name>/rows-<a>-<b>.<column>.<slot>.npy    the optimizer's slot of those rows
        tables/<name>/mixed-<a>-<b>.….npy                 of a sharded table: the rows at positions a..b-1
        checkpoint.json                 position, callbacks' state, sha256 and size of each file; written last

Positions are those of :class:`~afm_ctr.row_shards.RowShards`: a rank's rows are a range of them, for any number of
ranks. A table reads the rows that it stores from either order, block by block.

A :class:`~afm_ctr.training.snapshot.Snapshot` is written under a name that starts with ``.tmp-``, flushed to disk,
and renamed; a :class:`Checkpoint` is such a folder, verified.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.embedding import assign_rows
from afm_ctr.errors import UserError
from afm_ctr.io.files import sha256_of
from afm_ctr.optimizers.average import AVERAGE, Average, add_average
from afm_ctr.row_shards import RowShards, unmix
from afm_ctr.training.model_state import LAST_SEEN, TableColumn, split_variables

MANIFEST = "checkpoint.json"
MIXED = "mixed"  # the order of a sharded table's rows
FORMAT_VERSION, SHARDED_VERSION = 2, 3
_ROWS_PER_READ = 1 << 18


@dataclasses.dataclass(frozen=True)
class Position:
    """The position of a run: which step comes next."""

    epoch: int = 0  # complete epochs
    step_in_epoch: int = 0  # steps done in the current epoch
    step: int = 0  # steps done since the run began


class DamagedCheckpoint(Exception):
    """The folder's content does not match its manifest. The text names the file."""


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
        """The ``state`` that the snapshot was taken with: callbacks' state and the like."""
        return dict(self.manifest["state"])

    @property
    def sharded(self) -> bool:
        """Whether each rank wrote its own rows."""
        return bool(self.manifest["format_version"] == SHARDED_VERSION)

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Checkpoint:
        """Read the manifest and check every file against it; ``verify=False``: another rank has checked the files.

        Raises:
            DamagedCheckpoint: a file is missing, or has another size or content.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            version, files = manifest["format_version"], manifest["files"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedCheckpoint(f"{folder / MANIFEST}: {error}") from error
        if version not in (FORMAT_VERSION, SHARDED_VERSION):
            raise UserError(
                f"{folder}: checkpoint format {version}; this version reads {FORMAT_VERSION} and {SHARDED_VERSION}"
            )
        for name, expected in files.items() if verify else ():
            path = folder / name
            if not path.is_file():
                raise DamagedCheckpoint(f"{path} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(
                    f"{path} has {path.stat().st_size} bytes where {expected['bytes']} were written"
                )
            if sha256_of(path) != expected["sha256"]:
                raise DamagedCheckpoint(f"{path} has other content than was written")
        return cls(folder, manifest)

    def restore(self, model: keras.Model, *, optimizer: bool = True) -> None:
        """Load the values into a built model, and into its built optimizer unless ``optimizer`` is False.

        A table may have grown since (its schema descends from the stored one): the new rows keep their initial
        values, in the weights and in the slots.

        Raises:
            UserError: a variable is missing, or has another shape or type.
        """
        groups, _ = split_variables(model)
        with self._dense() as arrays:
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
        self.restore_tables(model, optimizer=optimizer)

    def restore_tables(self, model: keras.Model, *, optimizer: bool = True) -> None:
        """The tables' part of :meth:`restore`: this rank's rows, read block by block."""
        for column in split_variables(model)[1]:
            if column.slot is None or optimizer:
                self._restore_column(column)

    def restore_averages(self, model: keras.Model, average: Average) -> None:
        """Replace a model's weights, given by :meth:`restore`, by the averages that the optimizer kept of them.

        Raises:
            UserError: it kept none.
        """
        groups, columns = split_variables(model)
        with self._dense() as arrays:
            places = self._optimizer_places()
            scale = average.scale(int(arrays[places["iteration"]]))
            for path, variable in zip(self.manifest["dense"]["model"], groups["model"], strict=True):
                slot = f"{path.replace('/', '_')}_{AVERAGE}"
                if slot in places:  # seed generators have none
                    add_average(variable, arrays[places[slot]], scale)
        for column in columns:
            if column.key != LAST_SEEN and column.slot is None:
                slot = keras.Variable(tf.zeros_like(column.variable.value), dtype=column.variable.dtype)
                self._restore_column(dataclasses.replace(column, slot=AVERAGE, variable=slot))
                add_average(column.variable, slot.value, scale)

    def average_scale(self, average: Average) -> float:
        """The factor of the averages' slots: see :meth:`Average.scale`."""
        with self._dense() as arrays:
            return average.scale(int(arrays[self._optimizer_places()["iteration"]]))

    def _dense(self) -> Any:
        return np.load(self.folder / "dense.npz", allow_pickle=False)

    def _optimizer_places(self) -> dict[str, str]:
        names = self.manifest["dense"]["optimizer"]
        return {path.rpartition("/")[2]: f"optimizer/{n}" for n, path in enumerate(names)}

    def marks_rows(self, table: str) -> bool:
        """Whether it stores for each row of a table the step that last touched it."""
        return LAST_SEEN in self.manifest["tables"].get(table, {})

    @property
    def width(self) -> int:
        """Numbers per row of the tables, without slots and marks."""
        columns = [
            entry
            for table in self.manifest["tables"].values()
            for key, entry in table.items()
            if "." not in key and key != LAST_SEEN
        ]
        return sum(int(np.prod(entry["shape"][1:])) for entry in columns)

    def extra(self) -> dict[str, np.ndarray]:
        """The ``extra`` arrays that the snapshot was taken with."""
        with self._dense() as arrays:
            return {name.removeprefix("extra/"): arrays[name] for name in arrays.files if name.startswith("extra/")}

    def column(self, table: str, key: str, shape: list[int]) -> dict[str, Any]:
        """The manifest's entry for a column of a table, or for a slot: ``rows``, ``files``, and perhaps ``order``.

        Args:
            key: of :class:`~afm_ctr.training.model_state.TableColumn`.
            shape: of the whole column in the model, which may have more rows.

        Raises:
            UserError: there is no such column, or it does not fit the shape.
        """
        stored: dict[str, Any] | None = self.manifest["tables"].get(table, {}).get(key)
        if stored is None:
            raise UserError(f"{self.folder}: holds no column {key} of table {table}")
        if stored["rows"] > shape[0] or stored["shape"][1:] != shape[1:]:
            raise UserError(f"{self.folder}: {table}.{key} is {stored['shape']}, this model's is {shape}")
        return stored

    def _restore_column(self, column: TableColumn) -> None:
        if column.key == LAST_SEEN and not self.marks_rows(column.table):
            return  # the run kept no marks
        variable, shards = column.variable, column.shards
        whole = variable.shape[0] if shards is None else shards.rows
        stored = self.column(column.table, column.key, [whole, *variable.shape[1:]])
        rows, mixed = stored["rows"], stored.get("order") == MIXED
        for start, stop, name in stored["files"]:
            values = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            if shards is None and not mixed:
                assign_rows(variable.value, start, values)
            elif shards is not None and mixed and rows == shards.rows:
                first, last = max(start, shards.start), min(stop, shards.stop)
                if first < last:
                    assign_rows(variable.value, first - shards.start, values[first - start : last - start])
            else:
                _scatter(variable, values, start, rows if mixed else None, shards)


def _scatter(
    variable: keras.Variable, values: np.ndarray, start: int, mixed: int | None, shards: RowShards | None
) -> None:
    """Assign rows to a variable, as far as it stores them.

    Args:
        values: of the rows from ``start`` on.
        mixed: the number of rows of the table if places are positions; None: they are ids.
        shards: the rows that the variable stores; None: all, by id.
    """
    for first in range(0, len(values), _ROWS_PER_READ):
        some = values[first : first + _ROWS_PER_READ]
        places = np.arange(start + first, start + first + len(some))
        ids = places if mixed is None else unmix(places, mixed)
        if shards is not None:
            ids = shards.positions(ids)
            mine = (ids >= shards.start) & (ids < shards.stop)
            ids, some = ids[mine] - shards.start, some[mine]
        variable.value.scatter_update(tf.IndexedSlices(tf.constant(some), tf.constant(ids)))
