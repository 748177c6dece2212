"""A resolved schema: id ranges, statistics, vocabularies, slots, pairs, and lineage."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field

from afm_ctr.errors import UserError
from afm_ctr.io.files import as_user_error, write_bytes
from afm_ctr.io.validation import Strict, validate
from afm_ctr.io.yaml import read_yaml
from afm_ctr.schema.boundaries import log_square_boundaries
from afm_ctr.schema.fields import BucketEncoding, NumericField, slots_of
from afm_ctr.schema.spec import FeatureSchema, needs_statistics

FORMAT_VERSION = 2

_HEAD = """\
# A resolved schema: the user's schema (under `spec`) and the id ranges, statistics and vocabularies found for it.
# Written by afm-ctr. Prepared data and models name its id, so do not edit it: edit your own schema and prepare again.
"""


class IdRange(Strict):
    """Rows [``start``, ``start`` + ``size``) of the table hold the local ids of one space from ``local_start`` on.

    The row for a field's missing cells (``missing: own``) is the space ``<field>.missing``.
    """

    space: str
    local_start: int
    start: int
    size: int


class NumericStatistics(Strict):
    """Fitted statistics of a numeric field: 0 and 1 without standardising, no boundaries without buckets."""

    mean: float = 0.0
    std: float = 1.0
    boundaries: tuple[float, ...] = ()


@dataclass(frozen=True)
class Slot:
    """One of the F slots of a row."""

    index: int  # 0 … F−1
    field: str  # name of the field that fills it
    position: int  # index among the field's slots
    name: str  # the field's name, with ``[position]`` if the field has several slots


def missing_space(field_name: str) -> str:
    """The space that holds the id of a field's missing cells."""
    return f"{field_name}.missing"


