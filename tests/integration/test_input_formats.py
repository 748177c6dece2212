"""The same rows in every format, packed in every way, from a file system of Beam's: the same records."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.io.filesystem import CompressionTypes

from afm_ctr.errors import UserError
from afm_ctr.prediction import predict_logs
from afm_ctr.records import Manifest, parse_examples
from afm_ctr.schema import Analysis, FeatureSchema, NumberFacts, ResolvedSchema, resolve
from beam_jobs import PrepareOptions, prepare
from tests.object_files import ObjectFiles
from tests.runs import write_run

ROWS = 3000
FIELDS: list[dict[str, Any]] = [
    {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}},
    {"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
    {"name": "tags", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 50}, "separator": "|"}
    | {"max_values": 3},
]


def rows() -> list[dict[str, Any]]:
    draw = random.Random(3)
    return [
        {
            "id": f"r{i}",
            "click": draw.randrange(2),
            "price": draw.choice([None, draw.randrange(-800, 800) / 8, draw.random() * 10 ** draw.randrange(-9, 15)]),
            "site": draw.choice(['a,"b"', "é", "x", None]),
            "tags": [draw.choice("abcdef") for _ in range(draw.randrange(4))],
            "user": {"id": draw.randrange(200)},
        }
        for i in range(ROWS)
    ]


def schema(kind: str, fields: list[dict[str, Any]] = FIELDS) -> FeatureSchema:
    header = "user" if kind == "delimited" else "user.id"
    layout = {"kind": kind, "columns": [{"name": "user", "header": header}]}
    content = {"name": "t", "format": layout, "label": {"column": "click"}, "key": "id", "group": "user"}
    return FeatureSchema.model_validate(content | {"fields": fields})


def encoded(kind: str, rows: list[dict[str, Any]]) -> bytes:
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=700)
        return sink.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow({**row, "tags": "|".join(row["tags"]), "user": row["user"]["id"]}.values())
    return text.getvalue().encode()


def records(out: Path) -> dict[str, list[Any]]:
    """key -> everything else of its record, with its split."""
    import tensorflow as tf

    manifest, resolved = Manifest.load(out), ResolvedSchema.load(out)
    found: dict[str, list[Any]] = {}
    for shard in manifest.shards:
        lines = list(tf.data.TFRecordDataset(manifest.path_of(out, shard)).as_numpy_iterator())
        parsed = {name: value.tolist() for name, value in parse_examples(lines, resolved.num_slots).items()}
        for i, key in enumerate(parsed.pop("key")):
            found[key] = [shard.split, *(str(values[i]) for values in parsed.values())]
    return found


def run(folder: Path, kind: str, inputs: list[str], **options: Any) -> dict[str, list[Any]]:
    options = {
        "schema": schema(kind),
        "split": "hash:user:80/10/10",
        "chunk_lines": 500,
        "chunk_bytes": 40_000,
    } | options
    summary = prepare(PrepareOptions(inputs=inputs, output=str(folder), overwrite=True, **options))
    assert summary.rows_in == summary.rows_out == ROWS and not summary.rejects
    return records(folder)


def test_the_same_rows_in_every_format_are_the_same_records(tmp_path: Path) -> None:
    data = rows()
    (tmp_path / "log.csv").write_bytes(encoded("delimited", data))
    (tmp_path / "log.parquet").write_bytes(encoded("parquet", data))
    # A list of a path and a glob, and each file packed otherwise.
    parts = [encoded("jsonl", data[at : at + 750]) for at in range(0, ROWS, 750)]
    for name, part, pack in zip(
        ("p1.json", "p2.json.gz", "p3.json.bz2", "q.zst"),
        parts,
        (bytes, gzip.compress, bz2.compress, zstandard.compress),
        strict=True,
    ):
        (tmp_path / name).write_bytes(pack(part))
    expected = run(tmp_path / "out", "delimited", [f"{tmp_path}/log.csv"])
    assert len(expected) == ROWS and {split for split, *_ in expected.values()} == {"train", "valid", "test"}
    assert run(tmp_path / "out", "jsonl", [f"{tmp_path}/p*.json*", f"{tmp_path}/q.zst"]) == expected
    assert run(tmp_path / "out", "parquet", [f"{tmp_path}/log.parquet"]) == expected


THREE = ["--direct_num_workers=3", "--direct_running_mode=multi_threading"]
PROCESSES = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


def test_shards_of_a_parquet_file_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(encoded("parquet", rows()))
    digests = []
    hashed = schema("parquet", FIELDS[2:])  # nothing to learn: one pass less to start processes for
    for workers in ([], THREE, PROCESSES):
        run(tmp_path / "out", "parquet", [f"{tmp_path}/log.parquet"], schema=hashed, beam_args=workers)
        digests.append([shard.sha256 for shard in Manifest.load(tmp_path / "out").shards])
    assert digests[0] == digests[1] == digests[2] and len(digests[0]) == 18


class KeptFiles(ObjectFiles):
    """``kept://``: files of which it is known that they were opened."""

    content: dict[str, bytes] = {}  # noqa: RUF012 - one store
    opened: list[str] = []  # noqa: RUF012

    @classmethod
    def scheme(cls) -> str:
        return "kept"

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> BinaryIO:
        self.opened.append(path)
        return io.BufferedReader(io.BytesIO(self.content[path]), 100)  # type: ignore[type-var]


