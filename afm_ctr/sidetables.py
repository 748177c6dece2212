"""Side tables in memory: lookup of rows by key, and normalised copies stored with data sets and models.

A copy is ``side/<table>.jsonl``: the first line names the key and the columns that the table adds, each further line
is a row of texts, sorted by the bytes of the keys. So its bytes depend only on the table's content.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.io.files import write_bytes
from afm_ctr.schema import FeatureSchema

TABLES_FOLDER = "side"

Rows = Iterable[tuple[bytes, ...]]  # the key and then one cell per column


class _Table:
    """One table in memory: the row number of each key, and every column with an empty cell after the last row."""

    def __init__(self, names: tuple[str, ...], rows: Rows) -> None:
        ordered = sorted(rows)
        self.size = len(ordered)
        self._place = {row[0]: place for place, row in enumerate(ordered)}
        self._columns: dict[str, np.ndarray] = {}
        for number, name in enumerate(names, 1):
            cells = np.full(self.size + 1, b"", object)
            cells[:-1] = [row[number] for row in ordered]
            self._columns[name] = cells

    def find(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        places = np.fromiter(map(self._place.get, keys, itertools.repeat(self.size)), np.int64, len(keys))
        return {name: cells[places] for name, cells in self._columns.items()}

    def to_bytes(self, key: str) -> bytes:
        names = list(self._columns)
        lines = [[key, *names]]
        for row in zip(self._place, *(self._columns[name] for name in names), strict=False):
            lines.append([cell.decode() for cell in row])
        return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


class SideTables:
    """The side tables of a schema. Read-only; one copy serves all batches of a process.

    Args:
        rows: the rows of every side table, with unique keys; cells are UTF-8.
    """

    def __init__(self, spec: FeatureSchema, rows: Mapping[str, Rows]) -> None:
        self._spec = spec
        self._tables = {name: _Table(table.names, rows[name]) for name, table in spec.side_tables.items()}

    def join(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The raw columns of a batch.

        Args:
            columns: object arrays [n] of bytes: the schema's ``log_columns``.

        Returns:
            The same for its ``raw_columns``; b"" where no row of a table has the key.
        """
        joined = dict(columns)
        for name, table in self._tables.items():
            joined.update(table.find(columns[self._spec.side_tables[name].key.log]))
        return {name: joined[name] for name in self._spec.raw_columns}

    def contents(self) -> dict[str, bytes]:
        """The copies: content by path within the folder of a data set or a model."""
        keys = {name: table.key.table for name, table in self._spec.side_tables.items()}
        return {f"{TABLES_FOLDER}/{name}.jsonl": table.to_bytes(keys[name]) for name, table in self._tables.items()}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the copies to a local folder."""
        for name, content in self.contents().items():
            write_bytes(Path(folder) / name, content)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], spec: FeatureSchema, read: Callable[[str], bytes] | None = None
    ) -> SideTables | None:
        """Read what :meth:`save` wrote; ``None`` for a schema without side tables.

        Args:
            read: reads a file, if the folder is not local.

        Raises:
            UserError: a copy is missing or damaged, or has other columns than the schema.
        """
        if not spec.side_tables:
            return None
        rows: dict[str, Rows] = {}
        for name, table in spec.side_tables.items():
            path = f"{os.fspath(folder)}/{TABLES_FOLDER}/{name}.jsonl"
            try:
                content = read(path) if read is not None else Path(path).read_bytes()
                head, *lines = (json.loads(line) for line in content.splitlines())
                rows[name] = [tuple(cell.encode() for cell in line) for line in lines]
            except FileNotFoundError:
                raise UserError(
                    f"{path}: no such file: the schema joins the side table '{name}', and its copy must be there"
                ) from None
            except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{path}: not a copy of a side table: {error}; prepare the data again") from None
            wanted = [table.key.table, *table.names]
            if head != wanted or any(len(row) != len(wanted) for row in rows[name]):
                raise UserError(f"{path}: must have the columns {', '.join(wanted)}; prepare the data again")
        return cls(spec, rows)
