"""Results of analysing the train split, per chunk and merged; a schema is resolved from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from afm_ctr.schema.moments import Moments

# Maximum sample of one field for its quantiles, which are exact up to this many numbers.
SAMPLE_LIMIT = 100_000
_HELD = 8  # samples of one field to collect before joining them


@dataclass(frozen=True)
class NumberFacts:
    """Statistics of one numeric field."""

    count: int = 0  # numbers seen
    mean: float = 0.0  # of the encoded numbers (after the logarithm, if the field takes one)
    std: float = 0.0  # their population standard deviation
    # float64, ascending: all raw numbers if there are at most ``SAMPLE_LIMIT``, else those of the
    # ``SAMPLE_LIMIT`` rows with the smallest hashed positions: a uniform sample
    sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))


@dataclass(frozen=True)
class NumberPart:
    """Statistics of one field over some chunks; parts can be joined in any order."""

    moments: Moments  # of the encoded numbers
    keys: np.ndarray  # uint64 [n], the hashed positions of the sampled rows
    sample: np.ndarray  # float64 [n], their numbers

    @staticmethod
    def join(parts: Iterable[NumberPart]) -> NumberPart:
        """Join parts into one."""
        parts = list(parts)
        keys = np.concatenate([part.keys for part in parts])
        sample = np.concatenate([part.sample for part in parts])
        if len(keys) > SAMPLE_LIMIT:
            kept = np.argpartition(keys, SAMPLE_LIMIT - 1)[:SAMPLE_LIMIT]
            keys, sample = keys[kept], sample[kept]
        return NumberPart(reduce(Moments.plus, (part.moments for part in parts)), keys, sample)

    def finish(self) -> NumberFacts:
        """The statistics of the joined parts."""
        return NumberFacts(self.moments.n, *self.moments.mean_and_std(), np.sort(self.sample))


@dataclass(frozen=True)
class ChunkAnalysis:
    """Results of one chunk of the train split, or of several joined ones. Picklable; joining is associative."""

    counts: Mapping[str, Mapping[bytes, int]]
    numbers: Mapping[str, NumberPart]

    @staticmethod
    def join(parts: Iterable[ChunkAnalysis]) -> ChunkAnalysis:
        """Join parts in any order; joined parts may be joined again.

        Parts are consumed one by one and not kept: together they may exceed memory.
        """
        counts: dict[str, Counter[bytes]] = {}
        numbers: dict[str, list[NumberPart]] = {}
        for part in parts:
            for space, values in part.counts.items():
                counts.setdefault(space, Counter()).update(values)
            for name, number in part.numbers.items():
                held = numbers.setdefault(name, [])
                held.append(number)
                if len(held) == _HELD:
                    numbers[name] = [NumberPart.join(held)]
        return ChunkAnalysis(dict(counts), {name: NumberPart.join(held) for name, held in numbers.items()})


@dataclass(frozen=True)
class Analysis:
    """Results by name; an absent name was not analysed.

    Attributes:
        counts: occurrences of each value, by vocabulary space.
        numbers: statistics of the numeric fields that need them, by field.
    """

    counts: Mapping[str, Mapping[bytes, int]] = field(default_factory=dict)
    numbers: Mapping[str, NumberFacts] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Analysis:
        """No results: enough for a schema that needs none."""
        return cls()

    @classmethod
    def merge(cls, parts: Iterable[ChunkAnalysis]) -> Analysis:
        """Merge the results of all chunks; bit-identical for any order and grouping."""
        joined = ChunkAnalysis.join(parts)
        return cls(joined.counts, {name: part.finish() for name, part in joined.numbers.items()})
