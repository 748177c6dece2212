"""The values of a field in raw cells, as texts that the transform would look up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from afm_ctr.schema import ResolvedSchema

LONGEST = 96  # maximum bytes of a value to keep: a cell may be as long as its line
# Kinds whose ids are more useful than the cells.
BY_ID = ("libfm", "time")


def is_by_id(schema: ResolvedSchema, field: Any) -> bool:
    """Whether a field is counted by its ids: the kinds ``BY_ID``, and fields hashed with a key."""
    return field.kind in BY_ID or getattr(schema.spec.space_of(field).space, "key_file", None) is not None


class Values(NamedTuple):
    """The values of some rows, concatenated, each once per row; and the number of rows without values."""

    values: list[bytes]
    missing: int


def count_cells(cells: Mapping[bytes, int], strip: bool, missing: Sequence[bytes]) -> tuple[Counter[bytes], int]:
    """Count the values of single-valued cells, given with their occurrences; and the cells without a value.

    Args:
        strip: whether to ignore white space around values, as for numbers and declared ids.
        missing: texts that count as an empty cell.
    """
    nothing = {b"", *missing}
    found = Counter({cell: count for cell, count in cells.items() if cell not in nothing})
    if strip:
        whole, found = found, Counter()
        for cell, count in whole.items():
            found[cell.strip()] += count
        del found[b""]
    return found, sum(cells.values()) - sum(found.values())


def each_once(rows: Iterable[Iterable[bytes]]) -> Values:
    """The values of rows, each once per row."""
    values: list[bytes] = []
    missing = 0
    for row in rows:
        once = dict.fromkeys(row)
        values += once
        missing += not once
    return Values(values, missing)


def texts_of_ids(schema: ResolvedSchema, field: Any, ids: np.ndarray) -> Values:
    """The values of fields counted by their ids, int64 [m, slots]: libfm ids as in the file; parts of times and
    buckets of keyed hashes as numbers."""
    first = field.ids[0] if field.kind == "libfm" else 0
    rows: Any = schema.local_ids(schema.spec.space_of(field).name, ids).tolist()
    return each_once([b"%d" % (first + place) for place in row if place >= 0] for row in rows)


def shown(value: bytes) -> str:
    """A value as the statistics show it; long ones are truncated."""
    if len(value) > LONGEST:
        return value[:LONGEST].decode("utf-8", "ignore") + "…"
    return value.decode("utf-8", "replace")
