"""Assigns the ids of libfm text to fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from afm_ctr.errors import UserError

_ENTRY = re.compile(rb"(\d+):")
_LARGEST = 1 << 31  # maximum number of ids of a table


def _short(digits: bytes) -> str:
    text = digits.decode()
    return text if len(text) <= 30 else f"{text[:29]}… ({len(text)} digits)"


def libfm_fields(rows: Sequence[bytes], path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Comment lines, and the fields.

    If every row has the same number of entries, and the ids of different positions do not overlap, each position is
    a field. Otherwise all ids are one multi-valued field.

    Raises:
        UserError: an id exceeds the size of a table.
    """
    texts = _ENTRY.findall(b" ".join(rows))
    largest = max(texts, key=lambda text: (len(text.lstrip(b"0")), text.lstrip(b"0")), default=b"0")
    if len(largest.lstrip(b"0")) > 10 or int(largest) >= _LARGEST:
        raise UserError(
            f"{path}: has the id {_short(largest)}, and ids number the rows of a table, from 0 to {_LARGEST - 1}; "
            "renumber them, or hash them and keep the remainder by the number of rows wanted"
        )
    ids = np.array([int(text) for text in texts], np.int64)
    sizes = np.array([row.count(b":") for row in rows])
    size = int(ids.max()) + 1 if len(ids) else 1
    many = int(sizes.max()) if len(sizes) else 1
    if len(ids) and sizes.min() == sizes.max():
        places = ids.reshape(-1, many)
        low, high = places.min(axis=0), places.max(axis=0)
        if (low[1:] > high[:-1]).all():
            ends = [*low[1:].tolist(), size]
            why = [
                f"Every row has {many} entries, and the ids of each place lie apart from the others': a field each.",
                "Names are yours to give. A field ends where the next one's least id seen here begins.",
            ]
            starts = [0, *ends[:-1]]
            found = zip(starts, ends, places.T, strict=True)
            fields = []
            for number, (start, end, mine) in enumerate(found):
                why.append(f"f{number + 1}: {len(np.unique(mine)):,} distinct ids from {mine.min()} to {mine.max()}")
                fields.append({"name": f"f{number + 1}", "kind": "libfm", "ids": [start, end]})
            return why, fields
    why = [
        f"{len(np.unique(ids)):,} distinct ids up to {size - 1}; {sizes.min()} to {many} entries a row. Ranges of "
        "ids do not tell them apart: one field of several values. If you know which ids belong together, give those "
        "a field of their own."
    ]
    return why, [{"name": "features", "kind": "libfm", "ids": [0, size], "max_values": max(many, 1)}]
