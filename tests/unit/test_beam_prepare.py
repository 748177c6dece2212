"""The whole job on tiny logs, in this process: records, rejects, splits, publication."""

from __future__ import annotations

import errno
import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_ctr.errors import UserError
from afm_ctr.features import FeatureTransform
from afm_ctr.rawlog import LineParser
from afm_ctr.records import Manifest, ShardWriter, parse_examples
from afm_ctr.sample_rows import load_samples
from afm_ctr.schema import FeatureSchema, ResolvedSchema
from beam_jobs import PrepareOptions, PrepareSummary, files, prepare
from beam_jobs.convert import Conversion, shuffled
from beam_jobs.plan import read_schema

COLUMNS = ["click", "price", "site", "user", "part"]
FIELDS: list[dict[str, Any]] = [
    {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "log": True}},
    {"name": "site", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 50}},
]


def schema(fields: list[dict[str, Any]] = FIELDS, **changes: Any) -> FeatureSchema:
    layout = {"kind": "delimited", "header": False, "columns": COLUMNS}
    content = {"name": "t", "format": layout, "label": {"column": "click"}, "fields": fields}
    return FeatureSchema.model_validate(content | changes)


def log(rows: int) -> bytes:
    split = ["train", "valid", "test"]
    return b"".join(
        b"%d,%d.5,s%d,u%d,%s\n" % (i % 3 == 0, i, i % 7, i % 11, split[i % 3].encode()) for i in range(rows)
    )


def run(folder: Path, data: bytes | None = None, name: str = "log.csv", **options: Any) -> PrepareSummary:
    if data is not None:
        (folder / name).write_bytes(data)
    inputs = [str(folder / name)]
    # A few bad lines are a large share of these logs.
    options = {"schema": schema(), "inputs": inputs, "output": str(folder / "out"), "max_reject_share": 1} | options
    return prepare(PrepareOptions(**options))


def rows_of(out: Path) -> dict[str, dict[bytes, dict[str, Any]]]:
    """split -> key -> record."""
    import tensorflow as tf

    manifest, resolved = Manifest.load(out), ResolvedSchema.load(out)
    found: dict[str, dict[bytes, dict[str, Any]]] = {}
    for shard in manifest.shards:
        kind = tf.compat.v1.python_io.TFRecordCompressionType
        packing = tf.io.TFRecordOptions(kind.GZIP if shard.compression == "gzip" else kind.NONE)
        # A tf.data.TFRecordDataset would trace a function for each of many files.
        records = list(tf.compat.v1.io.tf_record_iterator(str(manifest.path_of(out, shard)), packing))
        assert len(records) == shard.rows
        parsed = parse_examples(records, resolved.num_slots)
        for i, key in enumerate(parsed["key"]):
            found.setdefault(shard.split, {})[key] = {name: value[i] for name, value in parsed.items()}
    return found


def shas(out: Path) -> dict[str, str]:
    return {shard.file: shard.sha256 for shard in Manifest.load(out).shards}


def rejects(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((out / "rejects").iterdir()) for line in path.open()]


