"""Reads and parses whole local log files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

from afm_ctr.io.files import as_user_error
from afm_ctr.io.inputs import open_input
from afm_ctr.rawlog.codecs import open_text
from afm_ctr.rawlog.layout import has_header, header_line
from afm_ctr.rawlog.lines import BrokenEnd, LineStream, without_mark
from afm_ctr.rawlog.parser import LineParser, ParsedLines
from afm_ctr.rawlog.rejects import Reject
from afm_ctr.rawlog.tables import ParquetLog, TableStream
from afm_ctr.rawlog.types import ColumnTypes
from afm_ctr.schema import MAX_LINE_BYTES, FeatureSchema
from afm_ctr.sidetables import SideTables

Encoding = Literal["utf-8", "latin-1"]


@contextmanager
def open_log(path: str, limit: int = MAX_LINE_BYTES, encoding: Encoding = "utf-8") -> Iterator[LineStream]:
    """Lines of a local text file, plain or compressed (detected by its first bytes); ``limit`` as in LineStream.

    The lines are UTF-8 for any ``encoding`` of the file.

    Raises:
        UserError: the file is missing, cannot be read, or is not a text file.
    """
    with _open(path) as stream:
        _, blocks = open_text(path, stream)
        if encoding == "latin-1":
            blocks = (
                block.decode("latin-1").encode() for block in blocks
            )  # a character is one byte, so blocks may be decoded separately
        yield LineStream(without_mark(blocks), limit)


def parse_log(
    path: str,
    spec: FeatureSchema,
    labelled: bool = True,
    batch_rows: int = 4096,
    *,
    tables: SideTables | None = None,
    encoding: Encoding = "utf-8",
    types: ColumnTypes | None = None,
) -> Iterator[ParsedLines]:
    """Parse all rows of a local log file, in order, in batches of at most ``batch_rows`` lines.

    ``tables`` is required if the schema has side tables. Sharing ``types`` among files compares their column types.

    The broken end of a compressed file becomes a last batch with one ``truncated_input`` reject.

    Raises:
        UserError: the file cannot be read, or a column is missing or has another type than in an earlier file.
    """
    path = str(path)
    if spec.format.kind == "parquet":
        with _open(path) as stream:
            table = ParquetLog(stream, path)
            parser = LineParser(spec, table.header, labelled, source=path, tables=tables)
            if types is not None:
                types.add(parser.types, path)
            yield from _parsed(path, parser, table.rows(parser.reads), 1, batch_rows)
        return
    with open_log(path, spec.format.max_line_bytes, encoding) as lines:
        header = header_line(lines, path) if has_header(spec) else None
        parser = LineParser(spec, header, labelled, source=path, tables=tables)
        yield from _parsed(path, parser, lines, 1 + has_header(spec), batch_rows)


def _parsed(
    path: str, parser: LineParser, rows: LineStream | TableStream, number: int, batch_rows: int
) -> Iterator[ParsedLines]:
    while lines := rows.take(batch_rows):
        yield parser.parse(lines, path, number)
        number += len(lines)
    if rows.broken:
        last = parser.parse([], path, number)
        last.rejects.append(truncated(path, number, rows.broken))
        yield last


def truncated(source: str, line: int, end: BrokenEnd) -> Reject:
    """The reject for the broken end of a compressed stream."""
    key = b"%s#%d" % (PurePosixPath(source).name.encode(), line)
    return Reject(key, source, line, "truncated_input", end.detail, end.raw)


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    """Open a file; read errors inside the block also become a UserError."""
    with as_user_error(f"{path}: cannot read it"), open_input(path) as stream:
        yield stream
