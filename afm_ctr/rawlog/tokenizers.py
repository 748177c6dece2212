"""Splits lines of delimited and libfm text into cells. Bad lines are recorded, not raised."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from afm_ctr import native
from afm_ctr.errors import UserError
from afm_ctr.rawlog.layout import BadQuoting, column_places, require, split_cells
from afm_ctr.rawlog.lines import LongLine
from afm_ctr.rawlog.spans import LARGEST_TEXT, CellSpans
from afm_ctr.schema import (
    LIBFM_COLUMN,
    CategoricalField,
    DelimitedFormat,
    FeatureSchema,
    JsonlFormat,
    ParquetFormat,
    column_of,
)

Reasons = dict[int, tuple[str, str]]  # index of a line in its batch -> (reason code, detail)
Cells = dict[str, Sequence[bytes]]

LIBFM_LABEL = "label"
_VALUE = rb"[-+.\deE]+"
_RANKING = re.compile(rb"\s*%b\s+qid:[^\s,;]+(\s+\d+:%b)*\s*(#.*)?" % (_VALUE, _VALUE))
_FIELD_AWARE = re.compile(rb"\s*(%b\s+)?\d+:\d+:%b(\s+\d+:\d+:%b)*\s*(#.*)?" % (_VALUE, _VALUE, _VALUE))


def check_text(lines: Sequence[bytes], bad: Reasons) -> bytes:
    """Record lines that are too long, empty or not UTF-8 in ``bad``; returns the joined lines."""
    if LongLine in set(map(type, lines)):
        for i, line in enumerate(lines):
            if isinstance(line, LongLine):
                bad[i] = ("line_too_long", f"{line.length} bytes")
    if b"" in lines:
        for i, line in enumerate(lines):
            if not line:
                bad[i] = ("empty_line", "")
    joined = b"\n".join(lines)
    if not joined.isascii() and not is_utf8(joined):
        for i, line in enumerate(lines):
            if not is_utf8(line):
                bad.setdefault(i, ("bad_utf8", ""))
    return joined


def is_utf8(text: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def list_separators(spec: FeatureSchema, column: str) -> tuple[bytes, ...]:
    """The texts that no element of a list in this column may contain.

    These are the text that joins lists, and the separators of the fields that read the column.
    """
    assert isinstance(spec.format, (JsonlFormat, ParquetFormat))
    fields = [field for field in spec.fields if isinstance(field, CategoricalField) and column_of(field) == column]
    found = [spec.format.list_separator, *(field.separator for field in fields if field.separator)]
    return tuple(dict.fromkeys(text.encode() for text in found))


class DelimitedCutter:
    """Splits delimited lines.

    Args:
        may_lack: a column that files without a header may omit; the first line shows it.

    Attributes:
        places: positions of all columns of the log.
        width: number of columns per line.
    """

    check = staticmethod(check_text)

    def __init__(
        self, spec: FeatureSchema, header: bytes | None, wanted: Sequence[str], may_lack: str | None, source: str
    ) -> None:
        assert isinstance(spec.format, DelimitedFormat)
        self._delimiter = spec.format.delimiter.encode()
        self._quote, self._trim = spec.format.quote, spec.format.trim
        self._wanted = wanted
        self.places, self.width = column_places(spec, header, source)
        require(self.places, wanted, source)
        self._may_lack = may_lack if not spec.format.header and may_lack in self.places else None

    def look_at(self, line: bytes) -> None:
        """Check whether the first line of a file omits the column ``may_lack``."""
        lacking, self._may_lack = self._may_lack, None
        if lacking is None:
            return
        try:
            cells = self._split(line)
        except BadQuoting:
            return
        if len(cells) == self.width - 1:
            place = self.places.pop(lacking)
            self.places = {name: at - (at > place) for name, at in self.places.items()}
            self.width -= 1

    def cut(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> Cells:
        """The wanted columns; bad lines get empty cells."""
        self._look_at_first(lines)
        rows = [line.split(self._delimiter) for line in lines]
        if self._trim or (self._quote and b'"' in joined):
            for i, line in enumerate(lines):
                if self._trim or b'"' in line:
                    try:
                        rows[i] = self._split(line)
                    except BadQuoting as error:
                        bad.setdefault(i, ("bad_quoting", str(error)))
        for i, row in enumerate(rows):
            if len(row) != self.width:
                bad.setdefault(i, ("column_count", f"{len(row)} columns, {self.width} expected"))
                rows[i] = [b""] * self.width
        columns = list(zip(*rows, strict=True)) or [()] * self.width
        return {name: columns[self.places[name]] for name in self._wanted}

    def _split(self, line: bytes) -> list[bytes]:
        return split_cells(line, self._delimiter.decode(), self._quote, self._trim)

    def spans(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> CellSpans | None:
        """Positions of the cells (empty for bad lines); None if the C++ library is not there, or lines cannot be
        split at every delimiter because of quotes or stray carriage returns."""
        if self._trim or (self._quote and b'"' in joined) or b"\r" in joined or len(self._delimiter) > 1:
            return None
        if len(joined) > LARGEST_TEXT or not native.prepares():
            return None
        self._look_at_first(lines)
        cut = native.cut_lines(joined, self._delimiter, len(lines), self.width)
        if cut is None:
            return None
        starts, ends, counts = cut
        for i in np.flatnonzero(counts != self.width).tolist():
            bad.setdefault(i, ("column_count", f"{counts[i]} columns, {self.width} expected"))
        return CellSpans(joined, starts, ends, self.places)

    def _look_at_first(self, lines: Sequence[bytes]) -> None:
        if self._may_lack and lines:
            self.look_at(next((line for line in lines if line), b""))


def not_libfm(line: bytes) -> str | None:
    """Recognise formats similar to libfm text: names the format and a command that converts it; ``None``: neither."""
    if _RANKING.fullmatch(line):
        return "libsvm text with qid:, which libfm text does not have; remove it: sed -E 's/ +qid:[^ ]+//' FILE"
    if _FIELD_AWARE.fullmatch(line):
        return (
            "libffm text, field:id:value, and libfm text is id:value; remove the fields, if no two of them share "
            "ids: sed -E 's/(^| )[0-9]+:([0-9]+:)/\\1\\2/g' FILE"
        )
    return None


class LibfmCutter:
    """Splits ``label id:value id:value … # comment`` into label and features; the label may be missing.

    Args:
        first_line: first line of the file; None: the first line passed to :meth:`cut`.

    Raises:
        UserError: a wanted column does not exist, or the first line is in another format (without ``first_line``,
            :meth:`cut` raises it).
    """

    check = staticmethod(check_text)

    def __init__(self, wanted: Sequence[str], first_line: bytes | None, source: str) -> None:
        require({LIBFM_LABEL: 0, LIBFM_COLUMN: 1}, wanted, source)
        self._source = source
        self._looked = first_line is not None
        self._look_at(first_line or b"")

    def _look_at(self, first_line: bytes) -> None:
        if problem := not_libfm(first_line):
            raise UserError(f"{self._source or 'the log'}: {problem}")

    def cut(self, lines: Sequence[bytes], joined: bytes, bad: Reasons) -> Cells:
        """Both columns."""
        if not self._looked and lines:
            self._look_at(lines[0])
            self._looked = True
        labels, features = [b""] * len(lines), [b""] * len(lines)
        for i, line in enumerate(lines):
            text = line.split(b"#", 1)[0].strip()
            if not text:
                bad.setdefault(i, ("empty_line", "no label and no features"))
                continue
            first, *rest = text.split(None, 1)
            if b":" in first:
                features[i] = text
            else:
                labels[i] = first
                features[i] = rest[0] if rest else b""
        return {LIBFM_LABEL: labels, LIBFM_COLUMN: features}
