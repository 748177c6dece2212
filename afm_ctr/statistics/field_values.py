"""The values of a field in raw cells: what the transform would look up, as texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from afm_ctr.schema import ResolvedSchema

LONGEST = 96  # bytes of a value that are kept: a cell may be as long as its line
# Of these kinds an id says more than the cell.
BY_ID = ("libfm", "time")


def is_by_id(schema: ResolvedSchema, field: Any) -> bool:
    """Whether a field is counted by its ids: those of the kinds ``BY_ID``, and those whose values a key hides."""
    return field.kind in BY_ID or getattr(schema.spec.space_of(field).space, "key_file", None) is not None


class Values(NamedTuple):
    """The values of some rows one after the other, each once a row; and how many rows have none."""

    values: list[bytes]
    missing: int


def count_cells(cells: Mapping[bytes, int], strip: bool, missing: Sequence[bytes]) -> tuple[Counter[bytes], int]:
    """The values in cells of one value, which are given with how often each occurs; and how many have none.

    Args:
        strip: whether white space around a value is dropped, as numbers and declared ids have it.
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
    """The values of rows, given one by one."""
    values: list[bytes] = []
    missing = 0
    for row in rows:
        once = dict.fromkeys(row)
        values += once
        missing += not once
    return Values(values, missing)


def texts_of_ids(schema: ResolvedSchema, field: Any, ids: np.ndarray) -> Values:
    """The same for fields counted by their ids, int64 [m, slots]: libfm ids as in the file; the parts of a time, and
    the buckets of a keyed hash, as numbers."""
    first = field.ids[0] if field.kind == "libfm" else 0
    rows: Any = schema.local_ids(schema.spec.space_of(field).name, ids).tolist()
    return each_once([b"%d" % (first + place) for place in row if place >= 0] for row in rows)


def shown(value: bytes) -> str:
    """A value as the text that statistics keep of it; of a long one its beginning."""
    if len(value) > LONGEST:
        return value[:LONGEST].decode("utf-8", "ignore") + "…"
    return value.decode("utf-8", "replace")
