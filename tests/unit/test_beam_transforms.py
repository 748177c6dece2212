"""Rows of a pipeline of one's own, by way of WriteRawLogs: the same bytes in any order."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, is_not_empty

from afm_ctr.errors import UserError, find_user_error
from afm_ctr.records import Reader
from afm_ctr.schema import FeatureSchema
from beam_jobs import PrepareOptions, WriteRawLogs, prepare

SCHEMA = {
    "name": "shop",
    "format": {"kind": "jsonl", "list_separator": "|"},
    "label": {"column": "clicked"},
    "key": "id",
    "fields": [
        {"name": "user", "kind": "categorical", "encoding": {"kind": "vocabulary", "min_count": 2}},
        {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}},
        {"name": "hour", "column": "at", "kind": "time", "format": "iso", "part": "hour"},
        {
            "name": "tags",
            "kind": "categorical",
            "separator": "|",
            "max_values": 2,
            "encoding": {"kind": "hash", "buckets": 9},
        },
    ],
}


def rows_of(count: int) -> list[dict[str, Any]]:
    pick = random.Random(1)
    return [
        {
            "id": f"é{i}",
            "clicked": int(i % 3 == 0),
            "user": pick.randrange(20),
            "price": None if i % 11 == 0 else pick.random(),
            "at": datetime(2026, 1, 1, i % 24, tzinfo=UTC),
            "tags": ["a", "b"][: i % 3],
        }
        for i in range(count)
    ]


def write(rows: list[dict[str, Any]], folder: Path, shards: int = 4) -> dict[str, bytes]:
    with TestPipeline(runner=FnApiRunner()) as pipeline:
        paths = pipeline | beam.Create(rows) | WriteRawLogs(str(folder), key="id", shards=shards)
        assert_that(paths, is_not_empty())
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_equal_rows_give_equal_files_that_prepare_takes(tmp_path: Path) -> None:
    rows = rows_of(300)
    files = write(rows, tmp_path / "logs")
    assert list(files) == [f"part-{i:05d}-of-00004.jsonl" for i in range(4)]
    assert sum(content.count(b"\n") for content in files.values()) == 300
    random.Random(2).shuffle(rows)
    assert write([dict(sorted(row.items())) for row in rows], tmp_path / "again") == files
    out = str(tmp_path / "data")
    schema = FeatureSchema.model_validate(SCHEMA)
    summary = prepare(PrepareOptions(schema=schema, inputs=[str(tmp_path / "logs" / "*.jsonl")], output=out))
    assert summary.rows_out == 300 and summary.rejects == {}
    reader = Reader(out, "train", 300)
    (batch,) = reader.dataset(0)
    assert sorted(key.decode() for key in batch["key"].numpy()) == sorted(row["id"] for row in rows)
    assert float(batch["label"].numpy().sum()) == 100


def test_the_pipeline_of_the_page_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", (root / "docs/prepare.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/prepare.md", "exec"), names)
    assert names["summary"].rows_out == 200
    assert Reader("data", "train", 50).rows == 200 and len(list(Path("logs").iterdir())) == 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"clicked": 1}, r"a row has no 'id'; its columns: clicked"),
        ({"id": None}, r"a row has no 'id'"),
        ({"id": 1, "x": {1}}, r"a value of type set \(\{1\}\)"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception) as failed:
        write([row], tmp_path / "logs")
    found = find_user_error(failed.value) or failed.value
    assert re.search(said, str(found))
    assert not (tmp_path / "logs").exists() or not list((tmp_path / "logs").iterdir())


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-00000-of-00001.jsonl").touch()
    with pytest.raises(UserError, match="holds files already"):
        WriteRawLogs(str(tmp_path), key="id")
    with pytest.raises(UserError, match="shards=0"):
        WriteRawLogs(str(tmp_path / "new"), key="id", shards=0)
