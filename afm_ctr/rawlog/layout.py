"""Positions of a log's columns: from its header line, or in the order that the schema declares."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable

from afm_ctr.errors import UserError
from afm_ctr.rawlog.lines import LineStream, LongLine
from afm_ctr.schema import FeatureSchema, fits_name
from afm_ctr.visible import short

# A cell may be as long as its line; by default the csv module refuses quoted cells beyond 128 kB.
csv.field_size_limit(sys.maxsize)

CARRIAGE_RETURNS = "lines do not end in \\n or \\r\\n, there are other carriage returns"
TWICE = -1  # the position of a column that occurs twice


class BadQuoting(ValueError):
    """A line with quotes that do not close, or with text after a closing quote."""


def split_cells(line: bytes, delimiter: str, quote: bool, trim: bool = False) -> list[bytes]:
    """Split a line into cells: RFC 4180, one record per line.

    Args:
        quote: whether cells may be enclosed in double quotes.
        trim: whether to strip blanks from both ends of cells, also inside quotes.

    Raises:
        BadQuoting: quotes do not close, or have text after them.
    """
    if not (quote and b'"' in line):
        cells = line.split(delimiter.encode())
        return [cell.strip(b" ") for cell in cells] if trim else cells
    try:
        # Latin-1 maps every byte to one character and back: the csv module needs text.
        text = line.decode("latin-1")
        rows = list(csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=trim))
    except csv.Error as error:
        raise BadQuoting(str(error)) from error
    found = rows[0] if rows else [""]
    return [(cell.strip(" ") if trim else cell).encode("latin-1") for cell in found]


def has_header(spec: FeatureSchema) -> bool:
    """Whether the first line of every file names its columns."""
    return spec.format.kind == "delimited" and spec.format.header


def header_line(lines: LineStream, source: str) -> bytes | None:
    """The header line of a file; None: the file is empty.

    Raises:
        UserError: the line is too long, or the file is truncated within it.
    """
    line = next(iter(lines.take(1)), None)
    if isinstance(line, LongLine):
        raise UserError(f"{source}: the header line has {line.length} bytes, more than format.max_line_bytes allows")
    if line is None and lines.broken is not None:
        raise UserError(f"{source}: no header line: {lines.broken.detail}; repair the file or leave it out")
    return line


def column_places(spec: FeatureSchema, header: bytes | None, source: str) -> tuple[dict[str, int], int]:
    """Position of every column of a delimited log, and the number of columns per line.

    A name that occurs twice in the header has the position :data:`TWICE`; only :func:`require` refuses it.

    Args:
        header: the header line of the file, if the format has one.

    Raises:
        UserError: no header line, or one that cannot be read.
    """
    layout = spec.format
    assert layout.kind == "delimited"
    if not layout.header:
        return {column.name: i for i, column in enumerate(layout.columns)}, len(layout.columns)
    if not header:
        raise UserError(f"{source}: no header line, which the schema says is there (format.header)")
    if b"\r" in header:
        how = "tr -d '\\r'" if header.find(b"\r") == len(header.rstrip(b"\r")) else "tr '\\r' '\\n'"
        raise UserError(f"{source}: {CARRIAGE_RETURNS}: {how} < FILE")
    try:
        cells = split_cells(header, layout.delimiter, layout.quote, layout.trim)
        texts = [cell.decode("utf-8") for cell in cells]
    except UnicodeDecodeError as error:
        how = "write the file as UTF-8: iconv -f ISO-8859-1 -t UTF-8 FILE"
        raise UserError(f"{source}: the header is not UTF-8; {how}") from error
    except BadQuoting as error:
        raise UserError(f"{source}: cannot read the header line: {error}") from error
    places: dict[str, int] = {}
    named = {column.header or column.name: column.name for column in layout.columns}
    for i, text in enumerate(texts):
        name = named.get(text, text if text not in named.values() else None)
        if name is None:
            continue
        places[name] = TWICE if name in places else i
    return places, len(texts)


def require(places: dict[str, int], wanted: Iterable[str], source: str) -> None:
    """Raise UserError for the first wanted column that is missing or occurs twice."""
    for name in wanted:
        if places.get(name) == TWICE:
            raise UserError(f"{source or 'the log'}: the header names column {name!r} twice; rename one of them")
        if name not in places:
            shown = [text if fits_name(text) else repr(text) for text in sorted(places, key=places.__getitem__)]
            there = ", ".join(short(text, 40) for text in shown[:40]) or "none"
            blank = any(text.strip(" ") == name for text in places)
            how = "; `trim: true` in the format drops blanks around names and cells" if blank else ""
            raise UserError(f"{source or 'the log'}: no column {name!r}; columns there: {there}{how}")
