"""Rejected lines of a raw log, and the reasons."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

REASONS = {
    "empty_line": "the line is empty",
    "bad_utf8": "the line is not UTF-8",
    "line_too_long": "the line is longer than format.max_line_bytes; raw is its beginning",
    "bad_json": "the line is no JSON object, or a column of it holds an object or a list of lists",
    "bad_list": "an element of a list holds the text that separates elements (format.list_separator, or the field's)",
    "bad_quoting": "quotes that do not close or have text after them (a line end inside quotes is not supported)",
    "column_count": "more or fewer columns than there should be",
    "bad_label": "the label is missing, none of the declared ones, or no number",
    "bad_weight": "the weight is not a number between 0 and 1e30 (or is beyond float32 after its correction)",
    "bad_number": "a numeric cell is not a finite number (texts for a missing one belong in missing_values)",
    "bad_time": "a cell holds no moment in the form that its field declares",
    "bad_id": "an id is not a number or out of its range; of a libfm line: an entry that its fields do not take",
    "bad_split": "the split column names no split",
    "truncated_input": "the gzip, bz2 or zstd stream is damaged or ends early; what could be read before is kept",
}


class Reject(NamedTuple):
    """One rejected line."""

    key: bytes  # the key column's cell if it could be read, else ``<file>#<line>``
    source: str
    line: int  # number of the line in its file, from 1, header included; the row's number in a Parquet file
    reason: str  # one of :data:`REASONS`
    detail: str  # details, with the field or column if there is one
    raw: bytes  # the line without its line end; for a Parquet row a JSON object of the columns read

    def to_json(self) -> dict[str, Any]:
        """For a JSON Lines file: ``raw`` is the line as text, or ``raw_base64`` its bytes if they are not UTF-8."""
        result: dict[str, Any] = {
            "key": self.key.decode("utf-8", "replace"),
            "source": self.source,
            "line": self.line,
            "reason": self.reason,
            "detail": self.detail,
        }
        try:
            result["raw"] = self.raw.decode("utf-8")
        except UnicodeDecodeError:
            result["raw_base64"] = base64.b64encode(self.raw).decode("ascii")
        return result

    def to_line(self) -> bytes:
        """:meth:`to_json` as one line."""
        return json.dumps(self.to_json(), ensure_ascii=False).encode("utf-8") + b"\n"
