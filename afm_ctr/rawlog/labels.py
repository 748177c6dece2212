"""Labels and weights: from the bytes of a cell to a number. The transform encodes all other cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Sequence

import numpy as np

from afm_ctr.schema import Label

LARGEST = float(np.finfo(np.float32).max)
_LARGEST_WEIGHT = 1e30  # leaves room for the correction of negative sampling
# Decimal numbers: no "nan", "inf" or underscores, which Python's float accepts.
_NUMBER = re.compile(rb"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*\Z")


def number(cell: bytes) -> float | None:
    """A decimal number that float32 can hold, or None."""
    if not _NUMBER.match(cell):
        return None
    value = float(cell)
    return value if abs(value) <= LARGEST else None


def numbers(cells: Sequence[bytes], parse: Callable[[bytes], float | None] = number) -> tuple[np.ndarray, list[int]]:
    """Parse cells: float64 [n] with nan where ``parse`` returns None, and the indices of these."""
    # There are few distinct labels and weights, so each is parsed once.
    known = {cell: math.nan if (value := parse(cell)) is None else value for cell in set(cells)}
    values = np.fromiter(map(known.__getitem__, cells), np.float64, len(cells))
    return values, np.flatnonzero(np.isnan(values)).tolist()


def label_parser(label: Label, missing: Container[bytes] = ()) -> Callable[[bytes], float | None]:
    """A function from the cell of a label to 0 or 1 (binary) or its number (real); None: a bad label."""
    parse = _label_parser(label)
    return lambda cell: None if cell in missing else parse(cell)


def _label_parser(label: Label) -> Callable[[bytes], float | None]:
    if label.kind == "real":
        return number
    known = {text.encode(): 1.0 for text in label.positive}
    if label.negative == "*":
        return lambda cell: known.get(cell, 0.0)
    known.update({text.encode(): 0.0 for text in label.negative or ()})
    return known.get


def weight_parser(missing: Container[bytes] = ()) -> Callable[[bytes], float | None]:
    """A function from the cell of a weight to a number ≥ 0; None: a bad weight, or one of ``missing``."""

    def parse(cell: bytes) -> float | None:
        if cell in missing:
            return None
        value = number(cell)
        return value if value is not None and 0 <= value <= _LARGEST_WEIGHT else None

    return parse
