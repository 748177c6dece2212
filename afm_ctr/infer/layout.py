"""Detects the format of a text log: JSON Lines, libfm, or delimited with which delimiter, and the header line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from afm_ctr.errors import UserError
from afm_ctr.infer.header import FirstLines, find_header, readable_names
from afm_ctr.infer.nested import json_columns, json_object
from afm_ctr.infer.sample import FileSample
from afm_ctr.infer.texts import DECIMAL_COMMA, shown
from afm_ctr.rawlog.layout import CARRIAGE_RETURNS, BadQuoting, split_cells
from afm_ctr.rawlog.tokenizers import not_libfm

_LIBFM = re.compile(rb"\s*([-+.\deE]+\s+)?\d+:[-+.\deE]+(\s+\d+:[-+.\deE]+)*\s*(#.*)?")
_PAIR = re.compile(rb"[^\s:]+(:[^\s:]+){1,2}")
# A blank comes last: texts contain it, too.
_DELIMITERS = ("\t", ",", ";", "|", "\x01", " ")
_NAMES = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", "\x01": "byte 1", " ": "blank"}
_ENOUGH = 0.9  # minimum share of the lines in a format
_LOOKED_AT = 2000
_OF_OTHERS = 200


@dataclass(frozen=True)
class Layout:
    """A detected format."""

    format: dict[str, Any]  # the ``format`` of a schema, without its columns
    names: tuple[str, ...]  # the columns' names in the log, in order; without a header line ``c1``, ``c2``, …
    why: tuple[str, ...] = field(default=())  # the evidence, one line each
    left_out: dict[str, str] = field(default_factory=dict)  # columns that cannot be read, and why


def layout_of(samples: Sequence[FileSample]) -> Layout:
    """Detect the format of a log. Raises UserError: none of the formats fits."""
    head = samples[0]
    lines = [line for line in [head.first, *head.lines[:_LOOKED_AT]] if line]
    if not lines:
        raise UserError(f"{head.path}: no line of it holds anything")
    if problem := _other_text(head, lines):
        raise UserError(f"{head.path}: {problem}")
    found = sum(json_object(line) is not None for line in lines)
    if found >= _ENOUGH * len(lines):
        return _json(samples, f"{found} of {len(lines)} lines looked at are a JSON object")
    for problem, count in Counter(map(not_libfm, lines)).items():
        if problem is not None and count >= _ENOUGH * len(lines):
            raise UserError(f"{head.path}: {problem}")
    found = sum(_LIBFM.fullmatch(line) is not None for line in lines)
    if found >= _ENOUGH * len(lines):
        return Layout({"kind": "libfm"}, (), (f"{found} of {len(lines)} lines looked at are id:value entries",))
    return _delimited(samples, lines)


def _other_text(head: FileSample, lines: Sequence[bytes]) -> str | None:
    """Recognise files similar to a log, and name a command that converts them; ``None`` for other files."""
    if sum(line.endswith(b"\r") for line in lines) >= _ENOUGH * len(lines):
        return f"{CARRIAGE_RETURNS}: tr -d '\\r' < FILE"
    if any(b"\r" in line.strip(b"\r") for line in lines[:1]):
        return f"{CARRIAGE_RETURNS}: tr '\\r' '\\n' < FILE"
    objects = sum(json_object(line) is not None for line in lines)
    start = head.first.strip()
    if start.startswith(b"[") and (start == b"[" or start[1:].lstrip().startswith((b"{", b"["))):
        return "a JSON array, but a log has one object per line: jq -c '.[]' FILE"
    if start == b"{" and not objects:
        return "JSON over several lines, but a log has one object per line: jq -c . FILE"
    if not objects and json_object(start.removesuffix(b",")) is not None:
        return "its JSON objects are followed by commas: sed 's/,$//' FILE"
    if not objects and re.match(rb"\{'\w+':", start):
        return "objects as Python prints them, but a log has JSON: write each row by json.dumps"
    return None


def _json(samples: Sequence[FileSample], why: str) -> Layout:
    everywhere = (json_object(line) for sample in samples for line in [sample.first, *sample.lines])
    names, left_out, separator = json_columns([value for value in everywhere if value is not None])
    if not names:
        words = "; ".join(f"{shown(name.encode())}: {said}" for name, said in list(left_out.items())[:5])
        raise UserError(f"{samples[0].path}: no column of it can be read{': ' if words else ''}{words}")
    written = {"kind": "jsonl"} | ({"list_separator": separator} if separator != "|" else {})
    return Layout(written, tuple(names), (why,), left_out)


@dataclass(frozen=True)
class _Cut:
    """A way to split lines into cells, with the most frequent width and the share of lines that have it."""

    delimiter: str
    quote: bool
    trim: bool
    width: int
    share: float

    def cells(self, line: bytes) -> list[bytes]:
        """The cells of a line; empty if its quotes are broken."""
        try:
            return split_cells(line, self.delimiter, self.quote, self.trim)
        except BadQuoting:
            return []


def _cut_by(delimiter: str, lines: Sequence[bytes]) -> _Cut:
    mark = delimiter.encode()
    behind = [piece for line in lines for piece in line.split(mark)[1:] if piece]
    blanks = sum(piece.startswith(b" ") for piece in behind)
    trim = delimiter != " " and bool(behind) and blanks >= _ENOUGH * len(behind)
    opening = re.compile(b"(^|" + re.escape(mark) + b")" + (b" *" if trim else b"") + b'"')
    quote = any(opening.search(line) for line in lines)
    cut = _Cut(delimiter, quote, trim, 0, 0.0)
    width, count = Counter(len(cut.cells(line)) for line in lines).most_common(1)[0]
    return _Cut(delimiter, quote, trim, width, count / len(lines))


def _delimited(samples: Sequence[FileSample], lines: Sequence[bytes]) -> Layout:
    cuts = [cut for cut in (_cut_by(mark, lines) for mark in _DELIMITERS) if cut.width > 1 and cut.share >= _ENOUGH]
    if any(_has_decimal_comma(cut, lines) for cut in cuts if cut.delimiter != ","):
        cuts = [cut for cut in cuts if cut.delimiter != ","]
    fitting = [cut for cut in cuts if len(cut.cells(lines[0])) == cut.width]
    cuts = fitting or cuts  # names in a header rarely contain delimiters
    best: _Cut | None = None
    for cut in cuts:
        much_better = best is None or cut.share > best.share + 0.05
        if much_better or (best is not None and cut.share >= best.share - 0.05 and cut.width > 2 * best.width):
            best = cut
    path = samples[0].path
    if sum(b"::" in line for line in lines) > _ENOUGH * len(lines) and (best is None or best.delimiter == " "):
        raise UserError(f"{path}: '::' stands between its cells, and a delimiter is one character; replace it first")
    padded = sum(b"  " in line.strip() for line in lines) >= _ENOUGH * len(lines)
    if padded and (best is None or best.delimiter == " "):
        raise UserError(
            f"{path}: several blanks stand between its cells, and a delimiter is one character: tr -s ' ' < FILE"
        )
    if best is None:
        unclosed = sum(line.count(b'"') % 2 for line in lines) > 0.01 * len(lines)
        quotes = "; quotes that do not close: a line end inside quotes is not supported" if unclosed else ""
        raise UserError(
            f"{path}: neither JSON Lines, libfm text nor text with a constant number of cells between tabs, commas, "
            f"semicolons or bars; it begins {shown(lines[0], 60)!r}{quotes}"
        )
    if problem := _not_cells(best, lines):
        raise UserError(f"{path}: {problem}")
    files = [_first_lines(sample, best) for sample in samples]
    header, because = find_header(files)
    why = [
        f"{best.width} cells in {best.share:.1%} of the {len(lines)} lines looked at, with the "
        f"{_NAMES[best.delimiter]} between them",
        because,
        "cells are enclosed in double quotes" if best.quote else "no cell in the sample is enclosed in double quotes",
    ]
    written = {"kind": "delimited", "delimiter": best.delimiter, "header": header, "quote": best.quote}
    if best.trim:
        written["trim"] = True
        why.append("there are blanks around the cells")
    if not header:
        return Layout(written, tuple(f"c{i + 1}" for i in range(best.width)), tuple(why))
    _check_utf8(files)
    names, left_out = readable_names(files)
    return Layout(written, tuple(names), tuple(why), left_out)


def _not_cells(cut: _Cut, lines: Sequence[bytes]) -> str | None:
    """Why lines that can be split are not delimited text, or cannot be read by prepare; ``None``: they can."""
    rows = [cells for line in lines[:_OF_OTHERS] if len(cells := cut.cells(line)) > 2]
    pairs = [sum(_PAIR.fullmatch(cell) is not None for cell in cells[1:]) == len(cells) - 1 for cells in rows]
    if cut.delimiter in " \t" and rows and sum(pairs) >= _ENOUGH * len(rows):
        example = shown(rows[-1][-1])
        return f"its cells are pairs such as {example!r}, and libfm text has ids from 0 up and numbers, id:value"
    if cut.quote and not cut.cells(lines[0]):
        return f"the first line cannot be cut, there is text after a closing quote: {shown(lines[0], 60)}"
    return None


def _check_utf8(files: Sequence[FirstLines]) -> None:
    for file in files:
        try:
            b"".join(file.first).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file.path}: the header is not UTF-8; write the file as UTF-8: iconv -f ISO-8859-1 -t UTF-8 FILE"
            ) from error


def _has_decimal_comma(cut: _Cut, lines: Sequence[bytes]) -> bool:
    """Whether a column has numbers such as 0,10."""
    rows = [cells for line in lines[1:_OF_OTHERS] if len(cells := cut.cells(line)) == cut.width]
    return any(
        column and sum(DECIMAL_COMMA.fullmatch(cell) is not None for cell in column) >= _ENOUGH * len(column)
        for column in ([cell for cell in cells if cell.strip()] for cells in zip(*rows, strict=True))
    )


def _first_lines(sample: FileSample, cut: _Cut) -> FirstLines:
    rows = [cells for line in sample.lines[:_OF_OTHERS] if line and (cells := cut.cells(line))]
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else len(cut.cells(sample.first))
    return FirstLines(sample.path, cut.cells(sample.first), [row for row in rows if len(row) == width], width)
