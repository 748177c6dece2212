"""Collects statistics per chunk while rows are converted, and merges the chunks.

Counts of rows and of missing cells come from the encoded ids of all rows: a few NumPy calls per batch. Statistics of
cell texts come from a small row sample that does not depend on how the work is divided. A chunk's results are
integers, sets and its sampled rows, so the merged result does not depend on the order of merging.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from afm_ctr.io.packed import pack, unpack
from afm_ctr.io.texts import Texts
from afm_ctr.schema import HashSpace, MissingValue, ResolvedSchema, VocabularySpace, missing_space
from afm_ctr.statistics import distinct
from afm_ctr.statistics.data_statistics import PERCENTILES, TOP_VALUES, DataStatistics, FieldStatistics, TopValue
from afm_ctr.statistics.field_values import BY_ID, shown
from afm_ctr.statistics.row_sample import Counts, RowSample, SampleLayout

SAMPLE_ROWS = 20_000
_WIDEST_MARKS = 1 << 27  # for more ids, one mark per id would take more memory than sorting


@dataclass
class PartialStatistics:
    """The statistics of one chunk's rows of a split, or of several chunks'.

    Parts can be added in any order and grouping: they hold only integers, sets and rows.
    """

    rows: int
    positives: int
    labelled: bool
    missing: np.ndarray  # int64 [2, fields]: rows, positive rows
    hashes: dict[int, np.ndarray]  # of fields whose ids stand for values
    samples: list[RowSample]

    @staticmethod
    def empty(fields: int) -> PartialStatistics:
        return PartialStatistics(0, 0, True, np.zeros((2, fields), np.int64), {}, [])

    def to_bytes(self) -> bytes:
        facts = [self.rows, self.positives, self.labelled, list(self.hashes)]
        sample = RowSample.joined(self.samples).to_arrays() if self.samples else []
        return pack(facts, [self.missing, *self.hashes.values(), *sample])

    @classmethod
    def from_bytes(cls, content: bytes) -> PartialStatistics:
        """Decode :meth:`to_bytes`. Raises ValueError for other bytes."""
        (rows, positives, labelled, hashed), (missing, *arrays) = unpack(content)
        sample = arrays[len(hashed) :]
        hashes = dict(zip(hashed, arrays, strict=False))
        return cls(rows, positives, labelled, missing, hashes, [RowSample.from_arrays(sample)] if sample else [])

    def add(self, other: PartialStatistics) -> None:
        """Add the statistics of other chunks."""
        self.rows += other.rows
        self.positives += other.positives
        self.labelled &= other.labelled
        self.missing = self.missing + other.missing
        for index, found in other.hashes.items():
            self.hashes[index] = distinct.join_hashes(self.hashes.get(index, found), found)
        self.samples = RowSample.few([*self.samples, *other.samples])

    def finish(self, schema: ResolvedSchema, split: str) -> DataStatistics:
        """The statistics of all added rows."""
        layout = SampleLayout(schema)
        no_ids, no_hashes = np.zeros((0, schema.num_slots), np.int64), np.zeros(0, np.uint64)
        nothing = layout.take({name: [] for name in layout.columns}, no_ids, np.zeros(0, bool), no_hashes)
        sample = RowSample.joined([nothing, *self.samples])
        return DataStatistics(
            split=split,
            rows=self.rows,
            positives=self.positives if self.labelled else None,
            sampled=len(sample),
            sampled_positives=int(sample.positive.sum()),
            fields=[
                _finish(schema, self, index, layout.count(sample, field), len(sample))
                for index, field in enumerate(schema.spec.fields)
            ],
        )


class Collector:
    """Collects the statistics of one chunk's rows of one split.

    Args:
        rows_in: data rows of the whole input; determines which rows are sampled, by the hash of their numbers.
        sample_rows: approximate number of rows of the input to sample.

    Example:
        >>> collector = Collector(schema, rows_in=1_000_000)
        >>> collector.add(ids, labels)
        >>> some = collector.sampled(numbers)
        >>> collector.add_sample(numbers[some], {"user": users[some]}, ids[some], labels[some])
        >>> collector.partial().finish(schema, "train").rows
    """

    def __init__(self, schema: ResolvedSchema, rows_in: int, sample_rows: int = SAMPLE_ROWS) -> None:
        self._schema = schema
        self._layout = _Layout(schema)
        # The largest hash of a sampled row.
        self._limit = np.uint64(min(2**64 - 1, 2**64 * sample_rows // max(rows_in, 1)))
        self._seen = [_Seen(schema.feature_size, slots) for slots in self._layout.layers]
        self._part = PartialStatistics.empty(len(schema.spec.fields))
        self._sample_layout = SampleLayout(schema)
        self.sample_columns = self._sample_layout.columns

    def sampled(self, numbers: np.ndarray) -> np.ndarray:
        """The rows to sample: numbers among all data rows, int64 [n], to indices int64 [m]."""
        return np.flatnonzero(distinct.mixed(numbers) <= self._limit)

    def add(self, ids: np.ndarray, labels: np.ndarray) -> None:
        """Add rows.

        Args:
            ids: int64 [n, F].
            labels: float [n]; nan: no label.
        """
        part, layout = self._part, self._layout
        firsts = ids if len(layout.first_slots) == ids.shape[1] else ids[:, layout.first_slots]
        positive = labels > 0
        # Counts below 2^24 are exact in float32: a matrix product is faster than adding booleans.
        counted = np.stack([np.ones(len(ids), np.float32), positive.astype(np.float32)])
        missing = counted @ (firsts == layout.own_ids).astype(np.float32)
        part.rows += len(ids)
        part.positives += int(positive.sum())
        part.labelled &= not np.isnan(labels).any()
        part.missing += missing.astype(np.int64)
        for seen in self._seen:
            seen.add(ids)

    def add_sample(
        self,
        numbers: np.ndarray,
        cells: Mapping[str, Iterable[bytes]] | Texts,
        ids: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        """The cells of the rows that :meth:`sampled` named.

        Args:
            numbers: int64 [m], of the rows among all data rows.
            cells: bytes [m] of every raw column; or of ``sample_columns`` alone, row by row, with nothing between.
            ids: int64 [m, F].
            labels: float [m].
        """
        sample = self._sample_layout.take(cells, ids, labels > 0, distinct.mixed(numbers))
        self._part.samples = RowSample.few([*self._part.samples, sample])

    def partial(self) -> PartialStatistics:
        """What the chunk hands on."""
        if self._part.samples:
            self._part.samples = [RowSample.joined(self._part.samples)]
        for seen in self._seen:
            found = seen.ids()
            for index in seen.fields:
                mine = np.concatenate(
                    [found[slice(*np.searchsorted(found, ends))] for ends in self._layout.ids[index]]
                )
                self._part.hashes[index] = distinct.least_hashes(mine)
        return self._part


def _finish(
    schema: ResolvedSchema, part: PartialStatistics, index: int, counted: Counts, sampled: int
) -> FieldStatistics:
    spec_field = schema.spec.fields[index]
    counts, positives = counted.values, counted.positive_values
    missing, missing_positives = part.missing[:, index].tolist()
    if _fills(spec_field) and sampled:
        scale = part.rows / sampled
        missing, missing_positives = round(scale * counted.missing), round(scale * counted.missing_positives)
    order = heapq.nsmallest(TOP_VALUES, counts.items(), key=lambda item: (-item[1], item[0]))
    exact, found = _distinct(schema, part, index, counts, sampled)
    return FieldStatistics(
        name=spec_field.name,
        kind=spec_field.kind,
        encoding=_encoding(schema, spec_field),
        count=part.rows - missing,
        missing=missing,
        missing_positives=missing_positives,
        distinct=found,
        exact=exact,
        values=sum(counts.values()),
        top=[TopValue(shown(value), rows, positives[value]) for value, rows in order],
        complete=len(order) == len(counts),
        quantiles=_quantiles(counts) if spec_field.kind == "numeric" else [],
    )


def _distinct(
    schema: ResolvedSchema, part: PartialStatistics, index: int, counts: Counter[bytes], sampled: int
) -> tuple[bool, int]:
    """Whether the number is exact, and the number."""
    if sampled == part.rows:
        return True, len(counts)
    share = sampled / part.rows
    spec_field = schema.spec.fields[index]
    name, space = schema.spec.space_of(spec_field)
    if index not in part.hashes:
        return False, round(distinct.count_by_sample(counts.values(), share))
    by_ids = distinct.count_by_hashes(part.hashes[index])
    exact = len(part.hashes[index]) < distinct.KEPT
    if isinstance(space, HashSpace):
        # Values that collide in a bucket share an id: estimate the number of values behind the buckets.
        behind = distinct.count_behind_buckets(by_ids, space.buckets)
        return False, max(len(counts), round(behind))
    if isinstance(space, VocabularySpace):
        known = set(schema.vocabularies[name])
        unknown = [count for value, count in counts.items() if value not in known]
        oov_hashes = distinct.mixed(schema.global_id(name, np.arange(space.oov)))
        oov = int(np.isin(oov_hashes, part.hashes[index]).sum())
        if oov or unknown:
            behind = by_ids - oov + distinct.count_by_sample(unknown, share)
            return False, max(len(counts), round(behind))
    return exact, round(by_ids)


def _quantiles(counts: Counter[bytes]) -> list[float]:
    if not counts:
        return []
    numbers = np.array([float(text) for text in counts]) + 0.0  # turns -0 into 0, so that their order does not matter
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.array(list(counts.values()), np.int64)[order])
    places = np.arange(PERCENTILES + 1) * (ends[-1] - 1) // PERCENTILES
    return [float(x) for x in numbers[order][np.searchsorted(ends, places, side="right")]]


def _fills(spec_field: Any) -> bool:
    return isinstance(spec_field.missing, MissingValue)


def _encoding(schema: ResolvedSchema, spec_field: Any) -> str:
    if spec_field.kind in BY_ID:
        return str(spec_field.kind)
    space = schema.spec.space_of(spec_field).space
    return str(spec_field.encoding.kind if space is None else space.kind)


class _Seen:
    """The ids that occur in some slots: one mark per row of the table, or sorted ids if it is very large."""

    def __init__(self, feature_size: int, fields: dict[int, np.ndarray]) -> None:
        self.fields = tuple(fields)
        self._slots = np.concatenate(list(fields.values()))
        self._marks = np.zeros(feature_size if feature_size <= _WIDEST_MARKS else 0, bool)
        self._ids = np.zeros(0, np.int64)

    def add(self, ids: np.ndarray) -> None:
        mine = ids if len(self._slots) == ids.shape[1] else ids[:, self._slots]
        if len(self._marks):
            self._marks[mine] = True
        else:
            self._ids = np.union1d(self._ids, mine)

    def ids(self) -> np.ndarray:
        return np.flatnonzero(self._marks) if len(self._marks) else self._ids


class _Layout:
    """Positions of each field's slots and ids."""

    def __init__(self, schema: ResolvedSchema) -> None:
        fields = schema.spec.fields
        place = {spec_field.name: index for index, spec_field in enumerate(fields)}
        slots: list[list[int]] = [[] for _ in fields]
        for slot in schema.slots:
            slots[place[slot.field]].append(slot.index)
        self.slots = [np.array(mine, np.int64) for mine in slots]  # of each field
        self.first_slots = np.array([mine[0] for mine in slots], np.int64)
        self.own_ids = np.zeros(len(fields), np.int64)  # the first slot's id if the field is missing
        self.ids: dict[int, list[tuple[int, int]]] = {}  # the ranges [start, end) of ids that stand for values
        self.layers: list[dict[int, np.ndarray]] = []  # such fields; no two fields of a layer share ids
        used: Counter[str] = Counter()
        for index, spec_field in enumerate(fields):
            if spec_field.missing == "own":
                self.own_ids[index] = schema.global_id(missing_space(spec_field.name), 0)
            elif _fills(spec_field):
                self.own_ids[index] = -1
            name = schema.spec.space_of(spec_field).name
            if spec_field.kind == "numeric":
                continue  # a bucket, or the single id of a number, stands for many values
            self.ids[index] = [(owned.start, owned.start + owned.size) for owned in schema.ranges_of(name)]
            layer = used[name]
            used[name] += 1
            if layer == len(self.layers):
                self.layers.append({})
            self.layers[layer][index] = self.slots[index]
