"""Counts of vocabulary values, which together may exceed the memory of any machine of the job.

Workers of the analysis write the counts of every chunk in parts, by a hash of the value. Beam combines only the
locations of these counts, by part; each part is then merged over all chunks, and values that fail ``min_count`` or
``top`` are dropped. So a worker holds at most one part, and the submitter only the final vocabularies. The values do
not go through a shuffle: Beam's in-process runner would keep them all in memory.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np

from afm_ctr.io.packed import pack, pack_pairs, unpack, unpack_pairs
from afm_ctr.schema import VocabularySpace
from beam_jobs import files
from beam_jobs.passes import marked, read, whole
from beam_jobs.results import AnalysedChunks
from beam_jobs.rows import fingerprint64

Counts = Mapping[str, Mapping[bytes, int]]

_PART_BYTES = 64 << 20  # of the input; its counts are rarely larger
_MOST_PARTS = 256  # every part of every chunk is a separate read
_AT_ONCE = 16


def parts_for(input_bytes: int) -> int:
    """The number of parts for the counts of an input of this size."""
    return min(_MOST_PARTS, 1 + input_bytes // _PART_BYTES)


@dataclass(frozen=True)
class ValueCounts:
    """Values and their counts, by vocabulary."""

    of: Mapping[str, tuple[Sequence[bytes], Sequence[int]]]

    @classmethod
    def from_counts(cls, counts: Counts) -> ValueCounts:
        return cls({space: (list(found), list(found.values())) for space, found in counts.items()})

    def to_bytes(self) -> bytes:
        return pack(list(self.of), [array for pairs in self.of.values() for array in pack_pairs(*pairs)])

    @classmethod
    def from_bytes(cls, content: bytes) -> ValueCounts:
        spaces, arrays = unpack(content)
        return cls({name: unpack_pairs(arrays[3 * at : 3 * at + 3]) for at, name in enumerate(spaces)})

    def divided(self, parts: int) -> list[ValueCounts]:
        """Divide the counts into parts."""
        blocks: list[dict[str, tuple[list[bytes], list[int]]]] = [{} for _ in range(parts)]
        for space, (values, numbers) in self.of.items():
            place = fingerprint64(values) % np.uint64(parts)
            order = np.argsort(place, kind="stable")
            bounds = np.searchsorted(place[order], np.arange(parts + 1, dtype=np.uint64))
            for part, block in enumerate(blocks):
                mine = order[bounds[part] : bounds[part + 1]].tolist()
                block[space] = ([values[i] for i in mine], [numbers[i] for i in mine])
        return [ValueCounts(block) for block in blocks]


Place = tuple[str, int]  # a file of byte strings, and the index of one of them


def filed(found: AnalysedChunks) -> Iterator[tuple[int, Place]]:
    """The locations of the chunks' counts, by part."""
    for chunk in found.chunks:
        for part in range(chunk.parts if chunk.counts is not None else 0):
            yield part, (chunk.counts or "", part)


def counts_at(place: Place) -> ValueCounts:
    """Read the counts at a location. Raises RunError if the content is not counts."""
    with whole(place[0]):
        return ValueCounts.from_bytes(files.item(*place))


class Merge(beam.CombineFn):
    """Merges the counts of one part, and packs those of values that pass ``min_count`` and ``top``."""

    def __init__(self, spaces: Mapping[str, VocabularySpace]) -> None:
        self._spaces = spaces

    def create_accumulator(self) -> list[Place]:
        return []

    def add_input(self, held: list[Place], place: Place) -> list[Place]:
        held.append(place)
        return held

    def merge_accumulators(self, several: Iterable[list[Place]]) -> list[Place]:
        return [place for held in several for place in held]

    def extract_output(self, held: list[Place]) -> bytes:
        totals: dict[str, Counter[bytes]] = {name: Counter() for name in self._spaces}
        with marked():
            for at in range(0, len(held), _AT_ONCE):
                for found in files.in_threads(counts_at, held[at : at + _AT_ONCE]):
                    for space, (values, numbers) in found.of.items():
                        total = totals[space]
                        for value, number in zip(values, numbers, strict=True):
                            total[value] += number
        taken = {name: _let_through(self._spaces[name], found) for name, found in totals.items()}
        return ValueCounts.from_counts(taken).to_bytes()


def _let_through(space: VocabularySpace, counts: Counter[bytes]) -> dict[bytes, int]:
    frequent = ((value, count) for value, count in counts.items() if count >= space.min_count)
    if space.top is None:
        return dict(frequent)
    # The most frequent values overall are among the most frequent of their parts.
    return dict(heapq.nsmallest(space.top, frequent, key=lambda entry: (-entry[1], entry[0])))


class Vocabularies(beam.PTransform):  # type: ignore[type-arg]
    """Results of the analysis to packed counts of the vocabularies' candidates, by part."""

    def __init__(self, spaces: Mapping[str, VocabularySpace]) -> None:
        super().__init__()
        self._spaces = spaces

    def expand(self, found: Any) -> Any:
        return (
            found
            | "By part" >> beam.FlatMap(filed).with_output_types(tuple[int, Place])
            | "Merge" >> beam.CombinePerKey(Merge(self._spaces)).with_output_types(tuple[int, bytes])
        )


def together(parts: Iterable[ValueCounts]) -> Counts:
    """Merge the counts of all parts."""
    found: dict[str, dict[bytes, int]] = {}
    for part in parts:
        for space, pairs in part.of.items():
            found.setdefault(space, {}).update(zip(*pairs, strict=True))
    return found


def read_parts(folder: str, parts: int) -> Iterator[ValueCounts]:
    """Read the packed counts of all parts from a folder."""
    for part in range(parts):
        yield read(files.join(folder, f"{part:08d}"), ValueCounts.from_bytes)