def test_a_record_holds_what_the_transform_makes_of_the_row(tmp_path: Path) -> None:
    # The second file has quotes and another order of columns: it takes the way through the csv module.
    layout = {"kind": "delimited"}
    spec = schema(format=layout, key="part", group="user", negative_sampling={"rate": 0.5, "correct": "weights"})
    first = [b"1,2.5,a,u1,k1", b"0,,b,,k2", b"0,-3,,u1,k3"]
    second = [b'k4,u2,"a,b",1e3,1', b'k5,u2,"say ""hi""",7,0', b"k6,u3,a,,1"]
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"click,price,site,user,part", *first]))
    (tmp_path / "b.csv").write_bytes(b"\n".join([b"part,user,site,price,click", *second]))
    summary = run(tmp_path, schema=spec, inputs=[f"{tmp_path}/*.csv"], chunk_bytes=60)
    assert (summary.rows_in, summary.rows_out, summary.files) == (6, 6, 2)
    assert summary.splits == {"train": {"rows": 6, "positives": 3}}
    rows = rows_of(tmp_path / "out")["train"]
    parsed = LineParser(spec, b"part,user,site,price,click").parse(second, "b.csv", 2)
    expected = FeatureTransform(ResolvedSchema.load(tmp_path / "out"))(parsed.columns)
    for i, key in enumerate([b"k4", b"k5", b"k6"]):
        assert rows[key]["feature_ids"].tolist() == expected.feature_ids.numpy()[i].tolist()
        assert rows[key]["feature_vals"].tolist() == expected.feature_vals.numpy()[i].tolist()
    assert rows[b"k1"]["feature_vals"].tolist() == [np.float32(np.log(3.5)), 1]
    assert rows[b"k3"]["feature_ids"][1] == 0 and rows[b"k2"]["feature_ids"][0] == 0
    assert [rows[b"k%d" % i]["label"] for i in range(1, 7)] == [1, 0, 0, 1, 0, 1]
    assert [rows[b"k%d" % i]["weight"] for i in range(1, 7)] == [1, 2, 2, 1, 2, 1]
    assert [rows[b"k%d" % i]["has_group"] for i in range(1, 4)] == [True, False, True]
    assert rows[b"k1"]["group"] == rows[b"k3"]["group"] != rows[b"k4"]["group"]
    assert load_samples(tmp_path / "out", ["price", "site"])[3] == {"price": b"1e3", "site": b"a,b"}


def test_a_schema_may_be_a_pipe(tmp_path: Path) -> None:
    """``--schema <(sed … schema.yaml)``: it can be read once only."""
    pipe, text = tmp_path / "pipe", json.dumps(schema().model_dump(mode="json", exclude_none=True))
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[text], daemon=True)
    writer.start()
    assert read_schema(pipe) == (schema(), None)
    writer.join()


def test_both_ways_of_cutting_lines_agree(tmp_path: Path) -> None:
    quoted = b"".join(
        b",".join(b'"' + cell + b'"' for cell in line.split(b",")) + b"\n" for line in log(40).splitlines()
    )
    run(tmp_path, log(40), chunk_bytes=300)
    plain = rows_of(tmp_path / "out")["train"]
    run(tmp_path, quoted, output=str(tmp_path / "quoted"))
    for key, row in rows_of(tmp_path / "quoted")["train"].items():
        assert row["feature_ids"].tolist() == plain[key]["feature_ids"].tolist()
        assert row["feature_vals"].tolist() == plain[key]["feature_vals"].tolist()


def test_gz_and_plain_input_give_the_same_rows_and_gz_shards_too(tmp_path: Path) -> None:
    run(tmp_path, log(100), chunk_bytes=500)
    (tmp_path / "gz").mkdir()
    packed = run(tmp_path / "gz", gzip.compress(log(100)), chunk_lines=30, compression="gzip")
    assert packed.shards == 4
    one, other = rows_of(tmp_path / "out")["train"], rows_of(tmp_path / "gz" / "out")["train"]
    assert one.keys() == other.keys() and len(one) == 100
    assert all(row["feature_vals"].tolist() == other[key]["feature_vals"].tolist() for key, row in one.items())
    order = list(one)[: Manifest.load(tmp_path / "out").shards[0].rows]
    assert order != sorted(order, key=lambda key: int(key.split(b"#")[1]))  # rows of a shard are permuted


