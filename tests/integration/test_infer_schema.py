"""Logs that nobody has described: infer-schema writes a schema, and prepare takes it as it is."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from afm_ctr.infer import infer_schema, save
from afm_ctr.records import Manifest
from afm_ctr.synthetic import make_logs
from beam_jobs import PrepareOptions, prepare

MOST_LINES = 8000
REAL = {
    "criteo": ("criteo/criteo_120k.tsv.gz", None, 39),
    "avazu": ("avazu/avazu_9999.csv.gz", None, 21),  # without the key, and an hour that never changes
    "movielens": ("movielens-100k/u.data", "c3", 4),  # user, film, hour and weekday
    "telco": ("telco/WA_Fn-UseC_-Telco-Customer-Churn.csv", None, 19),
    "frappe": ("frappe/frappe.train.libfm.gz", None, 10),
}


def head_of(path: Path, target: Path) -> Path:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        target.write_bytes(b"".join(line for _, line in zip(range(MOST_LINES), stream, strict=False)))
    return target


def inferred_and_prepared(log: Path, folder: Path, label: str | None = None, most_rejects: float = 0.01) -> Manifest:
    save(infer_schema([str(log)], label=label), folder / "schema.yaml", overwrite=False)
    prepare(
        PrepareOptions(
            schema=str(folder / "schema.yaml"),
            inputs=[str(log)],
            output=str(folder / "data"),
            split="hash:key:80/20",
            max_reject_share=most_rejects,
        )
    )
    manifest = Manifest.load(folder / "data")
    assert manifest.statistics is not None and manifest.statistics.rows == manifest.split_rows("train")
    return manifest


@pytest.mark.parametrize("name", list(REAL))
def test_real_logs(name: str, tmp_path: Path, shared_data: Path) -> None:
    source, label, fields = REAL[name]
    if not (shared_data / source).exists():
        pytest.skip(f"../shared/data/{source} is not here and may not be redistributed")
    manifest = inferred_and_prepared(head_of(shared_data / source, tmp_path / "log.txt"), tmp_path, label)
    assert manifest.rejects == {} and manifest.rows_out >= 7000
    assert manifest.statistics is not None and len(manifest.statistics.fields) == fields


def test_synthetic_logs_with_damage(tmp_path: Path) -> None:
    made = make_logs(tmp_path / "log.tsv.gz", 4000, malformed=0.005)
    manifest = inferred_and_prepared(tmp_path / "log.tsv.gz", tmp_path)
    assert manifest.rows_out == made.well_formed


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_typed_logs(kind: str, tmp_path: Path) -> None:
    draw = random.Random(5)  # nothing that follows from a column: it would be found out
    rows = [
        {
            "clicked": draw.random() < 0.3,
            "user": {"id": i % 90, "age": None if i % 7 == 0 else 20 + i % 40},
            "tags": [f"t{k}" for k in range(i % 4)],
            "bid": 0.5 + (i * 37 % 101) / 7,
            "at": f"2024-05-{1 + i % 20:02d}T{i % 24:02d}:15:00Z",
        }
        for i in range(900)
    ]
    log = tmp_path / f"log.{kind}"
    if kind == "jsonl":
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), log, row_group_size=200)
    manifest = inferred_and_prepared(log, tmp_path)
    assert manifest.rows_out == 900 and manifest.rejects == {}
    assert manifest.statistics is not None
    names = {field.name for field in manifest.statistics.fields}
    assert names == {"user_id", "user_age", "tags", "bid", "at_hour", "at_weekday"}
    assert sum(shard.positives for shard in manifest.shards) == sum(row["clicked"] for row in rows)
