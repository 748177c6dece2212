"""A small prepared data set written without a pipeline, for tests of what comes after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afm_ctr.records import Manifest, ShardInfo, ShardWriter, serialize_examples
from afm_ctr.schema import Analysis, FeatureSchema, ResolvedSchema, resolve

FIELDS, IDS, SHARD_ROWS = 4, 12, 40
SPLITS = {"train": 100, "valid": 50, "test": 30}


def schema(ids: int = IDS, parent: ResolvedSchema | None = None, **changes: Any) -> ResolvedSchema:
    """Four fields of declared ids and a group column; ``changes`` replace keys of the specification."""
    spec = {
        "name": "small",
        "format": {"kind": "delimited", "header": False, "columns": ["label", "user", *"abcd"]},
        "label": {"column": "label", "kind": "binary"},
        "group": "user",
        "fields": [
            {"name": name, "kind": "categorical", "encoding": {"kind": "ids", "size": ids}} for name in "abcd"
        ],
    }
    return resolve(FeatureSchema.model_validate({**spec, **changes}), Analysis.empty(), parent)


def rows_of(split: str, count: int) -> dict[str, Any]:
    """Rows whose click follows from whether the first two ids agree in parity; ids repeat, some slots are absent."""
    rng = np.random.default_rng(sum(split.encode()))
    local = np.minimum(rng.geometric(0.3, [count, FIELDS]) - 1, IDS - 1)
    present = rng.random(local.shape) > 0.1
    return {
        "feature_ids": np.where(present, 1 + local + IDS * np.arange(FIELDS), 0),
        "feature_vals": np.where(present, rng.uniform(0.5, 1.5, local.shape), 0).astype(np.float32),
        "labels": ((local[:, 0] + local[:, 1]) % 2 == 0).astype(np.float32),
        "weights": rng.integers(1, 4, count).astype(np.float32),
        "groups": (rng.integers(0, 5, count), np.ones(count, bool)),
        "keys": [f"{split}-{row}".encode() for row in range(count)],
    }


def write(
    folder: Path,
    splits: Mapping[str, int] = SPLITS,
    resolved: ResolvedSchema | None = None,
    labelled: bool = True,
    **changes: Any,
) -> Path:
    """Write the splits in shards of 40 rows and blocks of 8; ``changes`` replace columns of the rows."""
    resolved = resolved or schema()
    shards = []
    for split, count in splits.items():
        records = serialize_examples(**{**rows_of(split, count), **changes})
        for number, start in enumerate(range(0, count, SHARD_ROWS)):
            file = f"{split}/part-{number:05d}.tfrecord"
            path = folder / "attempt" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                writer = ShardWriter(stream, block_records=8)
                writer.write(records[start : start + SHARD_ROWS])
                stats = writer.close()
            positives = int(rows_of(split, count)["labels"][start : start + SHARD_ROWS].sum()) if labelled else 0
            shards.append(ShardInfo(split=split, file=file, positives=positives, block_records=8, **stats._asdict()))
    resolved.save(folder)
    rows = sum(splits.values())
    Manifest(
        attempt="attempt", schema_id=resolved.id, shards=shards, rows_in=rows, rows_out=rows, labelled=labelled
    ).save(folder)
    return folder
