"""The rows that all models get: prepared once, then as arrays a split, ours and in the form that FuxiCTR takes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import ROOT, Dataset

from afm_ctr.records import Manifest, Reader
from afm_ctr.schema import ResolvedSchema

READING_BATCH = 8192


class Rows(NamedTuple):
    """A split: ``ids`` int64 [n, F] with 0 for absent, ``vals`` float32 [n, F], ``labels`` float32 [n], 0 or 1."""

    ids: np.ndarray
    vals: np.ndarray
    labels: np.ndarray


class PreparedRows(NamedTuple):
    """A data set as the workers find it.

    Attributes:
        data: the prepared data set.
        ours: the file of each split, with the arrays of :class:`Rows`.
        peers: the same rows, a column a field and ``label``.
        fields: what the peers' columns hold.
        digest: of all rows.
        labels: of each split.
    """

    data: Path
    ours: dict[str, str]
    peers: dict[str, str]
    fields: list[dict[str, Any]]
    digest: str
    labels: dict[str, np.ndarray]


def prepare(dataset: Dataset, data: Path, folder: Path) -> Path:
    """The data set in ``folder``, made by ``afm-ctr prepare`` unless that was done."""
    folder.mkdir(parents=True, exist_ok=True)
    target, stamp = folder / "prepared", folder / "prepared.json"
    schema = ROOT / dataset.schema
    rule = dataset.split(data, folder)
    wanted = json.dumps([schema.read_text(encoding="utf-8"), rule])
    if not stamp.exists() or stamp.read_text() != wanted:
        command = [str(Path(sys.executable).with_name("afm-ctr")), "prepare", "--schema", str(schema), *rule]
        subprocess.run([*command, "--output", str(target), "--overwrite"], check=True, stdout=subprocess.DEVNULL)
        stamp.write_text(wanted)
    return target


def read_split(data: Path, split: str) -> Rows:
    reader = Reader(data, split, READING_BATCH, shuffle=False)
    parts = []
    for step in range(reader.steps_per_epoch):
        batch, real = reader.batch(0, step), slice(0, reader.local_rows(step))
        parts.append([batch[name][real] for name in ("feature_ids", "feature_vals", "label")])
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def read_file(data: Path, path: str) -> Rows:
    """The rows of a raw log of the data set's kind, which is not part of it."""
    import tensorflow as tf

    from afm_ctr.features import FeatureTransform
    from afm_ctr.rawlog import parse_log
    from afm_ctr.sidetables import SideTables

    schema = ResolvedSchema.load(data)
    transform, parts, rejected = FeatureTransform(schema), [], 0
    for parsed in parse_log(path, schema.spec, tables=SideTables.load(data, schema.spec)):
        rejected += len(parsed.rejects)
        if len(parsed):
            cells = {name: tf.constant(parsed.columns[name], tf.string) for name in schema.raw_columns}
            encoded = transform(cells)
            parts.append([encoded.feature_ids.numpy(), encoded.feature_vals.numpy(), parsed.labels])
    if rejected:
        raise SystemExit(f"{path}: {rejected} lines are no rows of this data set")
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class PeerFields:
    """How FuxiCTR gets our slots: a field each, whose ids are numbered through from 1, with 0 for absent.

    A slot of one id that is always there is a number, for FuxiCTR as for us a vector times the value. A field of one
    slot has values of 1. A field of several slots, each of which holds 1/n of the n present ones, is a sequence whose
    vectors FuxiCTR averages before it pairs them with the other fields' (in our models its slots pair one by one). An
    id that no split holds is the last one of its field, which nothing trains.

    Raises:
        ValueError: a field that is none of these.
    """

    def __init__(self, schema: ResolvedSchema, splits: list[Rows]) -> None:
        ids, vals = (np.concatenate([getattr(split, name) for split in splits]) for name in ("ids", "vals"))
        self.slots: dict[str, list[int]] = {}
        for slot in schema.slots:
            self.slots.setdefault(slot.field, []).append(slot.index)
        self.known: dict[str, np.ndarray] = {}
        self.fields = [self._describe(name, ids[:, slots], vals[:, slots]) for name, slots in self.slots.items()]

    def _describe(self, name: str, ids: np.ndarray, vals: np.ndarray) -> dict[str, Any]:
        present = ids != 0
        known = self.known[name] = np.unique(ids[present])
        share = 1.0 / np.maximum(present.sum(axis=1, keepdims=True), 1)
        field = {"name": name, "size": len(known) + 2, "padded": not present.all(), "length": ids.shape[1]}
        if np.allclose(vals, np.where(present, share, 0.0)):
            return field | {"type": "sequence" if ids.shape[1] > 1 else "categorical"}
        if len(known) == 1 and present.all() and ids.shape[1] == 1:
            return field | {"type": "numeric"}
        raise ValueError(f"field {name} is neither ids of value 1 nor a number nor a mean of ids: leave it out")

    def columns(self, rows: Rows) -> dict[str, np.ndarray]:
        """Int64 [n] or [n, length] ids, or float32 [n] numbers, by field, and ``label`` float32 [n]."""
        found: dict[str, np.ndarray] = {"label": rows.labels}
        for field in self.fields:
            name = field["name"]
            ids, known = rows.ids[:, self.slots[name]], self.known[name]
            if field["type"] == "numeric":
                found[name] = rows.vals[:, self.slots[name][0]]
                continue
            place = np.searchsorted(known, ids)
            seen = known[np.minimum(place, len(known) - 1)] == ids
            local = np.where(ids == 0, 0, np.where(seen, place + 1, len(known) + 1))
            found[name] = local if field["type"] == "sequence" else local[:, 0]
        return found


def export(dataset: Dataset, data: Path, folder: Path, file: str | None = None) -> PreparedRows:
    """Prepare, and write the arrays of all splits; ``file`` is one more, with the name ``file``."""
    target = prepare(dataset, data, folder)
    manifest, schema = Manifest.load(target), ResolvedSchema.load(target)
    splits = {name: read_split(target, name) for name, count in manifest.splits.items() if count}
    fields = PeerFields(schema, list(splits.values()))
    sha = hashlib.sha256(str(schema.id).encode())
    for name, rows in splits.items():
        for array in rows:
            sha.update(f"{name} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    if file is not None:
        rows = read_file(target, file)
        splits[f"file-{hashlib.sha256(rows.ids.tobytes() + rows.labels.tobytes()).hexdigest()[:8]}"] = rows
    ours = {name: str(folder / f"rows-{name}.npz") for name in splits}
    peers = {name: str(folder / f"peers-{name}.npz") for name in splits}
    for name, rows in splits.items():
        write(ours[name], rows._asdict())
        write(peers[name], fields.columns(rows))
    labels = {name: rows.labels for name, rows in splits.items()}
    return PreparedRows(target, ours, peers, fields.fields, sha.hexdigest()[:16], labels)


def write(file: str, arrays: dict[str, np.ndarray]) -> None:
    """Written under a temporary name and renamed: another call of the command may be reading what was there."""
    temporary = Path(file).with_name(f".tmp-{Path(file).name}")
    np.savez(temporary, **arrays)
    temporary.replace(file)