class ResolvedSchema(Strict):
    """A schema with its ids decided; made by :func:`afm_ctr.schema.resolve`. Immutable and picklable.

    Id 0 means absent and belongs to no space; the spaces own ranges of [1, ``feature_size``).

    Attributes:
        spec: the schema as the user wrote it.
        lineage: ids of the schemas that this one continues, oldest first.
        ranges: the spaces' rows, ascending and without gaps from row 1 on.
        statistics: statistics of every numeric field.
        vocabularies: entries of every vocabulary space; the local id of entry i is ``oov`` + i.
        key_checks: :func:`afm_ctr.schema.keys.key_check` of every hash space with a key.
    """

    spec: FeatureSchema
    lineage: tuple[str, ...] = ()
    ranges: tuple[IdRange, ...]
    statistics: dict[str, NumericStatistics] = Field(default_factory=dict)
    vocabularies: dict[str, tuple[bytes, ...]] = Field(default_factory=dict, repr=False)
    key_checks: dict[str, str] = Field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the content, ancestors and vocabularies included."""
        content = json.dumps(self.content(), sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def content(self) -> dict[str, Any]:
        """The content that determines the id, as plain data; vocabularies by their digests."""
        return {
            "format_version": FORMAT_VERSION,
            # Without defaults: keys added by later versions do not change the id.
            "spec": self.spec.model_dump(mode="json", exclude_defaults=True),
            "lineage": list(self.lineage),
            "ranges": [r.model_dump() for r in self.ranges],
            "statistics": {name: s.model_dump(mode="json") for name, s in self.statistics.items()},
            "vocabularies": {
                name: {"entries": len(entries), "sha256": self.vocabulary_digests[name]}
                for name, entries in self.vocabularies.items()
            },
            **({"key_checks": self.key_checks} if self.key_checks else {}),
        }

    @cached_property
    def vocabulary_digests(self) -> dict[str, str]:
        """SHA-256 of every vocabulary's file."""
        return {name: hashlib.sha256(vocabulary_bytes(v)).hexdigest() for name, v in self.vocabularies.items()}

    @property
    def parent_id(self) -> str | None:
        """The id of the schema that this one continues."""
        return self.lineage[-1] if self.lineage else None

    def descends_from(self, other_id: str) -> bool:
        """Whether ``other_id`` is this schema or one of its ancestors."""
        return other_id == self.id or other_id in self.lineage

    @property
    def feature_size(self) -> int:
        """Rows of the table: ids are 0 (absent) … ``feature_size`` − 1."""
        return self.ranges[-1].start + self.ranges[-1].size if self.ranges else 1

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The F slots in order."""
        slots: list[Slot] = []
        for field in self.spec.fields:
            count = slots_of(field)
            for position in range(count):
                name = f"{field.name}[{position}]" if count > 1 else field.name
                slots.append(Slot(len(slots), field.name, position, name))
        return tuple(slots)

    @property
    def num_slots(self) -> int:
        """The number of slots, F."""
        return len(self.slots)

    @cached_property
    def pairs(self) -> np.ndarray:
        """int32 [P, 2]: slots i < j in lexicographic order, without pairs excluded by ``within_field_pairs``."""
        fields = self.spec.fields
        owner = np.repeat(np.arange(len(fields)), [slots_of(field) for field in fields])
        inner = np.array([getattr(field, "within_field_pairs", True) for field in fields])
        first, second = np.triu_indices(len(owner), 1)
        kept = (owner[first] != owner[second]) | inner[owner[first]]
        pairs = np.stack([first[kept], second[kept]], axis=1).astype(np.int32)
        pairs.setflags(write=False)
        return pairs

    @cached_property
    def pair_names(self) -> list[str]:
        """``"C1 x C2"`` for every pair, in the order of :attr:`pairs`."""
        return [f"{self.slots[i].name} x {self.slots[j].name}" for i, j in self.pairs]

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """The inputs of a raw row: see :attr:`FeatureSchema.raw_columns`."""
        return self.spec.raw_columns

    def ranges_of(self, space: str) -> list[IdRange]:
        """The ranges of a space, by local id; empty if there is no such space."""
        return sorted((r for r in self.ranges if r.space == space), key=lambda r: r.local_start)

    def global_id(self, space: str, local: int | np.ndarray) -> Any:
        """The table row of a space's local id (an int or an int64 array).

        Raises:
            ValueError: the space does not have such a local id.
        """
        ranges = self.ranges_of(space)
        index = np.asarray(local, np.int64)
        end = sum(r.size for r in ranges)
        if index.size and (index.min() < 0 or index.max() >= end):
            raise ValueError(f"space '{space}' has the local ids 0 … {end - 1}, not {local}")
        starts = np.array([r.local_start for r in ranges], np.int64)
        shifts = np.array([r.start - r.local_start for r in ranges], np.int64)
        result = index + shifts[np.searchsorted(starts, index, side="right") - 1]
        return int(result) if np.ndim(local) == 0 else result

    def local_ids(self, space: str, ids: np.ndarray) -> np.ndarray:
        """The local ids of table rows, int64 of any shape; -1 for rows outside the space."""
        local = np.full(ids.shape, -1, np.int64)
        for owned in self.ranges_of(space):
            inside = (ids >= owned.start) & (ids < owned.start + owned.size)
            local[inside] = ids[inside] - owned.start + owned.local_start
        return local

    def save(self, folder: str | Path) -> None:
        """Write ``schema.yaml`` and ``vocab/<space>.txt`` (one entry per line), each atomically."""
        _save(self, Path(folder))

    @classmethod
    def load(cls, path: str | Path) -> ResolvedSchema:
        """Read a saved schema from the folder or its ``schema.yaml``.

        Raises:
            UserError: a file is missing or damaged, or does not match the others.
        """
        return _load(Path(path))


def vocabulary_bytes(entries: tuple[bytes, ...]) -> bytes:
    """The content of a vocabulary's file: one entry per line."""
    return b"".join(entry + b"\n" for entry in entries)


def derived_statistics(spec: FeatureSchema) -> set[str]:
    """Numeric fields whose statistics follow from the schema; the file does not repeat them."""
    return {f.name for f in spec.fields if isinstance(f, NumericField) and not needs_statistics(f)}


