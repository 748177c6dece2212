"""Split rules: the forms of ``--split``.

===================================  ==============================================================================
hash:COLUMN:80/10/10                 Fingerprint64 of a column's raw bytes, so that rows of one user stay together;
                                     ``key`` is the record's key if no column has that name. The shares may be any
                                     numbers above 0; fingerprint / 2^64 is compared with the cumulative shares.
tail:0.1/0.1                         the last rows in the order of the files' names and their lines: the last
                                     tenth is ``test``, the one before ``valid``. Counts rejected lines too; each
                                     share is rounded down to whole rows.
column:NAME                          the column's cell is the split's name; another text rejects the row (bad_split).
files:train=GLOB,valid=GLOB          by file; each input file belongs to exactly one; a split may be named twice.
index:FILE                           a text file with the split's name of every data row, one per line in row order;
                                     or ``row<TAB>split`` in any order, rows counted from 0. Data rows are all lines
                                     except headers, including rejected ones, in the order of the files' names.
===================================  ==============================================================================

Two shares (90/10), or one for ``tail``, make ``train`` and ``test``. Without a rule all rows go to ``train``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.io.paths import local_path
from afm_ctr.rawlog import ParsedLines
from beam_jobs import files

SPLITS = ("train", "valid", "test")
NO_SPLIT = -1
FORMS = "hash:COLUMN:80/10/10, tail:0.1/0.1, column:NAME, files:train=GLOB,valid=GLOB,test=GLOB or index:FILE"


@dataclass(frozen=True)
class SplitRule:
    """A rule parsed by :func:`parse_rule`; values that depend on the input are filled in before rows are assigned."""

    kind: Literal["all", "hash", "tail", "column", "files", "index"]
    text: str | None = None  # as the user wrote it; None: no rule
    asked: tuple[str, ...] = ("train",)  # splits that must not be empty
    column: str | None = None  # the column to split by; None with kind ``hash``: the record's key
    ends: tuple[int, ...] = ()  # exclusive end of each split: a fingerprint (hash) or a row (tail)
    shares: tuple[Fraction, ...] = ()  # of a tail; ``ends`` follow from them once the number of rows is known
    globs: tuple[tuple[str, str], ...] = ()  # (split, glob) of the ``files`` form
    path: str | None = None  # the file of the ``index`` form; later the file of its codes, one byte per row

    def with_rows(self, rows: int) -> SplitRule:
        """The rule for an input of this many data rows."""
        if self.kind != "tail":
            return self
        sizes = [int(rows * share) for share in self.shares]
        ends = [rows - sum(sizes[i:]) for i in range(len(sizes))] + [rows]
        return replace(self, ends=tuple(ends))

    def assign(
        self,
        parsed: ParsedLines,
        rows: np.ndarray,
        file_split: str | None,
        codes: Callable[[np.ndarray], np.ndarray],
        fingerprint: Callable[[Sequence[bytes]], np.ndarray],
    ) -> np.ndarray:
        """Index in :data:`SPLITS` of every row, int8 [n]; :data:`NO_SPLIT` if the column's cell is not a split.

        Args:
            rows: int64 [n], their numbers among all data rows.
            file_split: the split of their file.
            codes: row numbers to split indices by the index file, int8 [n].
            fingerprint: byte strings to uint64 [n].
        """
        if self.kind == "column" and self.column is not None:
            known = {name.encode(): place for place, name in enumerate(SPLITS)}
            return np.array([known.get(cell, NO_SPLIT) for cell in parsed.extra[self.column]], np.int8)
        if self.kind == "files" and file_split is not None:
            return np.full(len(rows), SPLITS.index(file_split), np.int8)
        if self.kind == "index":
            return codes(rows)
        places = np.array([SPLITS.index(name) for name in self.asked], np.int8)
        if self.kind == "tail":
            return places[np.searchsorted(np.array(self.ends, np.int64), rows, side="right")]
        if self.kind == "hash":
            cells = parsed.keys if self.column is None else parsed.extra[self.column].tolist()
            ends = np.array(self.ends[:-1], np.uint64)
            return places[np.searchsorted(ends, fingerprint(cells), side="right")]
        return np.zeros(len(rows), np.int8)


def parse_rule(text: str | None) -> SplitRule:
    """Parse ``--split``. Raises UserError: it has none of the forms."""
    if text is None:
        return SplitRule("all")
    kind, _, rest = text.partition(":")
    if kind == "hash":
        column, _, shares_text = rest.rpartition(":")
        shares = _shares(text, shares_text, (2, 3))
        if column:
            total, ends = sum(shares), []
            for i in range(len(shares)):
                ends.append(int(sum(shares[: i + 1]) / total * 2**64))
            return SplitRule("hash", text, _asked(len(shares)), column, tuple(ends))
    elif kind == "tail":
        shares = _shares(text, rest, (1, 2))
        if sum(shares) >= 1:
            raise UserError(
                f"--split {text}: the shares of the tail must leave rows for train: their sum is not below 1"
            )
        return SplitRule("tail", text, _asked(len(shares) + 1), shares=tuple(shares))
    elif kind == "column" and rest:
        return SplitRule("column", text, column=rest)
    elif kind == "index" and rest:
        return SplitRule("index", text, path=rest)
    elif kind == "files" and rest:
        return _files_rule(text, rest)
    raise UserError(f"--split {text}: is none of {FORMS}")


def _asked(count: int) -> tuple[str, ...]:
    return SPLITS if count == 3 else ("train", "test")


def _shares(rule: str, text: str, counts: tuple[int, ...]) -> list[Fraction]:
    try:
        shares = [Fraction(part) for part in text.split("/")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if len(shares) not in counts or any(share <= 0 for share in shares):
        wanted = " or ".join(str(count) for count in counts)
        raise UserError(f"--split {rule}: {text!r} is not {wanted} numbers above 0 with / between them")
    return shares


def _files_rule(text: str, rest: str) -> SplitRule:
    globs = []
    # A glob may contain commas: only a comma before "name=" separates.
    for part in re.split(r",(?=\w+=)", rest):
        name, _, pattern = part.partition("=")
        if name not in SPLITS or not pattern:
            raise UserError(f"--split {text}: {part!r} is not train=GLOB, valid=GLOB or test=GLOB")
        globs.append((name, pattern))
    asked = tuple(name for name in SPLITS if any(name == split for split, _ in globs))
    return SplitRule("files", text, asked, globs=tuple(globs))


def input_files(
    rule: SplitRule, patterns: Sequence[str], warn: Callable[[str], None] = lambda line: None
) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """The (path, bytes) of all input files, and the split of each by the ``files`` form.

    A file given by two paths (``a.csv`` and ``./a.csv``, a symbolic link) is read once, under the simplest path: one
    without links, ``.`` and ``..`` if there is one.

    Args:
        warn: called with a line about files given by several paths.

    Raises:
        UserError: a glob matches nothing, a file belongs to two splits, or ``--input`` and the globs disagree.
    """
    matched = [files.match(local_path(pattern)) for pattern in patterns]
    matched_by_rule = [(split, files.match(local_path(pattern))) for split, pattern in rule.globs]
    every = {path for found in (*matched, *(found for _, found in matched_by_rule)) for path, _ in found}
    once = _one_path_each(every)
    twice = sorted(every - {*once.values()})
    if twice:
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        warn(f"{twice[0]} is the file {once[twice[0]]}{more}: each file is read once")
    named = {(once[path], size) for found in matched for path, size in found}
    splits: dict[str, str] = {}
    by_rule = set()
    for split, found in matched_by_rule:
        for item in {(once[path], size) for path, size in found}:
            if splits.setdefault(item[0], split) != split:
                raise UserError(f"--split {rule.text}: {item[0]} is both {splits[item[0]]} and {split}")
            by_rule.add(item)
    if rule.globs and named and named != by_rule:
        path = sorted(named ^ by_rule)[0][0]
        where = "--input but none of the splits" if path not in splits else "a split but not --input"
        raise UserError(f"--split {rule.text}: {path} is in {where}; the globs of the splits are the input")
    if not (named or by_rule):
        raise UserError("no input: name the logs with --input")
    return sorted(by_rule or named), splits


def _one_path_each(paths: Iterable[str]) -> dict[str, str]:
    """Map every path to the one that its file is read under."""
    reached: dict[str, list[str]] = {}
    for path in paths:
        reached.setdefault(path if files.is_remote(path) else os.path.realpath(path), []).append(path)
    chosen: dict[str, str] = {}
    for real, same in reached.items():
        plainest = min(same, key=lambda path: (os.path.abspath(path) != real, os.path.normpath(path) != path, path))
        chosen |= dict.fromkeys(same, plainest)
    return chosen


def read_index(rule: SplitRule, rows: int) -> np.ndarray:
    """Read the index file: the index in :data:`SPLITS` of every data row, int8 [rows].

    Raises:
        UserError: a name is not a split, or the rows are not exactly those of the input.
    """
    path = rule.path or ""
    if not files.exists(path):
        raise UserError(f"no file matches {path}")
    known = {name.encode(): place for place, name in enumerate(SPLITS)}
    codes = np.full(rows, NO_SPLIT, np.int8)
    with files.reading(path) as stream:
        number = 0
        for number, line in enumerate(stream, 1):
            first, tab, second = line.rstrip(b"\r\n").partition(b"\t")
            name, row = (second, _row(first)) if tab else (first, number - 1)
            if name not in known or row is None:
                shown = line[:80].rstrip(b"\r\n").decode("utf-8", "replace")
                raise UserError(
                    f"{path}, line {number}: {shown!r} is not SPLIT or ROW<TAB>SPLIT ({'/'.join(SPLITS)})"
                )
            if row >= rows:
                raise UserError(f"{path}, line {number}: row {row} (counted from 0) of an input of {rows} data rows")
            if codes[row] != NO_SPLIT:
                raise UserError(f"{path}, line {number}: row {row} (counted from 0) is named twice")
            codes[row] = known[name]
    if number != rows:
        raise UserError(f"{path} names {number} rows; the input has {rows} data rows")
    return codes


def _row(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) <= 18 else None