def test_torture_lines_are_rejected_by_reason_and_nothing_is_lost(tmp_path: Path) -> None:
    bad = {
        "column_count": [b"1,2", b"1,2,a,b,c,d"],
        "bad_label": [b"yes,1,a,b,c"],
        "bad_number": [b"1,abc,a,b,train", b"1,nan,a,b,test"],
        "bad_id": [b"1,1,99,b,train"],
        "bad_utf8": [b"1,1,\xff\xfe,b,c"],
        "bad_quoting": [b'1,1,"a,b,c'],
        "bad_split": [b"1,1,3,b,dev", b"1,abc,3,b,"],
        "empty_line": [b"", b"", b""],
    }
    spec = schema([FIELDS[0], FIELDS[1] | {"encoding": {"kind": "ids", "size": 10}}])
    good = [b"1,1,%d,b,%s" % (i % 10, [b"train", b"test"][i % 2]) for i in range(50)]
    lines = good[:20] + [line for group in bad.values() for line in group] + good[20:]
    summary = run(tmp_path, b"\r\n".join(lines), schema=spec, split="column:part", chunk_bytes=250)
    assert summary.rejects == {reason: len(group) for reason, group in sorted(bad.items())}
    assert summary.splits == {"train": {"rows": 25, "positives": 25}, "test": {"rows": 25, "positives": 25}}
    assert summary.rows_in == summary.rows_out + 13 == 63
    found = rejects(tmp_path / "out")
    assert [reject["line"] for reject in found] == list(range(21, 34))
    assert found[3]["detail"] == "field 'price': 'abc'" and found[3]["key"] == "log.csv#24"
    assert {key.split(b"#")[0] for part in rows_of(tmp_path / "out").values() for key in part} == {b"log.csv"}


def test_a_truncated_gzip_file_keeps_what_was_readable(tmp_path: Path) -> None:
    data = gzip.compress(log(5000))
    summary = run(tmp_path, data[: len(data) // 2], name="log.csv.gz", chunk_lines=1000)
    assert summary.rejects == {"truncated_input": 1} and summary.rows_out == summary.rows_in - 1 > 1000
    (reject,) = rejects(tmp_path / "out")
    assert reject["line"] == summary.rows_in and reject["detail"] == "the gzip stream ends early"


def test_vocabulary_and_statistics_come_from_the_train_split_alone(tmp_path: Path) -> None:
    fields = [
        {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}},
        {"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
    ]
    lines = b"1,2,a,u,x\n0,4,b,u,x\n1,x,rejected,u,x\n0,900,only-test,u,x\n1,800,only-test,u,x\n"
    summary = run(tmp_path, lines, schema=schema(fields), split="tail:0.4", chunk_bytes=12)
    resolved = ResolvedSchema.load(tmp_path / "out")
    assert sorted(resolved.vocabularies["site"]) == [b"a", b"b"]
    assert (resolved.statistics["price"].mean, resolved.statistics["price"].std) == (3.0, 1.0)
    assert summary.splits["test"]["rows"] == 2 and summary.schema_id == resolved.id
    # New logs: ids stay, and one value more is appended.
    grown = run(
        tmp_path, lines.replace(b"a,u", b"c,u"), schema=schema(fields), parent_schema=tmp_path / "out",
        output=str(tmp_path / "grown"),
    )  # fmt: skip
    child = ResolvedSchema.load(tmp_path / "grown")
    assert child.descends_from(resolved.id) and b"c" in child.vocabularies["site"] and grown.schema_id != resolved.id
    # A resolved schema is used as it is.
    same = run(tmp_path, schema=str(tmp_path / "out"), output=str(tmp_path / "same"), labelled=False)
    assert same.schema_id == resolved.id
    assert all(np.isnan(row["label"]) for row in rows_of(tmp_path / "same")["train"].values())
    assert not Manifest.load(tmp_path / "same").labelled


def test_one_row_and_libfm(tmp_path: Path) -> None:
    fields = [{"name": "user", "kind": "libfm", "ids": [0, 5]}, {"name": "item", "kind": "libfm", "ids": [5, 9]}]
    spec = FeatureSchema.model_validate({"name": "t", "format": {"kind": "libfm"}, "label": {}, "fields": fields})
    summary = run(tmp_path, b"1 2:1 7:0.5 # x", schema=spec)
    assert (summary.rows_in, summary.rows_out, summary.num_slots) == (1, 1, 2)
    (row,) = rows_of(tmp_path / "out")["train"].values()
    assert row["feature_vals"].tolist() == [1, 0.5] and row["label"] == 1


def test_splits_by_files_and_index(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(log(10))
    rule = f"files:train={tmp_path}/a,train={tmp_path}/b,test={tmp_path}/c"
    summary = run(tmp_path, inputs=[], split=rule, chunk_bytes=100)
    assert {name: counts["rows"] for name, counts in summary.splits.items()} == {"train": 20, "test": 10}
    assert {key[:1] for key in rows_of(tmp_path / "out")["test"]} == {b"c"}
    (tmp_path / "index").write_text("".join(f"{29 - i}\t{'valid' if i < 4 else 'train'}\n" for i in range(30)))
    run(
        tmp_path, inputs=[f"{tmp_path}/[abc]"], split=f"index:{tmp_path}/index", chunk_bytes=100, overwrite=True
    )  # fmt: skip
    assert sorted(rows_of(tmp_path / "out")["valid"]) == [b"c#10", b"c#7", b"c#8", b"c#9"]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", {}, r"no data row in .*log.csv: the files are empty"),
        (b"click,price,site\n", {"schema": schema(format={"kind": "delimited"})}, "nothing below the header line"),
        (b"click\rprice\r", {"schema": schema(format={"kind": "delimited"})}, "other carriage returns: tr"),
        (b"click,s\xe9\n1,a\n", {"schema": schema(format={"kind": "delimited"})}, "the header is not UTF-8; write"),
        (b"click,site\n1,a\n", {"schema": schema(format={"kind": "delimited"})}, "columns there: click, site"),
        (log(3), {"inputs": ["/nowhere/*.csv"]}, r"no file matches /nowhere/\*.csv"),
        (log(3), {"split": "tail:0.1/0.1"}, "the split 'valid' comes out empty"),
        (log(3), {"split": "hash:colour:80/20"}, "no column 'colour'"),
        (log(3), {"split": "index:/nowhere"}, "no file matches /nowhere"),
        (b"1,2\n" * 3, {}, r"no row is left \(rejected lines: column_count: 3\)"),
        (log(3), {"beam_args": ["--direct_num_wokers=2"]}, "--direct_num_wokers=2 is not an option of this"),
        (log(3), {"chunk_bytes": 0}, "chunk_bytes"),
        (log(3), {"output": "/proc/no"}, "/proc/no: cannot be written: No such file"),
        (log(3), {"output": "sftp://no/out"}, "sftp://no/out/manifest.json: cannot be looked at: Unable"),
    ],
)  # fmt: skip
def test_the_users_mistakes_publish_nothing(
    tmp_path: Path, data: bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, data, **options)
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()] if (tmp_path / "out").exists() else []
    assert all(path.name == "rejects-failed.jsonl" for path in left)