@pytest.mark.parametrize(("kind", "pack"), [("jsonl", zstandard.compress), ("parquet", bytes), ("delimited", bytes)])
def test_inputs_are_read_from_file_systems_of_beam(tmp_path: Path, kind: str, pack: Any) -> None:
    data = rows()
    KeptFiles.content = {
        "kept://bucket/day1/a.log": pack(encoded(kind, data[:2000])),
        "kept://bucket/day2/a.log": pack(encoded(kind, data[2000:])),
        "kept://bucket/day2/other": b"",
    }
    found = run(tmp_path / "out", kind, ["kept://bucket/day*/*.log"])
    assert sorted(found) == sorted(row["id"].encode() for row in data)
    assert set(KeptFiles.opened) >= {"kept://bucket/day1/a.log", "kept://bucket/day2/a.log"}
    with pytest.raises(UserError, match=r"no file matches kept://bucket/\*.csv"):
        run(tmp_path / "out", kind, ["kept://bucket/*.csv"])


def test_predict_reads_the_same_formats(tmp_path: Path) -> None:
    data = rows()[:700]
    (tmp_path / "log.csv").write_bytes(encoded("delimited", data))
    (tmp_path / "log.zst").write_bytes(zstandard.compress(encoded("jsonl", data) + b"{\n"))
    (tmp_path / "log.parquet").write_bytes(encoded("parquet", data))
    facts = Analysis({"site": {b"x": 2, "é".encode(): 1}}, {"price": NumberFacts(9, 1.0, 2.0, np.zeros(2))})
    scored = {}
    for kind, name in (("delimited", "log.csv"), ("jsonl", "log.zst"), ("parquet", "log.parquet")):
        write_run(tmp_path / kind, resolve(schema(kind), facts))
        output = tmp_path / f"{kind}.jsonl"
        summary = predict_logs(tmp_path / kind, [f"{tmp_path}/{name}"], output, batch_rows=256)
        assert (summary.rows, summary.errors) == ((701, 1) if kind == "jsonl" else (700, 0))
        scored[kind] = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert scored["jsonl"].pop()["error"].startswith("bad_json: ")
    assert scored["delimited"] == scored["jsonl"] == scored["parquet"]
    assert [line["key"] for line in scored["parquet"]] == [row["id"] for row in data]
    assert len({line["probability"] for line in scored["parquet"]}) > 100
