"""Small raw logs with some damage, plain and gzip, and what a data set prepared from them holds."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

from afm_ctr.records import Manifest
from afm_ctr.schema import ResolvedSchema

SCHEMA = """
name: torture
format: {kind: delimited, header: true}
label: {column: click}
key: id
group: user
negative_sampling: {rate: 0.75, correct: weights, apply: here}
fields:
  - {name: price, kind: numeric, encoding: {kind: value, log: true, standardise: true}}
  - {name: age, kind: numeric, encoding: {kind: buckets, quantiles: 5}, missing: own}
  - {name: site, kind: categorical, encoding: {kind: vocabulary, min_count: 2}}
  - {name: user, kind: categorical, encoding: {kind: hash, buckets: 1000}}
  - {name: tags, kind: categorical, encoding: {kind: hash, buckets: 100}, separator: "|", max_values: 3}
"""


def make_log(path: Path, rows: int, seed: int) -> None:
    """Write so many good rows, and a bad line behind every 97th."""
    pick = random.Random(seed)
    lines = [b"id,click,price,age,site,user,tags"]
    for i in range(rows):
        tags = "|".join(pick.choice("abcdef") for _ in range(pick.randrange(4)))
        cells = f"{path.name}-{i},{pick.randrange(2)},{pick.random() * 1e3:.3f},{pick.choice(['', 20, 35, 61])}"
        lines.append(f"{cells},site{pick.randrange(300)},u{pick.randrange(500)},{tags}".encode())
        if i % 97 == 0:
            lines.append(pick.choice([b"", b"a,b", b"x,1,nan,1,s,u,t", b"\xff,1,1,1,s,u,t", b'y,1,"1,1,s,u,t']))
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write(folder: Path, rows: int = 6000) -> dict[str, Any]:
    """Write schema, a plain log and a gzip one of two thirds the rows; returns options of prepare, fit for JSON."""
    (folder / "schema.yaml").write_text(SCHEMA)
    make_log(folder / "a.csv", rows, 1)
    make_log(folder / "b.csv.gz", rows * 2 // 3, 2)
    return {
        "schema": str(folder / "schema.yaml"),
        "inputs": [str(folder / "*.csv"), str(folder / "*.gz")],
        "split": "hash:user:80/10/10",
        "chunk_bytes": 5 * rows,
        "chunk_lines": 700,
        "max_reject_share": 0.02,
        "max_rejects_kept": 9,
    }


def contents(out: Path) -> dict[str, Any]:
    """All that must be the same however a data set was prepared."""
    manifest = Manifest.load(out)
    assert manifest.statistics is not None
    return {
        "shards": [(shard.file, shard.sha256, shard.rows, shard.positives) for shard in manifest.shards],
        "rejects": {path.name: path.read_bytes() for path in sorted((out / "rejects").iterdir())},
        "counts": (manifest.rows_in, manifest.rows_out, manifest.sampled_out, manifest.rejects),
        "statistics": manifest.statistics.model_dump(),
        "schema": ResolvedSchema.load(out).id,
        "samples": (out / "sample_rows.jsonl").read_bytes(),
    }
