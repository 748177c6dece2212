"""How a text log is written: JSON Lines, libfm text, or delimited, and by what; with a header line or without."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from afm_ctr.errors import UserError
from afm_ctr.infer.sample import FileSample
from afm_ctr.rawlog.layout import BadQuoting, split_quoted

_LIBFM = re.compile(rb"\s*([-+.\deE]+\s+)?\d+:[-+.\deE]+(\s+\d+:[-+.\deE]+)*\s*(#.*)?")
NUMBER = re.compile(rb"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*")
# A blank last: texts hold it too.
_DELIMITERS = ("\t", ",", ";", "|", "\x01", " ")
_ENOUGH = 0.9  # of the lines must be of a form
_LOOKED_AT = 2000


@dataclass(frozen=True)
class Layout:
    """What was found.

    Attributes:
        format: the ``format`` of a schema, without its columns.
        names: what the log calls its columns, in order; without a header line ``c1``, ``c2``, …
        why: the figures behind it, one line each.
    """

    format: dict[str, Any]
    names: tuple[str, ...]
    why: tuple[str, ...] = field(default=())


def layout_of(samples: Sequence[FileSample]) -> Layout:
    """Find out.

    Raises:
        UserError: it is none of these.
    """
    head = samples[0]
    lines = [line for line in [head.first, *head.lines[:_LOOKED_AT]] if line]
    if not lines:
        raise UserError(f"{head.path}: no line of it holds anything")
    objects = [_object(line) for line in lines]
    found = sum(value is not None for value in objects)
    if found >= _ENOUGH * len(lines):
        everywhere = [value for sample in samples for line in sample.lines if (value := _object(line)) is not None]
        names = Counter(name for value in [*objects, *everywhere] if value is not None for name in _keys(value))
        why = f"{found} of {len(lines)} lines looked at are a JSON object"
        return Layout({"kind": "jsonl"}, tuple(names), (why,))
    found = sum(_LIBFM.fullmatch(line) is not None for line in lines)
    if found >= _ENOUGH * len(lines):
        return Layout({"kind": "libfm"}, (), (f"{found} of {len(lines)} lines looked at are id:value entries",))
    return _delimited(samples, lines)


def _object(line: bytes) -> dict[str, Any] | None:
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _keys(value: dict[str, Any], before: str = "") -> list[str]:
    names: list[str] = []
    for key, inner in value.items():
        names += _keys(inner, f"{before}{key}.") if isinstance(inner, dict) else [before + key]
    return names


def cells_of(line: bytes, delimiter: str, quote: bool) -> list[bytes]:
    """The cells of a line; none where its quotes are broken."""
    if quote and b'"' in line:
        try:
            return split_quoted(line, delimiter)
        except BadQuoting:
            return []
    return line.split(delimiter.encode())


def _delimited(samples: Sequence[FileSample], lines: Sequence[bytes]) -> Layout:
    best: tuple[float, int, str, bool] | None = None
    for delimiter in _DELIMITERS:
        quote = any(line.startswith(b'"') or delimiter.encode() + b'"' in line for line in lines)
        widths = Counter(len(cells_of(line, delimiter, quote)) for line in lines)
        width, count = widths.most_common(1)[0]
        share = count / len(lines)
        if width < 2 or share < _ENOUGH:
            continue
        if best is None or (share > best[0] + 0.05) or (share >= best[0] - 0.05 and width > 2 * best[1]):
            best = share, width, delimiter, quote
    path = samples[0].path
    if sum(b"::" in line for line in lines) > _ENOUGH * len(lines) and (best is None or best[2] == " "):
        raise UserError(f"{path}: '::' stands between its cells, and a delimiter is one character; replace it first")
    if best is None:
        shown = lines[0][:60].decode("utf-8", "replace")
        raise UserError(
            f"{path}: neither JSON Lines, libfm text nor text with a constant number of cells between tabs, commas, "
            f"semicolons or bars; it begins {shown!r}"
        )
    share, width, delimiter, quote = best
    firsts = [cells_of(sample.first, delimiter, quote) for sample in samples]
    rows = [cells for line in lines[1:] if len(cells := cells_of(line, delimiter, quote)) == width]
    header, because = _header(firsts, rows, width)
    named = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", "\x01": "byte 1", " ": "blank"}[delimiter]
    why = (
        f"{width} cells in {share:.1%} of the {len(lines)} lines looked at, with the {named} between them",
        because,
        "cells are wrapped in double quotes" if quote else "no cell looked at is wrapped in double quotes",
    )
    names = tuple(cell.decode("utf-8", "replace") for cell in firsts[0]) if header else ()
    return Layout(
        {"kind": "delimited", "delimiter": delimiter, "header": header, "quote": quote},
        names or tuple(f"c{i + 1}" for i in range(width)),
        why,
    )


def _header(firsts: Sequence[list[bytes]], rows: Sequence[list[bytes]], width: int) -> tuple[bool, str]:
    """Whether the first lines name the columns, and why."""
    first = firsts[0]
    if len(first) != width or len(set(first)) != width or not all(first):
        return False, "the first line is no header: a cell of it is empty or stands there twice"
    numbers = sum(NUMBER.fullmatch(cell) is not None for cell in first)
    if numbers:
        return False, f"the first line is no header: {numbers} of its cells are numbers"
    if any(other != first for other in firsts[1:]):
        return False, "the first lines of the files differ: no header"
    if len(firsts) > 1:
        return True, f"the first lines of {len(firsts)} files are the same: a header"
    for place in range(width):
        mine = [row[place] for row in rows if row[place]]
        if mine and sum(NUMBER.fullmatch(cell) is not None for cell in mine) >= _ENOUGH * len(mine):
            return True, f"a header: over a column of numbers it says {first[place].decode('utf-8', 'replace')!r}"
    again = sum(any(row[place] == first[place] for row in rows) for place in range(width))
    if again or not rows:
        return False, f"the first line is no header: {again} of its cells come again below"
    return True, "a header: none of its cells comes again in the column below"
