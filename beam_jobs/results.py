"""Results of the passes: typed, each with its own Beam coder, and joined by a ``CombineFn``.

They are encoded as JSON and arrays, so that decoding untrusted bytes runs no code.
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

_HELD = 8  # parts of numeric statistics to collect before joining them


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
        return 1  # Beam samples sizes of elements, and would encode them for that

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
    """Result of the counting pass for a piece: data lines without the header, and whether the stream is broken."""

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
    """Result of the analysis pass for a chunk."""

    number: int
    train_rows: int  # good rows of the split ``train``
    other_rows: int  # good rows of other splits, or sampled out
    rejects: dict[str, int]  # by reason
    counts: str | None  # the file with the counts of its vocabularies' values, if there are any
    parts: int  # number of parts in that file

    @property
    def rows(self) -> int:
        return self.train_rows + self.other_rows + sum(self.rejects.values())

    @property
    def counters(self) -> dict[str, int]:
        return {"analysed_rows": self.train_rows}


class Converted(NamedTuple):
    """Result of the conversion pass for a chunk."""

    number: int
    shards: list[dict[str, Any]]  # the arguments of :class:`afm_ctr.records.ShardInfo`
    rejects: dict[str, int]  # by reason
    sampled_out: int  # negatives that were sampled out
    cut: dict[str, list[int]]  # by multi-valued field: values beyond ``max_values``, and rows with such values
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
    """Results of a pass for some chunks."""

    chunks: list[C]

    def add(self, other: Self) -> None:
        """Add the results of other chunks; order and grouping do not matter."""
        self.chunks += other.chunks

    def in_order(self) -> list[C]:
        """The chunks, ascending."""
        return sorted(self.chunks, key=lambda chunk: chunk.number)

    def to_bytes(self) -> bytes:
        return pack(self.chunks)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Decode :meth:`to_bytes`. Raises ValueError, TypeError or KeyError for other bytes."""
        raise NotImplementedError


F = TypeVar("F", bound=Found[Any])


@packed
@dataclass
class CountedPieces(Found[Counted]):
    """Results of the counting pass."""

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        chunks, _ = unpack(content)
        return cls([Counted(*chunk) for chunk in chunks])


@packed
@dataclass
class AnalysedChunks(Found[Analysed]):
    """Results of the analysis pass."""

    numbers: list[ChunkAnalysis]  # statistics of numeric fields, in parts

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
    """Results of the conversion pass."""

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
    """Joins the results of a pass, in any order and grouping, into bytes.

    Accumulators are packed before Beam encodes them: a thread of Beam's in-process runner sends, once a second, the
    bytes encoded so far, possibly while a Python coder is in the middle of an element.
    """

    def __init__(self, kind: type[F]) -> None:
        self._kind = kind

    def create_accumulator(self) -> F | bytes:
        return b""

    def add_input(self, total: F | bytes, part: F) -> F | bytes:
        if not total:
            return copy.deepcopy(part)  # a CombineFn must not change its input
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