@pytest.mark.parametrize(("keep", "words"), [("first", [b"a", b"b"]), ("last", [b"d", b"e"])])
@pytest.mark.parametrize("quote", [b"", b'"'])
def test_longer_histories_keep_one_end_and_are_counted(
    tmp_path: Path, keep: str, words: list[bytes], quote: bytes
) -> None:
    """By both ways of cutting lines; rejected rows are not counted, rows of every split are."""
    tags = {
        "kind": "categorical",
        "separator": "|",
        "max_values": 2,
        "keep": keep,
        "encoding": {"kind": "vocabulary"},
    }
    other = {**tags, "name": "user", "encoding": {"kind": "ids", "size": 9}, "keep": "first"}
    cells = [b"a|b||d|e", b"a|b", b"a|b||d|e", b"", b"a|b||d|e"]
    users = [b"1", b"1|2|3", b"x|1|2", b"", b"1"]
    lines = [b"1,1,%s%s%s,%s,train\n" % (quote, cell, quote, user) for cell, user in zip(cells, users, strict=True)]
    lines[-1] = lines[-1].replace(b"train", b"test")
    spec = schema([{**tags, "name": "site"}, other])
    summary = run(tmp_path, b"".join(lines), schema=spec, split="column:part", chunk_bytes=30)
    assert (summary.rows_out, summary.rejects) == (4, {"bad_id": 1})
    assert summary.cut == {"site": {"values": 4, "rows": 2}, "user": {"values": 1, "rows": 1}}
    manifest, resolved = Manifest.load(tmp_path / "out"), ResolvedSchema.load(tmp_path / "out")
    assert {name: cut.model_dump() for name, cut in manifest.cut.items()} == summary.cut
    # The vocabulary is learned from what is kept, and the statistics count that.
    assert set(resolved.vocabularies["site"]) == {b"a", b"b", *words}
    assert manifest.statistics is not None
    top = manifest.statistics.fields[0].top
    assert sum(value.rows for value in top) == 4 and {value.value.encode() for value in top} == {b"a", b"b", *words}
    record = rows_of(tmp_path / "out")["test"][b"log.csv#5"]
    known = {word: resolved.global_id("site", 1 + place) for place, word in enumerate(resolved.vocabularies["site"])}
    assert record["feature_ids"][:2].tolist() == [known[word] for word in words]
    assert record["feature_vals"][:2].tolist() == [0.5, 0.5]


