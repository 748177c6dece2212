"""Kinds of texts: numbers, missing values, names of labels and weights; and how messages show them."""

from __future__ import annotations

import math
import re

from afm_ctr.visible import short

NUMBER = re.compile(rb"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*")
DECIMAL_COMMA = re.compile(rb"[ \t]*[+-]?\d+([. ']\d{3})*,\d+[ \t]*")
LABEL_NAMES = (
    "label", "click", "clicked", "is_click", "clk", "target", "y", "conversion", "converted", "is_conversion",
    "is_clicked", "churn", "response", "purchase", "purchased", "is_purchase", "buy", "like", "is_like", "install",
    "is_attributed", "rating",
)  # fmt: skip
WEIGHT_NAMES = ("weight", "weights", "sample_weight", "example_weight", "row_weight", "importance")
# Texts of databases and tools for missing values that are never names of categories.
NOTHING = frozenset(
    (b"\\N", b"NULL", b"null", b"Null", b"NaN", b"nan", b"NAN", b"<NA>", b"#N/A", b"N/A", b"n/a", b"(null)",
     b"<null>", b"NaT", b"#NULL!", b"#NUM!", b"#DIV/0!", b"#VALUE!",
     b"__HIVE_DEFAULT_PARTITION__")
)  # fmt: skip
# These may be categories: they mean "missing" only among numbers or times.
PERHAPS_NOTHING = frozenset(
    (b"NA", b"na", b"None", b"none", b"NONE", b"nil", b"-", b"--", b"---", b"?", b".", b"unknown", b"Unknown",
     b"UNKNOWN", b"missing", b"undefined", b"void", b"inf", b"-inf", b"Infinity", b"-Infinity", b"Inf", b"-Inf",
     b"0000-00-00", b"0000-00-00 00:00:00")
)  # fmt: skip


def is_number(cell: bytes) -> bool:
    """Whether a numeric field accepts a cell: a decimal within float64's range, so not 1e999."""
    return NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))


def has_digit(cell: bytes) -> bool:
    return any(48 <= byte <= 57 for byte in cell)


def is_nothing(cell: bytes) -> bool:
    """Whether a cell is empty, white space, or a text for a missing value."""
    text = cell.strip()
    return not text or text in NOTHING or text in PERHAPS_NOTHING


def shown(cell: bytes, longest: int = 24) -> str:
    """A cell in a comment or message: on one line, and short."""
    return short(cell.decode("utf-8", "replace"), longest)
