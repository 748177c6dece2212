"""The sampled rows of a split: their cells, from which values are counted once, at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from afm_ctr.io.texts import Texts
from afm_ctr.schema import DeclaredIds, ResolvedSchema, columns_of
from afm_ctr.schema.raw_cells import RawCells
from afm_ctr.statistics.field_values import count_cells, each_once, is_by_id, texts_of_ids

MOST_BYTES = 1 << 26  # maximum size of a sample's cells; if rows exceed 3 kB each, fewer are kept


class Counts(NamedTuple):
    """The values of a field in some rows, once per row, and the rows without one; of all and of positive rows."""

    values: Counter[bytes]
    positive_values: Counter[bytes]
    missing: int
    missing_positives: int


@dataclass
class RowSample:
    """Some rows, with the columns and slots of a :class:`SampleLayout`, in its order."""

    cells: Texts  # [rows · columns], row by row, contiguous in their text
    ids: np.ndarray  # int64 [rows, slots]
    positive: np.ndarray  # bool [rows]
    hashes: np.ndarray  # uint64 [rows], of their numbers
    limit: int = 2**64  # only rows with smaller hashes are kept

    def __len__(self) -> int:
        return len(self.positive)

    @classmethod
    def joined(cls, parts: Sequence[RowSample]) -> RowSample:
        """Join the rows of parts, at least one. If their cells exceed ``MOST_BYTES``, only rows with the smallest
        hashes stay, at least one. The order of joining affects only the order of rows."""
        return cls(
            Texts.joined([part.cells for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.positive for part in parts]),
            np.concatenate([part.hashes for part in parts]),
            min(part.limit for part in parts),
        )._bounded()

    @classmethod
    def few(cls, parts: list[RowSample]) -> list[RowSample]:
        """Join the parts if they are many or too large."""
        size = sum(len(part.cells.text) for part in parts)
        return [cls.joined(parts)] if len(parts) > 50 or size > 2 * MOST_BYTES else parts

    def _bounded(self) -> RowSample:
        rows, limit = len(self), self.limit
        if not rows or (limit == 2**64 and len(self.cells.text) <= MOST_BYTES):
            return self
        order = np.argsort(self.hashes)
        sizes = (self.cells.ends - self.cells.starts).reshape(rows, -1).sum(axis=1)
        fits = np.cumsum(sizes[order]) <= MOST_BYTES
        fits[0] = True
        if not fits.all():
            limit = min(limit, int(self.hashes[order[fits.argmin()]]))
        kept = np.flatnonzero(self.hashes < limit) if limit < 2**64 else np.arange(rows)
        columns = len(self.cells) // rows
        cells = self.cells.take((kept[:, None] * columns + np.arange(columns)).ravel()).packed()
        return RowSample(cells, self.ids[kept], self.positive[kept], self.hashes[kept], limit)

    def to_arrays(self) -> list[np.ndarray]:
        sizes = (self.cells.ends - self.cells.starts).astype(np.int32)
        limit = np.array([self.limit - 1], np.uint64)
        return [np.frombuffer(self.cells.text, np.uint8), sizes, self.ids, self.positive, self.hashes, limit]

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray]) -> RowSample:
        text, sizes, ids, positive, hashes, limit = arrays
        return cls(Texts.one_by_one(text.tobytes(), sizes), ids, positive, hashes, int(limit[0]) + 1)


class SampleLayout:
    """What a sampled row keeps: the cells of fields that are counted by their texts, the ids of the others."""

    def __init__(self, schema: ResolvedSchema) -> None:
        self._schema = schema
        fields = schema.spec.fields
        by_id = {field.name for field in fields if is_by_id(schema, field)}
        texts = [field for field in fields if field.name not in by_id]
        self.columns = tuple(dict.fromkeys(name for field in texts for name in columns_of(field)))
        kept = [slot for slot in schema.slots if slot.field in by_id]
        self.slots = np.array([slot.index for slot in kept], np.int64)
        self._places = {name: [at for at, slot in enumerate(kept) if slot.field == name] for name in by_id}

    def take(
        self, cells: Mapping[str, Iterable[bytes]] | Texts, ids: np.ndarray, positive: np.ndarray, hashes: np.ndarray
    ) -> RowSample:
        """Rows from their columns [m] or a sample's cells, all ids, int64 [m, F], whether each is positive, bool
        [m], and the hashes of their numbers, uint64 [m]."""
        if not isinstance(cells, Texts):
            rows = zip(*(cells[name] for name in self.columns), strict=True)
            cells = Texts.of([cell for row in rows for cell in row])
        return RowSample(cells, ids[:, self.slots], positive, hashes)

    def count(self, sample: RowSample, field: Any) -> Counts:
        """Count a field's values in the rows."""
        (values, missing), (positive_values, missing_positives) = (
            self._count(sample, field, np.flatnonzero(which)) for which in (~sample.positive, sample.positive)
        )
        values.update(positive_values)
        return Counts(values, positive_values, missing + missing_positives, missing_positives)

    def _count(self, sample: RowSample, field: Any, rows: np.ndarray) -> tuple[Counter[bytes], int]:
        if field.name in self._places:
            found = texts_of_ids(self._schema, field, sample.ids[rows][:, self._places[field.name]])
            return Counter(found.values), found.missing
        first = rows * len(self.columns)
        cells = {name: sample.cells.take(first + self.columns.index(name)) for name in columns_of(field)}
        if field.kind != "cross" and getattr(field, "separator", None) is None:
            # White space around numbers and declared ids is ignored.
            strip = field.kind == "numeric" or isinstance(self._schema.spec.space_of(field).space, DeclaredIds)
            return count_cells(cells[columns_of(field)[0]].counted(), strip, self._schema.spec.missing_of(field))
        raw = RawCells(self._schema.spec, cells)
        found = each_once(raw.values(field, raw.words(field)))
        return Counter(found.values), found.missing
