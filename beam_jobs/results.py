"""What the passes hand on through Beam: typed, each with a coder of its own, and joined by a ``CombineFn``.

Their bytes are JSON and arrays. Reading them runs no code, whoever wrote them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import apache_beam as beam
import numpy as np
from apache_beam.coders.typecoders import registry

from afm_ctr.io.packed import pack, unpack
from afm_ctr.schema.analysis_results import ChunkAnalysis, NumberPart
from afm_ctr.schema.moments import Moments
from afm_ctr.statistics import PartialStatistics

_HELD = 8  # facts of numbers that wait to be joined


class _Packable(Protocol):
    def to_bytes(self) -> bytes: ...
    @classmethod
    def from_bytes(cls, content: bytes) -> Self: ...


P = TypeVar("P", bound=_Packable)


class PackedCoder(beam.coders.Coder, Generic[P]):
    """The coder of a type that has ``to_bytes`` and ``from_bytes``."""

    def __init__(self, kind: type[P]) -> None:
        self._kind = kind

    def encode(self, value: P) -> bytes:
        return value.to_bytes()

    def decode(self, encoded: bytes) -> P:
        return self._kind.from_bytes(encoded)

    def estimate_size(self, value: P) -> int:
        return 1  # of some elements Beam counts the bytes; it would encode them for that

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[P]:
        return self._kind

    @classmethod
    def from_type_hint(cls, typehint: Any, registry: Any) -> Any:
        return cls(typehint)


def packed(kind: type[P]) -> type[P]:
    """Decorator: Beam encodes values of the type by :class:`PackedCoder`."""
    registry.register_coder(kind, PackedCoder)
    return kind


class Counted(NamedTuple):
    """What the counting pass says of a piece: data lines (header left out), and whether the stream is broken."""

    number: int
    lines: int
    broken: bool = False

    @property
    def rows(self) -> int:
        return self.lines + self.broken

    @property
    def counters(self) -> dict[str, int]:
        return {"lines": self.rows}


class Analysed(NamedTuple):
    """What the analysis pass says of a chunk."""

    number: int
    train_rows: int  # good rows of the split ``train``
    other_rows: int  # good rows of other splits, or thinned out
    rejects: dict[str, int]  # by reason
    counts: str | None  # the file that holds the counts of its vocabularies' values; None where there are none
    parts: int  # of that file

    @property
    def rows(self) -> int:
        return self.train_rows + self.other_rows + sum(self.rejects.values())

    @property
    def counters(self) -> dict[str, int]:
        return {"analysed_rows": self.train_rows}


class Converted(NamedTuple):
    """What the conversion pass says of a chunk."""

    number: int
    shards: list[dict[str, Any]]  # what :class:`afm_ctr.records.ShardInfo` takes, of each
    rejects: dict[str, int]  # by reason
    sampled_out: int  # negatives that were thinned out
    # of each multi-valued field the values beyond ``max_values``, and the rows that had such
    cut: dict[str, list[int]]
    samples: list[dict[str, str]]  # the raw columns of some rows

    @property
    def rows_out(self) -> int:
        return sum(shard["rows"] for shard in self.shards)

    @property
    def rows(self) -> int:
        return self.rows_out + sum(self.rejects.values()) + self.sampled_out

    @property
    def counters(self) -> dict[str, int]:
        counts = {"rows": self.rows_out, "bytes": sum(shard["bytes"] for shard in self.shards)}
        counts |= {"shards": len(self.shards)}
        counts |= {"sampled_out": self.sampled_out} if self.sampled_out else {}
        return counts | {f"rejects_{reason}": count for reason, count in self.rejects.items()}


C = TypeVar("C", Counted, Analysed, Converted)


@dataclass
class Found(Generic[C]):
    """What a pass found in some chunks."""

    chunks: list[C]

    def add(self, other: Self) -> None:
        """Take other chunks into account: in any order and grouping they come to the same."""
        self.chunks += other.chunks

    def in_order(self) -> list[C]:
        """The chunks, ascending."""
        return sorted(self.chunks, key=lambda chunk: chunk.number)

    def to_bytes(self) -> bytes:
        return pack(self.chunks)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Raises ValueError, TypeError or KeyError where the bytes are not of :meth:`to_bytes`."""
        raise NotImplementedError


F = TypeVar("F", bound=Found[Any])


@packed
@dataclass
class CountedPieces(Found[Counted]):
    """What the counting pass found."""

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        chunks, _ = unpack(content)
        return cls([Counted(*chunk) for chunk in chunks])


@packed
@dataclass
class AnalysedChunks(Found[Analysed]):
    """What the analysis pass found."""

    numbers: list[ChunkAnalysis]  # the facts of numeric fields, in parts

    def add(self, other: Self) -> None:
        super().add(other)
        self.numbers += other.numbers
        if len(self.numbers) >= _HELD:
            self.numbers = [ChunkAnalysis.join(self.numbers)]

    def to_bytes(self) -> bytes:
        numbers = ChunkAnalysis.join(self.numbers).numbers
        moments = {name: part.moments for name, part in numbers.items()}
        return pack(
            [self.chunks, moments], [array for part in numbers.values() for array in (part.keys, part.sample)]
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        (chunks, moments), arrays = unpack(content)
        numbers = {
            name: NumberPart(Moments(*found), arrays[2 * at], arrays[2 * at + 1])
            for at, (name, found) in enumerate(moments.items())
        }
        return cls([Analysed(*chunk) for chunk in chunks], [ChunkAnalysis({}, numbers)])


@packed
@dataclass
class ConvertedChunks(Found[Converted]):
    """What the conversion pass found."""

    statistics: PartialStatistics  # of the rows of ``train``

    def add(self, other: Self) -> None:
        super().add(other)
        self.statistics.add(other.statistics)

    def to_bytes(self) -> bytes:
        return pack(self.chunks, [np.frombuffer(self.statistics.to_bytes(), np.uint8)])

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        chunks, (statistics,) = unpack(content)
        return cls([Converted(*chunk) for chunk in chunks], PartialStatistics.from_bytes(statistics.tobytes()))


class Join(beam.CombineFn, Generic[F]):
    """The findings of a pass together, in whatever order and grouping they come; packed, as they are handed over.

    Accumulators are packed before Beam encodes them: next to a worker of its in-process runner a thread sends, once a
    second, what has been encoded so far, and a coder in Python may be in the middle of an element then.
    """

    def __init__(self, kind: type[F]) -> None:
        self._kind = kind

    def create_accumulator(self) -> F | bytes:
        return b""

    def add_input(self, total: F | bytes, part: F) -> F | bytes:
        if not total:
            return copy.deepcopy(part)  # the part is not ours to change
        whole = self._kind.from_bytes(total) if isinstance(total, bytes) else total
        whole.add(part)
        return whole

    def merge_accumulators(self, totals: Iterable[F | bytes]) -> bytes:
        whole: F | bytes = b""
        for total in totals:
            if total:
                whole = self.add_input(whole, self._kind.from_bytes(total) if isinstance(total, bytes) else total)
        return self.compact(whole)

    def compact(self, total: F | bytes) -> bytes:
        return total if isinstance(total, bytes) else total.to_bytes()

    def extract_output(self, total: F | bytes) -> bytes:
        return self.compact(total)

    def get_accumulator_coder(self) -> beam.coders.Coder:
        return beam.coders.BytesCoder()

    def get_type_hints(self) -> Any:
        hints = beam.typehints.decorators.IOTypeHints.empty()
        return hints.with_input_types(self._kind).with_output_types(bytes)
