"""Detects header lines of delimited files, and the columns that can be read by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from afm_ctr.errors import UserError
from afm_ctr.infer.texts import DECIMAL_COMMA, LABEL_NAMES, NUMBER, has_digit, is_nothing, shown

_DATED = re.compile(rb"\d{4}[-/]\d\d[-/]\d\d.*|\d\d[-/.]\d\d[-/.]\d{4}.*")
_NAME = re.compile(rb"[^\W\d][\w .\-/()%#]*")
_MOST = 0.9  # minimum share of numbers in a numeric column


@dataclass(frozen=True)
class FirstLines:
    """Cells of one file."""

    path: str
    first: list[bytes]  # of its first line
    rows: list[list[bytes]]  # of the lines after it that have the most frequent width
    width: int  # the most frequent number of cells per line


def find_header(files: Sequence[FirstLines]) -> tuple[bool, str]:
    """Whether the files have a header line, and why.

    Raises:
        UserError: only some files have one, or it is where prepare does not look for it.
    """
    verdicts = [_verdict(file) for file in files]
    with_header = next((file for file, (says, _) in zip(files, verdicts, strict=True) if says), None)
    without = next((file for file, (says, _) in zip(files, verdicts, strict=True) if says is False), None)
    if with_header is not None and without is not None:
        raise UserError(
            f"{with_header.path} begins with a header line and {without.path} does not; give files of one kind"
        )
    for file, (says, _) in zip(files, verdicts, strict=True):
        _refuse_odd(file, header=with_header is not None and says is not False)
    if with_header is not None:
        why = next(why for says, why in verdicts if says)
        return True, _of_files(why, files)
    if without is not None:
        return False, next(why for says, why in verdicts if says is False)
    return _of_words(files)


def _verdict(file: FirstLines) -> tuple[bool | None, str]:
    """Whether a file has a header by the kinds of its columns, and why; ``None``: undecided."""
    if len(file.first) != file.width or not file.rows:
        return None, ""
    for is_kind, kind in ((_is_number, "numbers"), (has_digit, "cells with digits")):
        names: list[bytes] = []
        values: list[bytes] = []
        for place, cell in enumerate(file.first):
            below = [row[place] for row in file.rows if not is_nothing(row[place])]
            if is_nothing(cell) or not below or sum(map(is_kind, below)) < _MOST * len(below):
                continue
            (values if is_kind(cell) else names).append(cell)
        if names and (not values or _names_label(file) or len(names) > len(values)):
            return True, f"a header: over a column of {kind} it says {shown(names[0])!r}"
        if values:
            return False, f"the first line is not a header: {len(values)} of its cells are like those below, {kind}"
    return None, ""


def _is_number(cell: bytes) -> bool:
    return any(form.fullmatch(cell) for form in (NUMBER, _DATED, DECIMAL_COMMA))


def _names_label(file: FirstLines) -> bool:
    """Whether a cell of the first line is a common name for a label, above a column of few values."""
    for place, cell in enumerate(file.first):
        if cell.strip().lower().decode("utf-8", "replace") in LABEL_NAMES:
            below = {row[place] for row in file.rows}
            if cell not in below and len(below) <= 12:
                return True
    return False


def _of_words(files: Sequence[FirstLines]) -> tuple[bool, str]:
    """Whether the files have a header, and why, if no column is numeric."""
    first = files[0].first
    if len(first) != files[0].width:
        return False, f"the first line is not a header: {len(first)} cells, and {files[0].width} in most lines"
    if any(map(_names_label, files)):
        return True, _of_files("a header: it has a common name of a label", files)
    rows = [row for file in files for row in file.rows if len(row) == len(first)]
    again = sum(any(row[place] == cell for row in rows) for place, cell in enumerate(first) if cell)
    if len(files) > 1 and all(set(file.first) == set(first) for file in files[1:]):
        return True, f"the first lines of {len(files)} files are the same: a header"
    if again or not rows:
        return False, f"the first line is not a header: {again} of its cells occur again below"
    if any(not cell for cell in first) and not all(_NAME.fullmatch(cell) for cell in first if cell):
        return False, "the first line is not a header: a cell of it is empty"
    return True, "a header: none of its cells occurs again in the column below"


def _of_files(why: str, files: Sequence[FirstLines]) -> str:
    if len(files) == 1:
        return why
    same = all(file.first == files[0].first for file in files)
    return f"{why}; the first lines of the {len(files)} files looked at are {'the same' if same else 'not the same'}"


def _refuse_odd(file: FirstLines, header: bool) -> None:
    """Refuse headers that prepare would not recognise."""
    if len(file.first) == file.width or not file.rows:
        return
    second = FirstLines(file.path, file.rows[0], file.rows[1:], file.width)
    if _verdict(second)[0] and not any(map(_is_number, second.first)):
        raise UserError(
            f"{file.path}: the header is in the second line, after {shown(b' '.join(file.first), 40)!r}; remove the "
            "first line"
        )
    names = all(_NAME.fullmatch(cell) for cell in file.first if cell) and any(
        _is_number(cell) for row in file.rows[:20] for cell in row
    )
    label = any(cell.strip().lower().decode("utf-8", "replace") in LABEL_NAMES for cell in file.first)
    if len(file.first) > 1 and names and (header or label):
        single = sum(any(cell.lstrip().startswith(b"'") for cell in row) for row in file.rows)
        how = "add the missing names, or remove the extra cells"
        if single >= _MOST * len(file.rows):
            how = "cells are wrapped in double quotes, not in single ones"
        raise UserError(
            f"{file.path}: the header has {len(file.first)} cells ({shown(file.first[0])}, …) and most lines have "
            f"{file.width}; {how}"
        )


def readable_names(files: Sequence[FirstLines]) -> tuple[list[str], dict[str, str]]:
    """The columns that every file names once, in the first file's order; and why the others are left out."""
    found: dict[str, None] = {}
    left_out: dict[str, str] = {}
    for file in files:
        for place, cell in enumerate(file.first):
            name = cell.decode("utf-8", "replace")
            if not cell:
                left_out[f"column {place + 1}"] = "the header has no name for it (an index? a delimiter at the end?)"
            elif file.first.count(cell) > 1:
                left_out[name] = "the header names it twice; rename one of them"
            else:
                found.setdefault(name)
    for file in files:
        there = {cell.decode("utf-8", "replace") for cell in file.first}
        for name in found:
            if name not in there and name not in left_out:
                left_out[name] = f"not in every file: {file.path} has no such column"
    names = [name for name in found if name not in left_out]
    if not names:
        paths = f"{files[0].path} and {files[-1].path}" if len(files) > 1 else files[0].path
        raise UserError(f"{paths}: no column that every header names once; give files of one kind")
    return names, left_out
