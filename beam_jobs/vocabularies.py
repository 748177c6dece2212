"""Counts of values that together may be larger than the memory of any machine of the job.

The workers of the analysis file the counts of every chunk in parts: a value's part is a hash of its bytes. Then each
part is merged by itself, over all chunks; what ``min_count`` and ``top`` do not let through ends there. So nobody
holds more than a part, and the submitter no more than the vocabularies that come out.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from afm_ctr.io.packed import pack, pack_pairs, unpack, unpack_pairs
from afm_ctr.schema import VocabularySpace
from beam_jobs import files
from beam_jobs.passes import AnyPasses, Done, whole
from beam_jobs.rows import fingerprint64

Counts = Mapping[str, Mapping[bytes, int]]

_PART_BYTES = 64 << 20  # of the input: what is counted is hardly ever larger
_MOST_PARTS = 256  # every part of every chunk is a read of its own
_LITTLE = 16 << 20  # bytes of counts that the submitter merges itself
_AT_ONCE = 16


def parts_for(input_bytes: int) -> int:
    """Into how many parts the counts of so large an input are divided."""
    return min(_MOST_PARTS, 1 + input_bytes // _PART_BYTES)


def packed(counts: Counts, parts: int) -> bytes:
    """A chunk's counts as the content of a file of that many parts."""
    blocks: list[dict[str, tuple[list[bytes], list[int]]]] = [{} for _ in range(parts)]
    for space, values in counts.items():
        names, numbers = list(values), list(values.values())
        place = fingerprint64(names) % np.uint64(parts)
        order = np.argsort(place, kind="stable")
        bounds = np.searchsorted(place[order], np.arange(parts + 1, dtype=np.uint64))
        for part, block in enumerate(blocks):
            mine = order[bounds[part] : bounds[part + 1]].tolist()
            block[space] = ([names[i] for i in mine], [numbers[i] for i in mine])
    return files.joined([_to_bytes(block) for block in blocks])


def _part_of(path: str, part: int) -> dict[str, tuple[list[bytes], list[int]]]:
    """One part of a file of :func:`packed`."""
    with whole(path):
        return _from_bytes(files.item(path, part))


def _to_bytes(block: Mapping[str, tuple[Sequence[bytes], Sequence[int]]]) -> bytes:
    return pack(list(block), [array for texts, numbers in block.values() for array in pack_pairs(texts, numbers)])


def _from_bytes(content: bytes) -> dict[str, tuple[list[bytes], list[int]]]:
    spaces, arrays = unpack(content)
    return {name: unpack_pairs(arrays[3 * at : 3 * at + 3]) for at, name in enumerate(spaces)}


def _counts(content: bytes) -> dict[str, dict[bytes, int]]:
    return {name: dict(zip(*pairs, strict=True)) for name, pairs in _from_bytes(content).items()}


@dataclass(frozen=True)
class Part:
    """A piece of work: one part of the counts of all chunks, which is a share of the job's rows."""

    number: int
    rows: int


@dataclass
class Merging:
    """Merges parts.

    Attributes:
        paths: of the chunks' files.
        spaces: the vocabularies, by name.
    """

    paths: Sequence[str]
    spaces: Mapping[str, VocabularySpace]

    def setup(self) -> None:
        """Nothing to prepare."""

    @staticmethod
    def pack(unit: Sequence[Part]) -> bytes:
        return json.dumps([vars(part) for part in unit]).encode()

    @staticmethod
    def unpack(content: bytes) -> list[Part]:
        return [Part(**part) for part in json.loads(content)]

    def run(self, unit: Sequence[Part]) -> Iterator[Done]:
        for part in unit:
            merged = self.merge(part.number)
            block = {name: (list(counts), list(counts.values())) for name, counts in merged.items()}
            yield Done(part.number, _to_bytes(block))

    def merge(self, part: int) -> dict[str, dict[bytes, int]]:
        """The values of a part that may come into a vocabulary, with their counts in all chunks."""
        totals: dict[str, Counter[bytes]] = {name: Counter() for name in self.spaces}
        for at in range(0, len(self.paths), _AT_ONCE):
            some = self.paths[at : at + _AT_ONCE]
            for found in files.in_threads(lambda path: _part_of(path, part), some):
                for space, (names, numbers) in found.items():
                    _add(totals[space], names, numbers)
        return {name: _let_through(self.spaces[name], counts) for name, counts in totals.items()}


def _add(total: Counter[bytes], names: Iterable[bytes], numbers: Iterable[int]) -> None:
    for name, number in zip(names, numbers, strict=True):
        total[name] += number


def _let_through(space: VocabularySpace, counts: Counter[bytes]) -> dict[bytes, int]:
    frequent = ((value, count) for value, count in counts.items() if count >= space.min_count)
    if space.top is None:
        return dict(frequent)
    # The most frequent of all are among the most frequent of their parts.
    return dict(heapq.nsmallest(space.top, frequent, key=lambda entry: (-entry[1], entry[0])))


def merged(
    passes: AnyPasses, paths: Sequence[str], size: int, parts: int, rows: int, spaces: Mapping[str, VocabularySpace]
) -> Counts:
    """The counts of all chunks, without values that no vocabulary takes.

    Args:
        paths: of the files of :func:`packed`, ``size`` bytes in all, each in ``parts`` parts.
        rows: of the job, for the progress.
    """
    task = Merging(paths, spaces)
    found: dict[str, dict[bytes, int]] = {name: {} for name in spaces}
    pieces = [Part(i, rows * (i + 1) // parts - rows * i // parts) for i in range(parts)]
    results = (
        (task.merge(piece.number) for piece in pieces)
        if size <= _LITTLE
        else (counts for _, counts in passes.run("vocabularies", task, [[piece] for piece in pieces], _counts))
    )
    for part in results:
        for name, counts in part.items():
            found[name].update(counts)
    return found
