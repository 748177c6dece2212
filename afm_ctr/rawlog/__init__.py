"""Raw logs: text or Parquet, plain or compressed, parsed into columns, label, weight, group and key.

Must not import TensorFlow.
"""

from __future__ import annotations

from afm_ctr.rawlog.layout import has_header
from afm_ctr.rawlog.lines import BrokenEnd, LineStream, LongLine
from afm_ctr.rawlog.log import open_log, parse_log
from afm_ctr.rawlog.parser import LineParser, ParsedLines, offers
from afm_ctr.rawlog.rejects import REASONS, Reject
from afm_ctr.rawlog.tables import ParquetLog, RowBatch
from afm_ctr.rawlog.types import ColumnTypes, word_columns, written_twice

__all__ = [
    "REASONS",
    "BrokenEnd",
    "ColumnTypes",
    "LineParser",
    "LineStream",
    "LongLine",
    "ParquetLog",
    "ParsedLines",
    "Reject",
    "RowBatch",
    "has_header",
    "offers",
    "open_log",
    "parse_log",
    "word_columns",
    "written_twice",
]
