"""The manifest: a prepared data set exists if and only if its ``manifest.json`` does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from afm_ctr.errors import UserError
from afm_ctr.io import files, paths
from afm_ctr.io.secrets import mask_command
from afm_ctr.io.validation import Strict, validate
from afm_ctr.schema import FeatureSchema
from afm_ctr.sidetables import TABLES_FOLDER, SideTables
from afm_ctr.statistics import DataStatistics

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION: Final = 1
AGAIN = "prepare the data set again"


def _below(path: str) -> str:
    """A path that stays in its folder, as a manifest may come from elsewhere."""
    if path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("must be a path below the data set's folder")
    return path


Below = Annotated[str, AfterValidator(_below)]


class ShardInfo(Strict):
    """One file of records."""

    split: str
    file: Below
    """Path below the attempt folder: ``train/part-00000.tfrecord``."""
    rows: int = Field(ge=0)
    positives: int = Field(ge=0)
    """Rows whose label is greater than 0."""
    label_sums: tuple[float, float] | None = None
    """Σ weight and Σ weight · label of the rows; None: unlabelled, or written before these were counted."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    compression: Literal["none", "gzip"] = "none"
    block_records: int = Field(ge=1)
    block_offsets: list[int]
    """First byte of every block of ``block_records`` rows (the last may be short); of the uncompressed stream if
    the shard is compressed."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> ShardInfo:
        blocks = -(-self.rows // self.block_records)
        if len(self.block_offsets) != blocks:
            raise ValueError(
                f"{self.file}: {len(self.block_offsets)} block_offsets, but {self.rows} rows make {blocks} blocks"
            )
        offsets = self.block_offsets
        if any(a >= b for a, b in pairwise(offsets)) or (offsets and offsets[0] != 0):
            raise ValueError(f"{self.file}: block_offsets must rise from 0")
        if self.compression == "none" and offsets and offsets[-1] >= self.bytes:
            raise ValueError(f"{self.file}: a block starts behind its {self.bytes} bytes")
        if self.positives > self.rows:
            raise ValueError(f"{self.file}: {self.positives} positives in {self.rows} rows")
        return self


class TableInfo(Strict):
    """A copy of a side table: ``side/<name>.jsonl``."""

    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str

    @classmethod
    def of(cls, tables: SideTables | None) -> dict[str, TableInfo]:
        """The entry of each table."""
        return {
            Path(name).stem: cls(
                rows=content.count(b"\n") - 1, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
            )
            for name, content in (tables.contents() if tables is not None else {}).items()
        }


class CutInfo(Strict):
    """Values dropped from the cells of a multi-valued field, in the rows of all splits.

    Attributes:
        values: number beyond ``max_values``.
        rows: number with such a cell.
    """

    values: int = Field(ge=1)
    rows: int = Field(ge=1)


class Manifest(Strict):
    """The content of a prepared data set and its origin. The order of ``shards`` is the data set's file order."""

    format_version: Literal[1] = FORMAT_VERSION
    attempt: Below
    """Folder with this run's shards, below the data set's; an earlier, interrupted run left another one."""
    schema_id: str
    shards: list[ShardInfo]
    rows_in: int = Field(ge=0)
    rows_out: int = Field(ge=0)
    rejects: dict[str, int] = Field(default_factory=dict)
    """Number of rejected rows, by reason."""
    side_tables: dict[str, TableInfo] = Field(default_factory=dict)
    """The side tables that rows were joined with, by name."""
    rejects_kept: dict[str, int] = Field(default_factory=dict)
    """How many of them ``rejects/`` holds: the first ones of each reason."""
    sampled_out: int = Field(default=0, ge=0)
    """Negatives of the split ``train`` that were thinned out (``negative_sampling.apply: here``)."""
    cut: dict[str, CutInfo] = Field(default_factory=dict)
    """For each multi-valued field with cells of more than ``max_values`` values, the number dropped."""
    split_rule: str | None = None
    command: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    labelled: bool = True
    created: str = ""
    """UTC, ISO 8601."""
    statistics: DataStatistics | None = None
    """Of the split ``train``, field by field."""

    @field_validator("command")
    @classmethod
    def _without_secrets(cls, command: str) -> str:
        return mask_command(command)

    @model_validator(mode="after")
    def _conserved(self) -> Manifest:
        in_shards = sum(shard.rows for shard in self.shards)
        if in_shards != self.rows_out:
            raise ValueError(f"the shards hold {in_shards} rows, rows_out says {self.rows_out}")
        rejected = sum(self.rejects.values())
        if self.rows_in != self.rows_out + rejected + self.sampled_out:
            raise ValueError(
                f"rows_in {self.rows_in} is not rows_out {self.rows_out} + rejects {rejected} + sampled_out "
                f"{self.sampled_out}"
            )
        return self

    @property
    def splits(self) -> dict[str, int]:
        """Rows of every split, in the order of the shards."""
        rows: dict[str, int] = {}
        for shard in self.shards:
            rows[shard.split] = rows.get(shard.split, 0) + shard.rows
        return rows

    def shards_of(self, split: str) -> list[ShardInfo]:
        """The shards of a split that hold rows.

        Raises:
            UserError: no such split, or an empty one; lists the existing ones.
        """
        shards = [shard for shard in self.shards if shard.split == split and shard.rows]
        if not shards:
            there = ", ".join(f"{name} ({rows} rows)" for name, rows in self.splits.items()) or "none"
            what = "is empty" if split in self.splits else "is not there"
            raise UserError(f"split {split!r} {what}; splits of this data set: {there}")
        return shards

    def split_rows(self, split: str) -> int:
        """Rows of a split. Raises as :meth:`shards_of` does."""
        return sum(shard.rows for shard in self.shards_of(split))

    def tables(self, data_dir: str | os.PathLike[str], spec: FeatureSchema) -> SideTables | None:
        """The copies of the schema's side tables.

        Raises:
            UserError: one is missing, or is not the one that the rows were joined with.
        """
        tables = SideTables.load(data_dir, spec)
        if TableInfo.of(tables) != self.side_tables:
            raise UserError(
                f"{paths.join(data_dir, TABLES_FOLDER)} does not hold the tables of {MANIFEST_NAME}; {AGAIN}"
            )
        return tables

    def path_of(self, data_dir: str | os.PathLike[str], shard: ShardInfo) -> str:
        """Path of a shard's file."""
        return paths.join(data_dir, self.attempt, shard.file)

    def save(self, data_dir: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` through a temporary file and a rename, which makes the data set exist."""
        head = self.model_dump(mode="json", exclude={"shards", "statistics"})
        text = json.dumps(head, indent=2).removesuffix("\n}")
        if self.statistics is not None:
            whole = json.dumps(self.statistics.model_dump(mode="json", exclude={"fields"}))
            text += (
                f',\n  "statistics": {whole.removesuffix("}")}, "fields": {_a_line_each(self.statistics.fields)}}}'
            )
        text += f',\n  "shards": {_a_line_each(self.shards)}\n}}\n'
        files.write_bytes(paths.join(data_dir, MANIFEST_NAME), text.encode())

    @classmethod
    def load(cls, data_dir: str | os.PathLike[str], check_files: bool = True) -> Manifest:
        """Read ``manifest.json`` and, by default, compare every shard's size with it.

        Raises:
            UserError: it is missing, damaged or of another version, or a shard is missing or of another size.
        """
        path = paths.join(data_dir, MANIFEST_NAME)
        if paths.size_of(path) is None:
            raise UserError(
                f"{os.fspath(data_dir)} is not a prepared data set: no {MANIFEST_NAME}; run afm-ctr prepare"
            )
        with paths.open_binary(path) as stream:
            text = stream.read()
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({error}); {AGAIN}") from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format_version {version!r} is not {FORMAT_VERSION}, the one known here; {AGAIN}"
            )
        try:
            manifest = validate(cls, content, path)
        except UserError as error:
            raise UserError(f"{error}; {AGAIN}") from None
        if check_files:
            for shard in manifest.shards:
                size = paths.size_of(manifest.path_of(data_dir, shard))
                if size != shard.bytes:
                    found = "is missing" if size is None else f"has {size} bytes"
                    raise UserError(
                        f"{manifest.path_of(data_dir, shard)} {found}, the manifest says {shard.bytes} bytes; {AGAIN}"
                    )
        return manifest


def _a_line_each(entries: Sequence[BaseModel]) -> str:
    """A JSON list with one entry per line: the numbers of a large data set would otherwise take a line each."""
    lines = ",\n".join("    " + json.dumps(entry.model_dump(mode="json")) for entry in entries)
    return "[" + (f"\n{lines}\n  " if lines else "") + "]"
