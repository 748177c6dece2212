"""Counts of values that together may be larger than the memory of any machine of the job.

The workers of the analysis file the counts of every chunk in parts: a value's part is a hash of its bytes. What is
combined per key, the part, are the places of these counts; then each part is merged by itself, over all chunks, and
what ``min_count`` and ``top`` do not let through ends there. So nobody holds more than a part, and the submitter no
more than the vocabularies that come out. The values themselves do not go through a shuffle: Beam's runner in one
process would keep them all in memory.
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

_PART_BYTES = 64 << 20  # of the input: what is counted is hardly ever larger
_MOST_PARTS = 256  # every part of every chunk is a read of its own
_AT_ONCE = 16


def parts_for(input_bytes: int) -> int:
    """Into how many parts the counts of so large an input are divided."""
    return min(_MOST_PARTS, 1 + input_bytes // _PART_BYTES)


@dataclass(frozen=True)
class ValueCounts:
    """How often values occurred: of each vocabulary the values, and the number of each."""

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
        """The counts of each part."""
        blocks: list[dict[str, tuple[list[bytes], list[int]]]] = [{} for _ in range(parts)]
        for space, (values, numbers) in self.of.items():
            place = fingerprint64(values) % np.uint64(parts)
            order = np.argsort(place, kind="stable")
            bounds = np.searchsorted(place[order], np.arange(parts + 1, dtype=np.uint64))
            for part, block in enumerate(blocks):
                mine = order[bounds[part] : bounds[part + 1]].tolist()
                block[space] = ([values[i] for i in mine], [numbers[i] for i in mine])
        return [ValueCounts(block) for block in blocks]


Place = tuple[str, int]  # a file of byte strings, and which of these


def filed(found: AnalysedChunks) -> Iterator[tuple[int, Place]]:
    """By part, where the counts of chunks are."""
    for chunk in found.chunks:
        for part in range(chunk.parts if chunk.counts is not None else 0):
            yield part, (chunk.counts or "", part)


def counts_at(place: Place) -> ValueCounts:
    """The counts of a place. Raises RunError where something else is there."""
    with whole(place[0]):
        return ValueCounts.from_bytes(files.item(*place))


class Merge(beam.CombineFn):
    """Counts of one part, filed here and there, become those of the values that a vocabulary may take, packed."""

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
    # The most frequent of all are among the most frequent of their parts.
    return dict(heapq.nsmallest(space.top, frequent, key=lambda entry: (-entry[1], entry[0])))


class Vocabularies(beam.PTransform):  # type: ignore[type-arg]
    """The findings of the analysis to packed counts of what vocabularies may take, by part."""

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
    """The counts of all parts."""
    found: dict[str, dict[bytes, int]] = {}
    for part in parts:
        for space, pairs in part.of.items():
            found.setdefault(space, {}).update(zip(*pairs, strict=True))
    return found


def read_parts(folder: str, parts: int) -> Iterator[ValueCounts]:
    """The packed counts of all parts, which lie in a folder."""
    for part in range(parts):
        yield read(files.join(folder, f"{part:08d}"), ValueCounts.from_bytes)
