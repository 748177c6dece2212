"""Prepare, WriteRecords and ReadRawLogs in one's own pipelines: the ids of prepare, the same bytes in any order."""

from __future__ import annotations

import gzip
import json
import random
import re
import traceback
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that, equal_to

from afm_ctr.errors import UserError, explained, find_user_error
from afm_ctr.rawlog import LineParser
from afm_ctr.records import Manifest, Reader
from afm_ctr.schema import FeatureSchema, ResolvedSchema
from beam_jobs import Prepare, PrepareOptions, PrepareSummary, ReadRawLogs, WriteRecords, prepare
from beam_jobs.runners import Engine
from beam_jobs.staging import Publish, ToLine, plan_rows
from tests import raw_logs

FIELDS: list[dict[str, Any]] = [
    {"name": "user", "kind": "categorical", "encoding": {"kind": "vocabulary", "min_count": 2}},
    {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}},
    {
        "name": "tags",
        "kind": "categorical",
        "separator": "|",
        "max_values": 2,
        "encoding": {"kind": "hash", "buckets": 9},
    },
]
HOUR = {"name": "hour", "column": "at", "kind": "time", "format": "iso", "part": "hour"}
SCHEMA: dict[str, Any] = {
    "name": "shop",
    "format": {"kind": "jsonl", "list_separator": "|"},
    "label": {"column": "clicked"},
    "key": "id",
    "group": "user",
}


def spec_of(*more: dict[str, Any]) -> FeatureSchema:
    return FeatureSchema.model_validate(SCHEMA | {"fields": [*FIELDS[:2], *more, *FIELDS[2:]]})


def rows_of(count: int) -> list[dict[str, Any]]:
    pick = random.Random(1)
    return [
        {
            "id": f"é{i}",
            "clicked": int(i % 3 == 0),
            "user": pick.randrange(20),
            "price": None if i % 11 == 0 else pick.random(),
            "at": f"2026-01-01T{i % 24:02d}:00:00Z",
            "tags": ["a", "b"][: i % 3],
            "unread": i,
        }
        for i in range(count)
    ]


SUMMARIES: list[PrepareSummary] = []
REJECTS: list[tuple[str, str]] = []


def keep(found: list[PrepareSummary]) -> None:
    """At the module's top: what is within a function would be kept in a copy."""
    assert len(found) == 1
    SUMMARIES[:] = found


def keep_rejects(found: list[tuple[str, str]]) -> None:
    REJECTS[:] = found


def run(rows: Sequence[Any], transform: beam.PTransform) -> PrepareSummary:
    """The summary of a transform over rows."""
    SUMMARIES.clear()
    with Engine().pipeline() as pipeline:
        assert_that(pipeline | beam.Create(rows, reshuffle=False) | transform, keep)
    return SUMMARIES[0]


def said(rows: Sequence[Any], transform: beam.PTransform) -> str:
    """The user's mistake that a run ends with."""
    with pytest.raises(Exception) as failed:
        run(rows, transform)
    return str(find_user_error(failed.value) or failed.value).partition(" [while running")[0]


def records(out: Path, split: str = "train") -> dict[bytes, list[Any]]:
    """What the data set holds of each row, by its key."""
    rows = Manifest.load(out).split_rows(split)
    batch = Reader(str(out), split, rows).batch(0, 0)
    names = [name for name in sorted(batch) if name not in ("key", "row")]
    found = {
        key: [np.asarray(batch[name][i]).tolist() for name in names]
        for i, key in enumerate(np.asarray(batch["key"]).tolist())
    }
    assert len(found) == rows
    return found


def shards(out: Path) -> list[tuple[str, str]]:
    return [(shard.file, shard.sha256) for shard in Manifest.load(out).shards]


def test_rows_get_the_ids_of_prepare_and_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    rows, split = rows_of(300), "hash:id:80/10/10"
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = str(tmp_path / "log.jsonl")
    prepare(PrepareOptions(schema=spec_of(HOUR), inputs=[log], output=str(tmp_path / "log"), split=split))
    run(rows, Prepare(spec_of(HOUR), str(tmp_path / "rows"), split=split, shards=4))
    one, other = Manifest.load(tmp_path / "log"), Manifest.load(tmp_path / "rows")
    assert (other.schema_id, other.rows_in, other.rows_out) == (one.schema_id, 300, 300)
    assert other.splits == one.splits and other.split_rule == split
    assert ResolvedSchema.load(tmp_path / "rows").vocabularies == ResolvedSchema.load(tmp_path / "log").vocabularies
    assert other.statistics is not None and one.statistics is not None
    assert other.statistics.model_dump() == one.statistics.model_dump()
    for name in one.splits:
        assert records(tmp_path / "rows", name) == records(tmp_path / "log", name)
    assert {shard.file for shard in other.shards if shard.split == "train"} == {
        f"train/part-{i:05d}.tfrecord" for i in range(4)
    }
    # Other values of the same cells, in another order; a column that nothing reads does not count.
    random.Random(2).shuffle(rows)
    for row in rows:
        row["unread"], row["user"] = object, np.int32(row["user"])
        row["price"], row["clicked"] = row["price"] if row["price"] is not None else float("nan"), str(row["clicked"])
        row["at"] = datetime.fromisoformat(row["at"]).astimezone(UTC)
    run([beam.Row(**row) for row in rows], Prepare(spec_of(HOUR), str(tmp_path / "again"), split=split, shards=4))
    assert shards(tmp_path / "again") == shards(tmp_path / "rows")
    assert not list((tmp_path / "again").glob("attempt-*/work"))


