"""Reads the user's side tables; a key may occur only once."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.io.paths import expand
from afm_ctr.rawlog.log import parse_log
from afm_ctr.rawlog.parser import ParsedLines
from afm_ctr.rawlog.types import ColumnTypes, word_columns
from afm_ctr.schema import FLAG_SEPARATOR, FeatureSchema, JoinedColumn, read_yaml
from afm_ctr.sidetables import SideTables
from serving.tensors import objects

_SET, _NOT_SET = (b"1", b"true"), (b"", b"0", b"false")

Find = Callable[[str], AbstractContextManager[Sequence[str]]]


@contextmanager
def local_files(pattern: str) -> Iterator[Sequence[str]]:
    """The files that match a path or glob of the local file system, sorted."""
    yield expand(pattern)


def read_side_tables(
    spec: FeatureSchema, folder: str | os.PathLike[str], find: Find = local_files
) -> SideTables | None:
    """Read the side tables of a schema from the paths in it; ``None`` if it has none.

    Args:
        folder: base of relative paths: the schema file's folder.
        find: context manager that gives the local files of a path or glob.

    Raises:
        UserError: no such file, a bad line, an empty or repeated key, or a flag that is neither 0 nor 1.
    """
    if not spec.side_tables:
        return None
    rows = {}
    for name, table in spec.side_tables.items():
        remote = "://" in table.input
        with find(table.input if remote else os.path.join(folder, table.input)) as paths:
            if not paths:
                raise UserError(f"side_tables.{name}.input: no file matches {table.input} (from {os.fspath(folder)})")
            found: dict[bytes, tuple[bytes, ...]] = {}
            words = word_columns(spec) & {column.name for column in table.columns if not column.flags}
            types = ColumnTypes({table.key.table} | words)
            for path in paths:
                _read(spec, name, path, found, types)
            rows[name] = list(found.values())
    return SideTables(spec, rows)


def side_tables_beside(schema: str | Path, spec: FeatureSchema, find: Find = local_files) -> SideTables | None:
    """The side tables of a schema file: the copies next to a resolved schema, or the tables that the user's names.

    Args:
        schema: path of a feature schema or a resolved one, or the folder of a data set or model.
        find: as in :func:`read_side_tables`.

    Raises:
        UserError: as in :func:`read_side_tables` and :meth:`SideTables.load`.
    """
    path = Path(schema)
    if not spec.side_tables:
        return None
    if path.is_dir():
        return SideTables.load(path, spec)
    content = read_yaml(path)
    resolved = isinstance(content, dict) and "format_version" in content
    return SideTables.load(path.parent, spec) if resolved else read_side_tables(spec, path.parent, find)


def _read(
    schema: FeatureSchema, name: str, path: str, found: dict[bytes, tuple[bytes, ...]], types: ColumnTypes
) -> None:
    """Add the rows of a file of the side table ``name``."""
    table = schema.side_tables[name]
    missing = frozenset(text.encode() for text in schema.missing_values)
    fields = [
        {"name": column, "kind": "categorical", "encoding": {"kind": "hash", "buckets": 1}}
        for column in table.table_columns
    ]
    spec = FeatureSchema.model_validate({"name": name, "format": table.format, "fields": fields})
    for parsed in parse_log(path, spec, labelled=False, encoding=table.encoding, types=types):
        for reject in parsed.rejects:
            if reject.reason != "empty_line":
                said = f"{reject.reason}: {reject.detail}" if reject.detail else reject.reason
                raise UserError(f"side_tables.{name}: {path}, line {reject.line}: {said}")
        keys = parsed.columns[table.key.table]
        cells = [_cells(name, column, parsed, missing) for column in table.columns]
        for place, (key, *row) in enumerate(zip(keys, *cells, strict=True)):
            if not key or key in missing or key in found:
                what = f"a second row with the key {key.decode()!r}" if key in found else "the key is missing"
                raise UserError(f"side_tables.{name}: {path}, line {parsed.line_numbers[place]}: {what}")
            found[key] = (key, *row)


def _cells(name: str, column: JoinedColumn, parsed: ParsedLines, missing: Container[bytes]) -> np.ndarray:
    if not column.flags:
        return parsed.columns[column.name]
    found: list[list[bytes]] = [[] for _ in range(len(parsed))]
    for flag in column.flags:
        for row, cell in enumerate(parsed.columns[flag]):
            if cell in _SET:
                found[row].append(flag.encode())
            elif cell not in _NOT_SET and cell not in missing:
                where = f"{parsed.source}, line {parsed.line_numbers[row]}"
                raise UserError(f"side_tables.{name}: {where}: {flag}: {cell.decode()!r} is neither 0 nor 1")
    return objects([FLAG_SEPARATOR.encode().join(names) for names in found])