VOCABULARY = {"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}}
LEARNERS = {
    "vocabulary": [FIELDS[0], VOCABULARY],
    "standardised": [{"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}}],
    "quantiles": [{"name": "price", "kind": "numeric", "encoding": {"kind": "buckets", "quantiles": 3}}],
    "hash": FIELDS,
}


REASONS = {
    "bad_label": b"click,1,a,u,train\n",
    "bad_number": b"1,x,a,u,train\n",
    "bad_split": b"1,1,a,u,nowhere\n",
    "bad_utf8": b"1,1,\xff,u,train\n",
    "column_count": b"1,2\n",
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_schema_that_learns_says_why_no_row_is_left(tmp_path: Path, learner: str) -> None:
    spec, split = schema(LEARNERS[learner]), "column:part"
    lines = b"".join(REASONS.values()) * 25
    with pytest.raises(UserError) as raised:
        run(tmp_path, lines, schema=spec, split=split, chunk_bytes=300, max_rejects_kept=20)
    kept = tmp_path / "out" / "rejects-failed.jsonl"
    counts = ", ".join(f"{reason}: 25" for reason in REASONS)
    assert str(raised.value) == f"no row is left (rejected lines: {counts}); the lines are in {kept}"
    assert [json.loads(text)["line"] for text in kept.open()] == list(range(1, 101)), "20 of each reason"


@pytest.mark.parametrize("learner", sorted(LEARNERS.keys() - {"hash"}))
def test_rows_of_another_split_are_no_help_to_a_schema_that_learns(tmp_path: Path, learner: str) -> None:
    lines = b"".join(line * 3 for reason, line in REASONS.items() if reason != "bad_number") + b"0,1,b,u,test\n"
    with pytest.raises(UserError, match=r"learns from the split 'train', which has no row") as raised:
        run(tmp_path, lines, schema=schema(LEARNERS[learner]), split="column:part")
    counts = ", ".join(f"{reason}: 3" for reason in REASONS if reason != "bad_number")
    assert f"(rejected lines: {counts}); to prepare" in str(raised.value)
    assert len((tmp_path / "out" / "rejects-failed.jsonl").read_bytes().splitlines()) == 12


def test_an_output_is_replaced_only_when_told_so(tmp_path: Path) -> None:
    run(tmp_path, log(30), chunk_bytes=300, split="column:part")
    before = shas(tmp_path / "out")
    with pytest.raises(UserError, match="holds a data set already; choose another --output or give --overwrite"):
        run(tmp_path)
    # What a killed run leaves is swept away, and the same input gives the same bytes.
    (tmp_path / "out" / "attempt-dead" / "train").mkdir(parents=True)
    (tmp_path / "out" / "attempt-dead" / "train" / ".tmp-1-part-00000.tfrecord").write_bytes(b"half")
    (tmp_path / "out" / ".tmp-1-attempt-gone").mkdir()
    run(tmp_path, overwrite=True, chunk_bytes=300, split="column:part")
    assert shas(tmp_path / "out") == before
    assert len(list((tmp_path / "out").glob("attempt-*"))) == 1 and not list((tmp_path / "out").glob(".tmp-*"))
    assert run(tmp_path, overwrite=True, chunk_bytes=300, split="column:part", seed=1).rows_out == 30
    assert shas(tmp_path / "out") != before
    # A folder with a schema of the user's own is not ours to write into.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "schema.yaml").write_text("name: mine")
    with pytest.raises(UserError, match=r"holds a schema.yaml but no data set"):
        run(tmp_path, output=str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "schema.yaml").read_text() == "name: mine"


def test_an_output_takes_one_run_at_a_time_and_is_no_input(tmp_path: Path) -> None:
    def second(stage: str, done: int, rows: int) -> None:
        with pytest.raises(UserError, match="out: another run is writing there; choose another --output"):
            run(tmp_path)

    run(tmp_path, log(30), progress=second)
    with pytest.raises(UserError, match=r"/out/.* is not a log but a file of the data set in --output"):
        run(tmp_path, inputs=[f"{tmp_path}/**"], overwrite=True)
    assert Manifest.load(tmp_path / "out").rows_out == 30


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(UserError, match=r"part-00000.tfrecord: cannot be written: No space left on device$"):
        run(tmp_path, log(30), compression=compression)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == []


@pytest.mark.parametrize("result", ["convert-found", "vocabularies/"])
def test_a_disk_that_is_full_when_a_result_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], result: str
) -> None:
    write = files.write

    def full(path: str, content: bytes, **options: Any) -> None:
        if result in path:
            raise UserError(f"{path}: cannot be written: No space left on device")
        write(path, content, **options)

    learning = schema([{"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}}])
    monkeypatch.setattr(files, "write", full)
    with pytest.raises(UserError, match=rf"work/{result}\d*: cannot be written: No space left on device$"):
        run(tmp_path, log(30), schema=learning)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_schema_that_learns_needs_train_rows(tmp_path: Path) -> None:
    learning = schema([{"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}}])
    split = f"files:test={tmp_path}/log.csv"
    with pytest.raises(UserError, match="learns from the split 'train', which has no row"):
        run(tmp_path, log(30), schema=learning, inputs=[], split=split)
    run(tmp_path, schema=learning, output=str(tmp_path / "first"))
    ready = run(tmp_path, schema=tmp_path / "first", inputs=[], split=split)
    assert ready.splits == {"test": {"rows": 30, "positives": 10}}


def test_lost_rows_and_changed_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Conversion._write
    monkeypatch.setattr(Conversion, "_write", lambda *args: whole(*args)[:-1])
    lost = r"rows were lost: 30 in, 20 out, 0 rejected, 0 sampled out, in chunk 0 of .*log.csv"
    with pytest.raises(RuntimeError, match=lost):
        run(tmp_path, log(30), split="column:part")
    monkeypatch.undo()

    def shrink(stage: str, done: int, rows: int) -> None:
        if stage == "convert" and done == 0:
            (tmp_path / "log.csv").write_bytes(log(20))

    with pytest.raises(UserError, match=r"log.csv changed while it was read: run prepare again when it is complete$"):
        run(tmp_path, progress=shrink)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_order_of_a_shard_is_a_permutation_by_seed_and_chunk() -> None:
    orders = [tuple(shuffled(50, seed, chunk)) for seed in (0, 1) for chunk in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert tuple(shuffled(50, 1, 1)) == orders[3]
    # The published first outputs of splitmix64 from 0 begin with E2, 6E, 06, F8, 1B.
    assert shuffled(5, 0, 0).tolist() == [2, 4, 1, 0, 3]
    assert len(shuffled(0, 0, 0)) == 0


def test_the_manifest_is_the_last_file_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it appears all that a reader may look for has its final bytes."""
    out, seen = tmp_path / "out", {}

    def content() -> dict[str, bytes]:
        return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name[0] != "."}

    def save(self: Manifest, folder: Any) -> None:
        seen.update(content())
        write(self, folder)

    write = Manifest.save
    monkeypatch.setattr(Manifest, "save", save)
    spec = schema([*FIELDS, {"name": "user", "kind": "categorical", "encoding": {"kind": "vocabulary"}}])
    run(tmp_path, log(40) + b"what,is,this,row,x\n", schema=spec, chunk_bytes=300)
    assert set(content()) - set(seen) == {"manifest.json"}
    assert {name: data for name, data in content().items() if name != "manifest.json"} == seen
    assert {Path(name).parts[0] for name in seen} >= {"schema.yaml", "vocab", "rejects"}


def test_a_manifest_holds_the_sums_of_weights_and_labels(tmp_path: Path) -> None:
    run(tmp_path, log(40), schema=schema(weight="price"), split="column:part", chunk_bytes=300)
    for split, shift in (("train", 0), ("valid", 1), ("test", 2)):
        sums = [shard.label_sums for shard in Manifest.load(tmp_path / "out").shards if shard.split == split]
        rows = range(shift, 40, 3)
        assert len(sums) > 1 and None not in sums
        assert sum(weight for weight, _ in sums) == sum(i + 0.5 for i in rows)  # type: ignore[misc]
        assert sum(labels for _, labels in sums) == sum(i + 0.5 for i in rows if i % 3 == 0)  # type: ignore[misc]


def test_how_many_raw_rows_travel_with_the_data(tmp_path: Path) -> None:
    """Rows of a data set that was replaced are gone too."""
    file = tmp_path / "out" / "sample_rows.jsonl"
    for asked, kept in (({}, 16), ({"sample_rows": 3}, 3), ({"sample_rows": 0}, 0), ({}, 16)):
        run(tmp_path, log(40), chunk_bytes=200, overwrite=True, **asked)
        assert len(file.read_text().splitlines() if file.exists() else []) == kept
        assert file.exists() == bool(kept)


def test_small_files_share_shards(tmp_path: Path) -> None:
    """Files of several kinds of headers, some packed, some with bad lines: the rows and their numbers are as ever."""
    spec, rows = schema(format={"kind": "delimited"}), 0
    for i in range(30):
        order = COLUMNS if i % 3 else COLUMNS[::-1]
        lines = [b",".join(name.encode() for name in order)]
        for line in log(i % 5).splitlines():
            cells = dict(zip(COLUMNS, line.split(b","), strict=True))
            lines.append(b",".join(cells[name] for name in order))
        lines += [b"bad"] * (i % 7 == 0)
        rows += len(lines) - 1
        content = b"\n".join([*lines, b""])
        name = f"small-{i:02d}.csv" + ".gz" * (i % 4 == 0)
        (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith("gz") else content)
    options = {
        "schema": spec,
        "inputs": [str(tmp_path / "small-*")],
        "max_reject_share": 1,
        "split": "hash:user:80/20",
    }
    summary = prepare(PrepareOptions(**options, output=str(tmp_path / "out")))
    assert summary.rows_in == rows and summary.rejects == {"column_count": 5} and summary.files == 30
    assert summary.shards == 2 and [*shas(tmp_path / "out")] == [
        "train/part-00000.tfrecord",
        "test/part-00000.tfrecord",
    ]
    assert [(Path(line["source"]).name, line["line"]) for line in rejects(tmp_path / "out")] == [
        (f"small-{i:02d}.csv" + ".gz" * (i % 4 == 0), 2 + i % 5) for i in range(0, 30, 7)
    ]
    found = rows_of(tmp_path / "out")
    # Each alone: the same records.
    prepare(PrepareOptions(**options, output=str(tmp_path / "alone"), chunk_lines=1, chunk_bytes=1))
    alone = rows_of(tmp_path / "alone")
    assert len(Manifest.load(tmp_path / "alone").shards) > 30
    for split in ("train", "test"):
        assert found[split].keys() == alone[split].keys()
        for key, record in found[split].items():
            assert all(np.array_equal(value, alone[split][key][name]) for name, value in record.items())
    one, other = (Manifest.load(tmp_path / name).statistics for name in ("out", "alone"))
    assert one is not None and other is not None and one.model_dump() == other.model_dump()
    threads = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    prepare(PrepareOptions(**options, output=str(tmp_path / "threads"), beam_args=threads))
    assert shas(tmp_path / "threads") == shas(tmp_path / "out")
