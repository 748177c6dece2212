"""What an analysis of the train split found, chunk by chunk and together; a schema is resolved from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from afm_ctr.schema.moments import Moments

# Numbers of one field that are kept for its quantiles. With at most this many the quantiles are exact.
SAMPLE_LIMIT = 100_000
_HELD = 8  # samples of one field that wait to be joined


@dataclass(frozen=True)
class NumberFacts:
    """What is known of one numeric field."""

    count: int = 0  # numbers seen
    mean: float = 0.0  # of the encoded numbers (after log, when the field says so)
    std: float = 0.0  # their population standard deviation
    # float64, ascending: all raw numbers while there are at most ``SAMPLE_LIMIT``, else the numbers of the
    # ``SAMPLE_LIMIT`` rows whose hashed position is least: every row has the same chance
    sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))


@dataclass(frozen=True)
class NumberPart:
    """Facts of one field in some chunks, such that parts can be joined in any order."""

    moments: Moments  # of the encoded numbers
    keys: np.ndarray  # uint64 [n], the hashed positions of the sampled rows
    sample: np.ndarray  # float64 [n], their numbers

    @staticmethod
    def join(parts: Iterable[NumberPart]) -> NumberPart:
        """The parts as one."""
        parts = list(parts)
        keys = np.concatenate([part.keys for part in parts])
        sample = np.concatenate([part.sample for part in parts])
        if len(keys) > SAMPLE_LIMIT:
            kept = np.argpartition(keys, SAMPLE_LIMIT - 1)[:SAMPLE_LIMIT]
            keys, sample = keys[kept], sample[kept]
        return NumberPart(reduce(Moments.plus, (part.moments for part in parts)), keys, sample)

    def finish(self) -> NumberFacts:
        """The facts."""
        return NumberFacts(self.moments.n, *self.moments.mean_and_std(), np.sort(self.sample))


@dataclass(frozen=True)
class ChunkAnalysis:
    """Facts of one chunk of the train split, or of several joined ones. Picklable; joining is associative."""

    counts: Mapping[str, Mapping[bytes, int]]
    numbers: Mapping[str, NumberPart]

    @staticmethod
    def join(parts: Iterable[ChunkAnalysis]) -> ChunkAnalysis:
        """The parts as one; the order does not matter, and joined parts may be joined again.

        Parts are taken one by one and not kept: together they may be larger than memory.
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
    """Facts by name; a name that is not there was not analysed.

    Attributes:
        counts: of each vocabulary space, how often each value occurred.
        numbers: of each numeric field that needs statistics.
    """

    counts: Mapping[str, Mapping[bytes, int]] = field(default_factory=dict)
    numbers: Mapping[str, NumberFacts] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Analysis:
        """No facts: enough for a schema that needs none."""
        return cls()

    @classmethod
    def merge(cls, parts: Iterable[ChunkAnalysis]) -> Analysis:
        """The facts of all chunks together, bit for bit the same in whatever order and grouping they come."""
        joined = ChunkAnalysis.join(parts)
        return cls(joined.counts, {name: part.finish() for name, part in joined.numbers.items()})