def test_rows_that_are_none_are_rejected_and_counted(tmp_path: Path) -> None:
    rows: list[Any] = rows_of(40)
    rows[0]["clicked"], rows[1]["price"], rows[2]["tags"] = "maybe", "abc", ["a|b"]
    rows[3]["user"], rows[4]["user"], rows[6]["user"] = {1}, b"\xff", date(2026, 1, 1)
    rows[7]["user"], rows[8], rows[5] = Decimal("1.10"), 7, None
    summary = run(rows, Prepare(spec_of(), str(tmp_path / "data"), shards=3, max_reject_share=0.5))
    assert summary.rejects == {"bad_label": 1, "bad_number": 1, "bad_list": 1, "bad_json": 3, "bad_utf8": 1}
    assert summary.rows_in == 40 and summary.rows_out == 33
    lines = [
        json.loads(line)
        for path in (tmp_path / "data" / "rejects").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {line["reason"] for line in lines} == summary.rejects.keys() and len(lines) == 7
    assert {re.sub(r"-\d+", "", line["source"]) for line in lines} == {"rows/part.jsonl"}
    # More of them than are allowed: no data set; the next run finds its way.
    problem = said(rows, Prepare(spec_of(), str(tmp_path / "new"), shards=3))
    assert "7 of 40 rows (17.50%) are rejected" in problem and len(problem.splitlines()) == 1
    assert not (tmp_path / "new" / "manifest.json").exists()
    assert len((tmp_path / "new" / "rejects-failed.jsonl").read_text().splitlines()) == 7
    run(rows[9:], Prepare(spec_of(), str(tmp_path / "new"), shards=3))
    assert Manifest.load(tmp_path / "new").rows_out == 31
    assert len(list((tmp_path / "new").glob("attempt-*"))) == 1


def test_a_row_becomes_a_line_of_the_cells_that_are_read(tmp_path: Path) -> None:
    to_line = ToLine(plan_rows(PrepareOptions(schema=spec_of(HOUR), inputs=(), output=str(tmp_path / "data")), 3))

    def line(row: Any) -> Any:
        ((shard, content),) = to_line.process(row)
        assert 0 <= shard < 3 and b"\n" not in content
        return json.loads(content)

    row = {"id": 7, "clicked": True, "user": Decimal("1.10"), "price": np.float32(0.1), "at": date(2026, 1, 2)}
    cells = {"id": "7", "clicked": "true", "user": "1.10", "price": "0.1", "at": "2026-01-02", "tags": ""}
    assert line(row | {"tags": None, "unread": object()}) == line(beam.Row(**row)) == cells
    assert line({"tags": ["a", 1, None]})["tags"] == "a|1|" and line({"tags": ["a|b", 1]})["tags"] == ["a|b", "1"]
    assert line({"user": "\ud800\n"})["user"].keys() == line({"user": {1}})["user"].keys() == {"no cell"}
    assert line(7) == "no dict: 7"


class Odd(dict[str, Any]):
    def get(self, key: str, default: Any = None) -> Any:
        raise RuntimeError("not today")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Pair(NamedTuple):
    user: int


def test_rows_of_odd_classes_are_lines_that_the_parser_rejects(tmp_path: Path) -> None:
    to_line = ToLine(plan_rows(PrepareOptions(schema=spec_of(), inputs=(), output=str(tmp_path / "data")), 3))
    nested: Any = []
    for _ in range(10_000):
        nested = [nested]
    lines = [
        content for row in (Odd(id=1), Pair, {"user": nested}, [Odd()], object) for _, content in to_line.process(row)
    ]
    parser = LineParser(spec_of())
    parsed = parser.parse(lines, "rows", 1)
    assert [reject.reason for reject in parsed.rejects] == ["bad_json"] * 5 and not len(parsed)
    (good,) = to_line.process({"id": 10**5000, "user": 7, 3: 4, ("a", "b"): 5})
    assert json.loads(good[1])["id"] == "1" + "0" * 5000


def test_an_error_of_a_running_pipeline_ends_in_our_line(tmp_path: Path) -> None:
    """Whatever Beam wraps it in: the last line has the class and the text, and `explained` raises it."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"id": 1, "clicked": 1, "user": 1}\n')
    out = str(tmp_path / "data")
    for transform, change, text in (
        (beam.Create([{"clicked": 2}], reshuffle=False) | Prepare(spec_of(), out, shards=1), "", "no row is left"),
        (ReadRawLogs(spec_of(), [str(log)]) | Prepare(spec_of(), out, shards=1), "gone", "log.jsonl"),
    ):
        if change:
            log.unlink()
        with pytest.raises(UserError, match=text) as found, explained(), Engine().pipeline() as pipeline:
            _ = pipeline | transform
        assert found.value.__cause__ is not None
        last = "".join(traceback.format_exception_only(found.value.__cause__)).strip().splitlines()[-1]
        assert last.startswith("afm_ctr.errors.UserError: [afm-ctr] ") and text in last
        assert len(str(found.value).splitlines()) == 1


def test_the_rows_of_a_log_are_those_that_prepare_reads(tmp_path: Path) -> None:
    options = raw_logs.write(tmp_path, 600)
    inputs, schema = options["inputs"], options["schema"]
    share = {"max_reject_share": 0.02, "split": "hash:user:80/10/10"}
    prepare(PrepareOptions(schema=schema, inputs=inputs, output=str(tmp_path / "log"), **share))
    with Engine().pipeline() as pipeline:
        rows, rejects = pipeline | ReadRawLogs(schema, inputs, rejects=True)
        _ = rows | Prepare(schema, str(tmp_path / "rows"), shards=2, **share)
        assert_that(rejects | beam.Map(lambda line: (Path(line["source"]).name, line["reason"])), keep_rejects)
        names = rows | beam.Map(lambda row: ",".join(sorted(row))) | beam.Distinct()
        assert_that(names, equal_to(["age,click,id,price,site,tags,user"]), label="names")
    one, other = Manifest.load(tmp_path / "log"), Manifest.load(tmp_path / "rows")
    assert other.schema_id == one.schema_id and other.sampled_out == one.sampled_out
    assert other.rows_in + len(REJECTS) == one.rows_in
    for name in one.splits:
        assert records(tmp_path / "rows", name) == records(tmp_path / "log", name)
    # Whether a cell is a number is for the fields to say.
    assert Counter(reason for _, reason in REJECTS) + Counter(other.rejects) == Counter(one.rejects)
    assert other.rejects.keys() == {"bad_number"}
    assert {name for name, _ in REJECTS} == {"a.csv", "b.csv.gz"}


def test_a_resolved_schema_is_used_as_it_is(tmp_path: Path) -> None:
    rows = rows_of(120)
    run(rows, Prepare(spec_of(), str(tmp_path / "data"), shards=2))
    for row in rows:
        row["part"] = "valid" if row["user"] == 3 else "test"
    summary = run(rows, WriteRecords(tmp_path / "data", str(tmp_path / "more"), split="column:part", shards=2))
    assert summary.schema_id == Manifest.load(tmp_path / "data").schema_id
    both = records(tmp_path / "more", "valid") | records(tmp_path / "more", "test")
    assert both == records(tmp_path / "data") and summary.splits.keys() == {"valid", "test"}
    with pytest.raises(UserError, match="WriteRecords takes a resolved schema"):
        WriteRecords(spec_of(), str(tmp_path / "other"))  # type: ignore[arg-type]


def test_columns_are_found_by_what_the_log_calls_them_and_tables_are_joined(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,brand\ni1,red\ni2,blue\n")
    table = {
        "input": str(tmp_path / "items.csv"),
        "format": {"kind": "delimited"},
        "key": "item",
        "columns": ["brand"],
    }
    spec = FeatureSchema.model_validate(
        {
            "name": "joined",
            "format": {"kind": "delimited", "columns": [{"name": "item", "header": "Item id"}]},
            "label": {"column": "clicked"},
            "side_tables": {"items": table},
            "fields": [
                {"name": "brand", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
                {"name": "item", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
            ],
        }
    )
    log = tmp_path / "log.csv.gz"
    log.write_bytes(gzip.compress(b"Item id,clicked\ni1,1\ni2,0\ni1,0\ni3,1\n"))
    with Engine().pipeline() as pipeline:
        rows = pipeline | ReadRawLogs(spec, [str(log)])
        assert_that(rows | beam.Map(lambda row: row["Item id"]), equal_to(["i1", "i2", "i1", "i3"]))
        _ = rows | Prepare(spec, str(tmp_path / "data"), shards=1)
    found = ResolvedSchema.load(tmp_path / "data").vocabularies
    assert set(found["brand"]) == {b"red", b"blue"} and set(found["item"]) == {b"i1", b"i2", b"i3"}
    assert (tmp_path / "data" / "side" / "items.jsonl").exists() and len(records(tmp_path / "data")) == 4


def test_publishing_twice_is_publishing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Publish.process

    def twice(self: Publish, state: Any, task: Any, found: Any) -> list[Any]:
        first, again = list(process(self, state, task, found)), list(process(self, state, task, found))
        assert first[0].to_json() | {"seconds": 0} == again[0].to_json() | {"seconds": 0}
        return again

    monkeypatch.setattr(Publish, "process", twice)
    summary = run(rows_of(50), Prepare(spec_of(), str(tmp_path / "data"), shards=2))
    assert summary.rows_out == 50 and len(records(tmp_path / "data")) == 50


def test_what_cannot_be_prepared_is_refused_before_the_pipeline_runs(tmp_path: Path) -> None:
    out = str(tmp_path / "data")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"shards": 0}, "shards=0"),
        ({"split": "tail:0.1"}, "rows of a pipeline have no files and no order"),
        ({"chunk_bytes": 5}, "chunk_bytes is an option of prepare that"),
        ({"shards": 2.5}, "shards=2.5 must be a whole number"),
        ({"max_reject_share": 2}, "max-reject-share is a share"),
        ({"max_reject_share": "1%"}, "max-reject-share is a share"),
        ({"compression": "zip"}, "compression must be one of none, gzip, got 'zip'"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"sample_rows": -1}, "sample_rows must be a whole number of at least 0, got -1"),
    ]
    for options, text in cases:
        with pytest.raises(UserError, match=text):
            Prepare(spec_of(), out, **options)
    with pytest.raises(UserError, match="schema must be a path or a schema, got dict"):
        Prepare({"name": "s"}, out)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"inputs must be a list of paths and globs, got the text 'a\.csv'"):
        PrepareOptions(schema=spec_of(), inputs="a.csv", output=out)
    with pytest.raises(UserError, match="libfm"):
        Prepare(
            FeatureSchema.model_validate(
                {"name": "l", "format": {"kind": "libfm"}, "fields": [{"name": "f", "kind": "libfm", "ids": [0, 9]}]}
            ),
            out,
        )
    with pytest.raises(UserError, match="the rows are unbounded"):
        _ = Engine().pipeline() | TestStream() | Prepare(spec_of(), out)
    assert not Path(out).exists()
    assert said([], Prepare(spec_of(), out)) == "no row: the PCollection is empty"
    run(rows_of(30), Prepare(spec_of(), out, shards=1))
    with pytest.raises(UserError, match="holds a data set already"):
        Prepare(spec_of(), out)
    before = shards(tmp_path / "data")
    run(rows_of(31), Prepare(spec_of(), out, shards=1, overwrite=True))
    assert shards(tmp_path / "data") != before and Manifest.load(out).rows_out == 31


def test_the_pipelines_of_the_page_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is the census tutorial's, on rows of its file's form: missing words are ``?``, labels two texts."""
    monkeypatch.chdir(tmp_path)
    row = "{}, {}, {}, Bachelors, 13, Divorced, Sales, Unmarried, White, Male, 0, 0, 40, United-States, {}\n"
    words, labels = ("Private", "?"), ("<=50K", ">50K")
    lines = [row.format(20 + i % 50, words[i % 2], 77516 + 7 * i, labels[i % 3 == 0]) for i in range(200)]
    Path("adult.data").write_text("".join(lines) + "\n")
    own, census = re.findall(r"^```python\n(.*?)^```", (root / "docs/prepare.md").read_text(), re.M | re.S)
    exec(compile(own, "docs/prepare.md", "exec"), {})
    assert Manifest.load("data").rows_in == 150 and Reader("data", "train", 10).rows > 0
    exec(compile(census, "docs/prepare.md", "exec"), {})
    manifest, reader = Manifest.load("census"), Reader("census", "train", 10)
    assert manifest.rows_out == 200 and not manifest.rejects and set(manifest.splits) == {"train", "valid", "test"}
    assert b"?" in reader.schema.vocabularies["workclass"] and len(reader.schema.vocabularies["sex"]) == 1
    sums = [shard.label_sums for split in manifest.splits for shard in manifest.shards_of(split)]
    assert sum(sum_ for _, sum_ in sums) == 67
