"""A few raw rows kept with a data set, its runs and its exported models, for warming up a server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from afm_ctr.io.files import write_text
from afm_ctr.schema import (
    CROSS_SEPARATOR,
    BucketEncoding,
    CrossField,
    DeclaredIds,
    LibfmField,
    NumericField,
    ResolvedSchema,
    TimeField,
    VocabularySpace,
    columns_of,
)

SAMPLE_FILE = "sample_rows.jsonl"
SAMPLE_ROWS = 16

Row = Mapping[str, bytes]


def save_samples(folder: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write rows (column name to the cell's UTF-8 bytes), one JSON object per line; no file if there are none."""
    rows = list(rows)
    if not rows:
        return
    write_text(Path(folder) / SAMPLE_FILE, samples_text(rows))


def samples_text(rows: Iterable[Row]) -> str:
    """The content of the file, for callers that write files themselves."""
    lines = [json.dumps({name: cell.decode() for name, cell in row.items()}, ensure_ascii=False) for row in rows]
    return "".join(line + "\n" for line in lines)


def load_samples(folder: str | os.PathLike[str], columns: Sequence[str]) -> list[dict[str, bytes]]:
    """The rows in a folder, with exactly ``columns``; none if there is no file or it has other columns."""
    path = Path(folder) / SAMPLE_FILE
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if all(set(columns) <= set(row) for row in rows):
            return [{name: row[name].encode() for name in columns} for row in rows]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        # Not worth failing for: the caller makes rows up instead and reports it.
        pass
    return []


def made_up_rows(schema: ResolvedSchema, count: int = SAMPLE_ROWS) -> list[dict[str, bytes]]:
    """Rows without a bad cell, from the schema's vocabularies and boundaries. The last one is empty."""
    if count < 1:
        return []
    rows = []
    # Of the fields that share a column, those that cannot take any text decide.
    fields = sorted(schema.spec.fields, key=lambda field: schema.spec.bad_reason(field) is None)
    fields.sort(key=lambda field: isinstance(field, CrossField))
    for index in range(count - 1):
        row: dict[str, bytes] = {}
        entries = []
        for field in fields:
            if isinstance(field, LibfmField):
                first, end = field.ids
                entries.append(b"%d:1" % (first + index % (end - first)))
                continue
            for column, cell in zip(columns_of(field), _cells(schema, field, index), strict=True):
                row.setdefault(column, cell)
        if entries:
            row = dict.fromkeys(schema.raw_columns, b" ".join(entries))
        rows.append({name: row[name] for name in schema.raw_columns})
    rows.append(dict.fromkeys(schema.raw_columns, b""))
    return rows


def _cells(schema: ResolvedSchema, field: Any, index: int) -> list[bytes]:
    """A cell for each column of a field."""
    if isinstance(field, NumericField):
        return [_number(schema, field, index)]
    if isinstance(field, TimeField):
        return [_moment(field, index)]
    word = _word(schema, field, index)
    if not isinstance(field, CrossField):
        return [word]
    parts = word.split(CROSS_SEPARATOR)
    return parts if len(parts) == len(field.columns) else [word] * len(field.columns)


def _moment(field: TimeField, index: int) -> bytes:
    at = datetime(2024, 1, 1, tzinfo=UTC) + index * timedelta(days=17, hours=5)
    if field.format in ("epoch", "epoch_ms"):
        return b"%d" % (at.timestamp() * (1 if field.format == "epoch" else 1000))
    form = "%H:%M" if field.format == "clock" else field.format
    return (at.isoformat() if form == "iso" else at.strftime(form)).encode()


def _word(schema: ResolvedSchema, field: Any, index: int) -> bytes:
    name, space = schema.spec.space_of(field)

    def word(number: int) -> bytes:
        if isinstance(space, DeclaredIds):
            return b"%d" % (number % space.size)
        entries = schema.vocabularies.get(name, ()) if isinstance(space, VocabularySpace) else ()
        return entries[number % len(entries)] if entries else b"value-%d" % number

    if field.separator is None:
        return word(index)
    values = 1 + index % field.max_values
    return field.separator.encode().join(word(index + place) for place in range(values))


def _number(schema: ResolvedSchema, field: Any, index: int) -> bytes:
    if isinstance(field.encoding, BucketEncoding):
        bounds = schema.statistics[field.name].boundaries
        return repr(float(bounds[index % len(bounds)])).encode() if bounds else b"0"
    return b"%d" % index
