"""Raw logs: lines of plain or gzip files, parsed to columns, label, weight, group and key. No TensorFlow."""

from __future__ import annotations

from afm_ctr.rawlog.layout import has_header
from afm_ctr.rawlog.lines import BrokenEnd, LineStream, TruncatedInput, iterate_lines, open_log
from afm_ctr.rawlog.log import parse_log
from afm_ctr.rawlog.parser import LineParser, ParsedLines
from afm_ctr.rawlog.rejects import REASONS, Reject

__all__ = [
    "REASONS",
    "BrokenEnd",
    "LineParser",
    "LineStream",
    "ParsedLines",
    "Reject",
    "TruncatedInput",
    "has_header",
    "iterate_lines",
    "open_log",
    "parse_log",
]
