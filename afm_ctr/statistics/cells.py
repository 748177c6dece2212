"""The values of a field in raw cells: what the transform would look up, as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afm_ctr.schema import ResolvedSchema

LONGEST = 96  # bytes of a value that are kept: a cell may be as long as its line
JOINT = b"\x1f"  # between the parts of a cross
# Of these kinds an id says more than the cell.
BY_ID = ("libfm", "time")


def values_of(field: Any, columns: Mapping[str, np.ndarray], strip: bool) -> list[list[bytes]]:
    """The values of each row; an empty list where the field has none.

    Args:
        field: a field that is of none of the kinds ``BY_ID``.
        columns: bytes [n] of every raw column.
        strip: whether white space around a value is dropped, as numbers and declared ids have it.
    """
    if field.kind == "cross":
        parts = [columns[name] for name in field.columns]
        return [[JOINT.join(row)] if all(row) else [] for row in zip(*parts, strict=True)]
    cells: Sequence[bytes] = columns[field.column or field.name].tolist()
    separator = getattr(field, "separator", None)
    if separator is None:
        pieces = [[cell] for cell in cells]
    else:
        between = separator.encode()
        pieces = [cell.split(between) for cell in cells]
    if strip:
        pieces = [[piece.strip() for piece in row] for row in pieces]
    return [[piece for piece in row if piece][: getattr(field, "max_values", 1)] for row in pieces]


def texts_of_ids(schema: ResolvedSchema, field: Any, ids: np.ndarray) -> list[list[bytes]]:
    """The same for the kinds ``BY_ID``, out of encoded ids int64 [n, slots]: libfm ids as in the file; the parts of
    a time as numbers."""
    first = field.ids[0] if field.kind == "libfm" else 0
    ranges = schema.ranges_of(field.name)
    local = np.full(ids.shape, -1, np.int64)
    for owned in ranges:
        inside = (ids >= owned.start) & (ids < owned.start + owned.size)
        local = np.where(inside, ids - owned.start + owned.local_start, local)
    rows: Any = local.tolist()
    return [[b"%d" % (first + place) for place in row if place >= 0] for row in rows]


def shown(value: bytes) -> str:
    """A value as the text that statistics keep of it; of a long one its beginning."""
    if len(value) > LONGEST:
        return value[:LONGEST].decode("utf-8", "ignore") + "…"
    return value.decode("utf-8", "replace")