def statistics_from_spec(spec: FeatureSchema) -> dict[str, NumericStatistics]:
    """Statistics of the numeric fields that need no data."""
    found = {}
    for field in spec.fields:
        if not isinstance(field, NumericField) or needs_statistics(field):
            continue
        encoding = field.encoding
        boundaries: tuple[float, ...] = ()
        if isinstance(encoding, BucketEncoding):
            boundaries = log_square_boundaries() if encoding.log_square else encoding.boundaries or ()
        found[field.name] = NumericStatistics(boundaries=boundaries)
    return found


class _Digest(Strict):
    entries: int
    sha256: str


class _File(Strict):
    format_version: int
    id: str
    lineage: tuple[str, ...]
    feature_size: int
    ranges: tuple[IdRange, ...]
    statistics: dict[str, NumericStatistics]
    vocabularies: dict[str, _Digest]
    key_checks: dict[str, str] = Field(default_factory=dict)
    spec: FeatureSchema


def _save(schema: ResolvedSchema, folder: Path) -> None:
    """See :meth:`ResolvedSchema.save`. Vocabularies are written first: ``schema.yaml`` never names absent files."""
    for space, entries in schema.vocabularies.items():
        write_bytes(folder / "vocab" / f"{space}.txt", vocabulary_bytes(entries))
    content = schema.content()
    derived = derived_statistics(schema.spec)
    document = {
        "format_version": FORMAT_VERSION,
        "id": schema.id,
        "lineage": content["lineage"],
        "feature_size": schema.feature_size,
        "ranges": content["ranges"],
        "statistics": {name: s for name, s in content["statistics"].items() if name not in derived},
        "vocabularies": content["vocabularies"],
        **{name: content[name] for name in ("key_checks",) if name in content},
        "spec": content["spec"],
    }
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_bytes(folder / "schema.yaml", (_HEAD + text).encode())


def _load(path: Path) -> ResolvedSchema:
    """See :meth:`ResolvedSchema.load`."""
    file = path / "schema.yaml" if path.is_dir() or path.suffix not in (".yaml", ".yml") else path
    data = read_yaml(file)
    if not isinstance(data, dict) or "format_version" not in data:
        raise UserError(f"{file}: is not a resolved schema (`afm-ctr prepare` writes one into its output folder)")
    if data["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{file}: format_version: {data['format_version']!r}: this afm-ctr reads version {FORMAT_VERSION}; "
            "prepare the data again, or use the afm-ctr that wrote it"
        )
    read = validate(_File, data, file)
    schema = ResolvedSchema(
        spec=read.spec,
        lineage=read.lineage,
        ranges=read.ranges,
        statistics=statistics_from_spec(read.spec) | read.statistics,
        vocabularies={name: _vocabulary(file, name, digest) for name, digest in read.vocabularies.items()},
        key_checks=read.key_checks,
    )
    for name, digest in read.vocabularies.items():
        if schema.vocabulary_digests[name] != digest.sha256:
            raise UserError(
                f"{file.parent / 'vocab' / name}.txt: differs from the vocabulary that {file} was written with; "
                "restore it or prepare the data again"
            )
    if schema.id != read.id:
        raise UserError(
            f"{file}: id: {read.id!r}: the content has the id '{schema.id}': the file was edited or damaged; "
            "restore it or prepare the data again"
        )
    return schema


def _vocabulary(file: Path, space: str, digest: _Digest) -> tuple[bytes, ...]:
    path = file.parent / "vocab" / f"{space}.txt"
    with as_user_error(f"{path}: cannot be read"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such file, but {file} refers to it; restore it or prepare the data again"
            ) from None
    return tuple(content.split(b"\n")[:-1])


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line; no anchors; texts that our loader would misread are quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        # PyYAML would use single quotes, in which U+0085 ends a line.
        return self.represent_scalar("tag:yaml.org,2002:str", data, '"' if "\x85" in data else None)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = all(not isinstance(item, (dict, list, tuple)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)


_Dumper.add_representer(str, _Dumper.represent_str)
# In YAML 1.1, which PyYAML writes, 1e5 is a text; in YAML 1.2, which our loader reads, it is a number.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
