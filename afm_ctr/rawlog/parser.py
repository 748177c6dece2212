"""Parses lines or rows of a table into a schema's columns, with label, weight, group and key of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.io.texts import Texts
from afm_ctr.rawlog.jsonl import JsonCutter
from afm_ctr.rawlog.labels import LARGEST, label_parser, numbers, weight_parser
from afm_ctr.rawlog.layout import column_places
from afm_ctr.rawlog.rejects import Reject
from afm_ctr.rawlog.spans import CellSpans
from afm_ctr.rawlog.tables import RowBatch, TableCutter
from afm_ctr.rawlog.tokenizers import Cells, DelimitedCutter, LibfmCutter, Reasons
from afm_ctr.schema import FeatureSchema
from afm_ctr.sidetables import SideTables
from serving.tensors import objects

# Reasons for which even the key is unknown.
_UNREADABLE = {"line_too_long", "empty_line", "bad_utf8", "bad_json", "bad_quoting", "column_count"}


@dataclass
class ParsedLines:
    """The n good rows of a batch of lines; the others are in ``rejects``."""

    source: str
    # object arrays [n] of bytes, one for each of the schema's ``log_columns``; b"": missing. Empty if ``spans`` is
    # given.
    columns: dict[str, np.ndarray]
    extra: dict[str, np.ndarray]  # the requested extra columns, in the same form
    labels: np.ndarray  # float32 [n]; nan: no label
    # float32 [n]: the weight column, times 1/rate for negatives of a log that was sampled before and is corrected by
    # weights; ones if the schema has neither
    weights: np.ndarray
    groups: list[bytes | None]  # raw bytes of the group column; None: no group
    keys: Sequence[bytes]  # the key column's cells, or ``<file>#<line>``
    line_numbers: np.ndarray  # int64 [n], from 1; row numbers of a Parquet file
    lines: Sequence[bytes]  # the lines; rows of a Parquet file become JSON objects on demand
    # positions of the cells, instead of ``columns`` (see :meth:`LineParser.parse`)
    spans: CellSpans | None = None
    rejects: list[Reject] = field(default_factory=list)  # in line order

    def __len__(self) -> int:
        return len(self.lines)

    def reject(self, row: int, reason: str, detail: str) -> Reject:
        """The reject for a row that turned out to be bad later."""
        return Reject(self.keys[row], self.source, int(self.line_numbers[row]), reason, detail, self.lines[row])

    def take(self, rows: np.ndarray) -> ParsedLines:
        """Select rows by an int64 array of indices; the rejects stay."""
        at = rows.tolist()
        return replace(
            self,
            columns={name: cells[rows] for name, cells in self.columns.items()},
            extra={name: cells[rows] for name, cells in self.extra.items()},
            labels=self.labels[rows],
            weights=self.weights[rows],
            groups=[self.groups[i] for i in at],
            keys=[self.keys[i] for i in at],
            line_numbers=self.line_numbers[rows],
            lines=_picked(self.lines, at),
            spans=None if self.spans is None else self.spans.take(rows),
        )


def offers(spec: FeatureSchema, header: bytes | None, column: str, source: str) -> bool:
    """Whether a log has a column; of JSON Lines it is assumed for columns that the schema names."""
    layout = spec.format
    if layout.kind == "delimited":
        return column in column_places(spec, header, source)[0]
    if layout.kind == "jsonl":
        return column in layout.names or column in spec.log_columns
    if layout.kind == "libfm":
        return False
    try:
        TableCutter(spec, header or b"", [column], source)
    except UserError:
        return False
    return True


class LineParser:
    """Parses the lines of one file, or its rows if it is a table.

    Delimited lines are split without Python work per value; only lines with quotes go through the csv module. Cells
    are passed on unchecked: the transform validates numbers and ids.

    Args:
        header: the file's header line, required if the format has one; for a Parquet file :attr:`ParquetLog.header`.
        labelled: False: the label column may be absent, and is not read.
        first_line: the first data line. It shows whether an unlabelled log without a header has the label column
            (None: the first parsed line shows it), and whether libfm text is in another format with colons.
        tables: the schema's side tables; required if it has any.

    Raises:
        UserError: a column that the schema needs is missing; names the column, the file and its columns.

    Example:
        >>> parser = LineParser(spec, header=b"click,site,hour")
        >>> rows = parser.parse([b"1,a,14", b"0,b"], "log.csv", first_line=2)
        >>> rows.labels, [reject.reason for reject in rows.rejects]
        (array([1.], dtype=float32), ['column_count'])
    """

    def __init__(
        self,
        spec: FeatureSchema,
        header: bytes | None = None,
        labelled: bool = True,
        *,
        source: str = "",
        extra: Sequence[str] = (),
        first_line: bytes | None = None,
        tables: SideTables | None = None,
    ) -> None:
        self.spec = spec
        self._tables = tables
        self.labelled = labelled and spec.label is not None
        sampled_by_weight = spec.negative_sampling is not None and spec.negative_sampling.correct == "weights"
        self.weighted = self.labelled and (spec.weight is not None or sampled_by_weight)
        self._extra = list(extra)
        self._label_name = spec.label.column if spec.label is not None else ""
        self._missing = frozenset(text.encode() for text in spec.missing_values)
        self._parse_label = label_parser(spec.label, self._missing - {b""}) if spec.label is not None else None
        self._parse_weight = weight_parser(self._missing)
        # Weights and groups serve training and evaluation, which need labels.
        read = [self._label_name, spec.weight, spec.group] if self.labelled else []
        self._others = [name for name in dict.fromkeys([*read, spec.key, *self._extra]) if name]
        wanted = list(dict.fromkeys([*spec.log_columns, *self._others]))
        self._cutter: DelimitedCutter | LibfmCutter | JsonCutter | TableCutter
        if spec.format.kind == "libfm":
            self._cutter = LibfmCutter(wanted, first_line, source)
        elif spec.format.kind == "jsonl":
            self._cutter = JsonCutter(spec, wanted)
        elif spec.format.kind == "parquet":
            self._cutter = TableCutter(spec, header or b"", wanted, source)
        else:
            may_lack = None if self.labelled else self._label_name
            self._cutter = DelimitedCutter(spec, header, wanted, may_lack, source)
            if first_line is not None:
                self._cutter.look_at(first_line)
            if twice := [name for name in spec.joined_columns if name in self._cutter.places]:
                raise UserError(
                    f"{source or 'the log'}: has a column {twice[0]!r}, and so has a side table; give the table's "
                    "another name under its format.columns"
                )

    @property
    def reads(self) -> list[str]:
        """The names in a Parquet file of the columns to read."""
        return self._cutter.reads if isinstance(self._cutter, TableCutter) else []

    @property
    def types(self) -> dict[str, Any]:
        """The Arrow types of the columns to read from a Parquet file, by the schema's names."""
        return self._cutter.types if isinstance(self._cutter, TableCutter) else {}

    def cells_of(self, parsed: ParsedLines, row: int) -> dict[str, bytes]:
        """The ``columns`` of one row, with or without spans."""
        return {name: cells[0] for name, cells in self.columns_of(parsed, np.array([row])).items()}

    def columns_of(self, parsed: ParsedLines, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The ``columns`` of some rows, int64 [m], with or without spans: object arrays [m]."""
        if parsed.spans is not None:
            return parsed.spans.columns(self.spec.log_columns, rows)
        return {name: cells[rows] for name, cells in parsed.columns.items()}

    def parse(
        self, lines: Sequence[bytes], source: str, first_line: int, *, leave_columns: bool = False
    ) -> ParsedLines:
        """Parse consecutive lines.

        Args:
            lines: without line ends; or a :class:`RowBatch`.
            source: the file's path; its base name becomes part of keys.
            first_line: number of the first line in the file, from 1.
            leave_columns: return ``spans`` instead of ``columns`` if all good cells are substrings of the lines; the
                C++ library encodes cells from there.
        """
        bad: Reasons = {}
        cutter, joined = self._cutter, self._cutter.check(lines, bad)
        leave_columns = leave_columns and not self.spec.side_tables  # a join needs the key's cells
        spans = None
        if isinstance(cutter, JsonCutter) or (leave_columns and isinstance(cutter, DelimitedCutter)):
            spans = cutter.spans(lines, joined, bad)
        if spans is None:
            cells: Cells = cutter.cut(lines, joined, bad)
        elif leave_columns:
            cells = {name: spans.cells(name) for name in self._others}
        else:
            cells, spans = {name: spans.cells(name) for name in spans.places}, None
        labels, weights = self._labels(cells, len(lines), bad), np.ones(len(lines), np.float32)
        if self.weighted:
            weights = self._weights(cells, labels, bad)
        name = PurePosixPath(source).name.encode()
        keys = cells[self.spec.key] if self.spec.key else None
        rejects = []
        for i in sorted(bad):
            reason, detail = bad[i]
            key = keys[i] if keys is not None and reason not in _UNREADABLE else b"%s#%d" % (name, first_line + i)
            rejects.append(Reject(key, source, first_line + i, reason, detail, bytes(lines[i])))
        kept = [i for i in range(len(lines)) if i not in bad] if bad else None

        def rows(column: Sequence[bytes]) -> Sequence[bytes]:
            return column if kept is None else _picked(column, kept)

        numbered = np.arange(first_line, first_line + len(lines), dtype=np.int64)
        if kept is not None:
            labels, weights, numbered = labels[kept], weights[kept], numbered[kept]
            spans = None if spans is None else spans.take(kept)
        groups: list[bytes | None] = [None] * len(numbered)
        if self.labelled and self.spec.group:
            groups = [None if not cell or cell in self._missing else cell for cell in rows(cells[self.spec.group])]
        columns = (
            {} if spans is not None else {column: objects(rows(cells[column])) for column in self.spec.log_columns}
        )
        if self.spec.side_tables:
            assert self._tables is not None
            columns = self._tables.join(columns)
        return ParsedLines(
            source=source,
            columns=columns,
            extra={column: objects(rows(cells[column])) for column in self._extra},
            labels=labels,
            weights=weights,
            groups=groups,
            keys=list(rows(keys)) if keys is not None else Texts.numbered(name + b"#", numbered),
            line_numbers=numbered,
            lines=rows(lines),
            spans=spans,
            rejects=rejects,
        )

    def _labels(self, cells: Cells, count: int, bad: Reasons) -> np.ndarray:
        if not self.labelled or self._parse_label is None:
            return np.full(count, np.nan, np.float32)
        texts = cells[self._label_name]
        values, wrong = numbers(texts, self._parse_label)
        for i in wrong:
            bad.setdefault(i, ("bad_label", f"label {_shown(texts[i])}"))
        return values.astype(np.float32)

    def _weights(self, cells: Cells, labels: np.ndarray, bad: Reasons) -> np.ndarray:
        weights = np.ones(len(labels), np.float64)
        if self.spec.weight:
            texts = cells[self.spec.weight]
            weights, wrong = numbers(texts, self._parse_weight)
            for i in wrong:
                bad.setdefault(i, ("bad_weight", f"weight {_shown(texts[i])}"))
        sampling = self.spec.negative_sampling
        if sampling is not None and sampling.correct == "weights" and sampling.apply == "already":
            weights = np.where(labels == 0, weights / sampling.rate, weights)
            for i in np.flatnonzero(weights > LARGEST).tolist():
                bad.setdefault(i, ("bad_weight", f"weight {weights[i]:.3g}, with 1/rate, is beyond float32"))
                weights[i] = 0
        return weights.astype(np.float32)


def _picked(cells: Sequence[bytes], at: list[int]) -> Sequence[bytes]:
    return cells.pick(at) if isinstance(cells, RowBatch) else [cells[i] for i in at]


def _shown(cell: bytes) -> str:
    text = cell.decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:40] + "…")
