"""The sample as columns, read by the parsers that all commands use."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afm_ctr.errors import UserError
from afm_ctr.infer.layout import Layout, layout_of
from afm_ctr.infer.nested import parquet_columns
from afm_ctr.infer.sample import READ_BYTES, ROWS, FileSample, chosen, is_parquet, matching, sample_file
from afm_ctr.infer.texts import shown
from afm_ctr.io.paths import refuse_text
from afm_ctr.rawlog import LineParser, ParsedLines, parse_log
from afm_ctr.rawlog.tables import ParquetLog
from afm_ctr.schema import Column, FeatureSchema, fits_name

_LIBFM_ROWS = 300_000
_PARQUET_ROWS = 400_000  # rows to read from all files together, from which ROWS are sampled


@dataclass(frozen=True)
class Table:
    """Columns of a sample."""

    paths: tuple[str, ...]  # all files; ``looked_at``: the sampled ones
    looked_at: tuple[str, ...]
    layout: Layout
    columns: tuple[Column, ...]  # names in the schema and in the log
    cells: dict[str, list[bytes]]  # cells of every row, by column name
    rejects: Counter[str]  # sampled lines that are not rows, by reason
    total: int | None  # rows of all files together; ``None``: not known

    @property
    def rows(self) -> int:
        """Number of rows of the sample."""
        return len(next(iter(self.cells.values()), []))

    @property
    def whole(self) -> bool:
        """Whether the sample contains all rows."""
        return self.total is not None and self.rows + sum(self.rejects.values()) >= self.total

    @property
    def to_utf8(self) -> str:
        """Advice on converting its texts to UTF-8."""
        parquet = self.layout.format["kind"] == "parquet"
        return "write its texts as UTF-8" if parquet else "write it as UTF-8: iconv -f ISO-8859-1 -t UTF-8 FILE"

    @property
    def lost(self) -> str | None:
        """The lines that are no rows, counted by reason; None: there are none."""
        return ", ".join(f"{reason}: {count}" for reason, count in sorted(self.rejects.items())) or None

    @property
    def repair(self) -> str | None:
        """What to do about those lines; None where they are too few for ``prepare`` to stop."""
        lost = sum(self.rejects.values())
        if lost <= 0.01 * (self.rows + lost):
            return None
        return self.to_utf8 if self.rejects["bad_utf8"] > 0.5 * lost else "repair the files"


def read_table(patterns: Sequence[str]) -> Table:
    """Sample the files of paths and globs.

    Raises:
        UserError: there are no files, they cannot be read, or are in an unknown format.
    """
    refuse_text(patterns)
    paths = matching(patterns)
    some = chosen(paths)
    if any(map(is_parquet, some)):
        return _parquet(paths, some)
    samples = _samples(some, ROWS)
    layout = layout_of(samples)
    if layout.format["kind"] == "libfm":  # the ids seen determine the fields' ranges: take more rows
        samples = _samples(some, _LIBFM_ROWS)
    header = layout.format.get("header", False)
    columns = _named(layout.names)
    spec = _spec(layout, columns)
    parts, headers = [], 0
    for sample in samples:
        # A header among the rows stems from appending one file to another.
        lines = [line for line in sample.lines if line != sample.first] if header else [sample.first, *sample.lines]
        headers += header * (len(sample.lines) - len(lines))
        parser = LineParser(
            spec, sample.first if header else None, labelled=False, source=sample.path,
            extra=() if columns else ("label",),
        )  # fmt: skip
        parts.append(parser.parse(lines, sample.path, 1 + bool(header)))
    totals = [None if sample.total is None else sample.total + (not header) for sample in samples]
    return _table(paths, some, layout, columns, parts, totals, Counter({"header again": headers} if headers else {}))


def _samples(paths: Sequence[str], rows: int) -> list[FileSample]:
    """Sample each file's share of the rows; files that are empty after decompression are left out."""
    samples = [sample_file(path, max(rows // len(paths), 1), READ_BYTES // len(paths)) for path in paths]
    found = [sample for sample in samples if sample.first or sample.lines]
    if not found:
        raise UserError(f"{', '.join(paths[:3])}: the files are empty")
    return found


def _table(
    paths: Sequence[str], some: Sequence[str], layout: Layout, columns: tuple[Column, ...],
    parts: Sequence[ParsedLines], totals: Sequence[int | None], rejects: Counter[str],
) -> Table:  # fmt: skip
    names = [column.name for column in columns] or ["features", "label"]
    cells: dict[str, list[bytes]] = {name: [] for name in names}
    for part in parts:
        for name in names:
            cells[name] += part.columns[name].tolist() if name in part.columns else part.extra[name].tolist()
        rejects.update(reject.reason for reject in part.rejects)
    known = [total for total in totals if total is not None]
    total = round(sum(known) * len(paths) / len(some)) if len(known) == len(totals) else None
    table = Table(tuple(paths), tuple(some), layout, columns, cells, rejects, total)
    if not table.rows:
        why = ", ".join(f"{reason}: {count}" for reason, count in rejects.items())
        if not rejects and layout.format.get("header"):
            why = "there is nothing below the header line"
        how = f"; {table.to_utf8}" if set(rejects) == {"bad_utf8"} else ""
        raise UserError(f"{some[0]}: none of the lines looked at is a row" + (f" ({why})" if why else "") + how)
    return table


def _parquet(paths: Sequence[str], some: Sequence[str]) -> Table:
    if other := next((path for path in some if not is_parquet(path)), None):
        raise UserError(f"{other} is not a Parquet file, and others are: look at one kind at a time")
    files = [_schema_and_rows(path) for path in some]
    names, left_out = parquet_columns(files[0][0])
    for path, (schema, _) in zip(some[1:], files[1:], strict=True):
        there, _ = parquet_columns(schema)
        for name in set(names) - set(there):
            left_out.setdefault(name, f"not in every file, or no cells in {path}")
    names = [name for name in names if name not in left_out]
    if not names:
        words = "; ".join(f"{shown(name.encode())}: {why}" for name, why in list(left_out.items())[:5])
        raise UserError(f"{some[0]}: no column of it can be read: {words or 'it has none'}")
    looked = "the file is" if len(some) == 1 else f"the {len(some)} files looked at are"
    why = (f"{looked} Parquet, by the first bytes",)
    layout = Layout({"kind": "parquet"}, tuple(names), why, left_out)
    columns = _named(names)
    spec = _spec(layout, columns)
    parts, each = [], _PARQUET_ROWS // len(some)
    for path, (_, total) in zip(some, files, strict=True):
        stride = max(1, min(total, each) * len(some) // ROWS)
        batches = itertools.islice(parse_log(path, spec, labelled=False), -(-each // 4096))
        for number, part in enumerate(batches):
            parts.append(part)
            for name, column in part.columns.items():
                part.columns[name] = column[-number * 4096 % stride :: stride]
    return _table(paths, some, layout, columns, parts, [total for _, total in files], Counter())


def _schema_and_rows(path: str) -> tuple[Any, int]:
    with open(path, "rb") as stream:
        log = ParquetLog(stream, path)
        return log.schema, sum(log.groups)


def _named(headers: Sequence[str]) -> tuple[Column, ...]:
    """Valid and unique column names for a schema."""
    columns: list[Column] = []
    taken = {header for header in headers if fits_name(header)}
    for header in dict.fromkeys(headers):
        if fits_name(header):
            columns.append(Column(name=header))
            continue
        stem = re.sub(r"[^A-Za-z0-9_]+", "_", header).strip("_") or "column"
        stem = stem if fits_name(stem) else f"c_{stem}"
        name = next(n for n in itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2))) if n not in taken)
        taken.add(name)
        columns.append(Column(name=name, header=header))
    return tuple(columns)


def _spec(layout: Layout, columns: Sequence[Column]) -> FeatureSchema:
    """A schema that reads every column, for the parser."""
    if layout.format["kind"] == "libfm":
        fields: list[dict[str, Any]] = [{"name": "features", "kind": "libfm", "ids": [0, 1]}]
        return FeatureSchema.model_validate({"name": "sample", "format": layout.format, "fields": fields})
    space = {"kind": "hash", "buckets": 1}
    fields = [{"name": column.name, "kind": "categorical", "encoding": space} for column in columns]
    written = {**layout.format, "columns": [column.model_dump() for column in columns]}
    return FeatureSchema.model_validate({"name": "sample", "format": written, "fields": fields})
