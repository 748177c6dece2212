"""Records as bytes: the Example contract, shards, the manifest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from afm_ctr import native
from afm_ctr.errors import UserError
from afm_ctr.native.plain import PREPARING
from afm_ctr.records import Manifest, ShardInfo, ShardWriter, framed_examples, parse_examples, serialize_examples

FORMS = ["python", *(["native"] if native.prepares() else [])]
IDS = np.array([[1, 127, 128], [0, 16383, 16384], [2**31, 2**63 - 1, 0]])
VALS = np.array([[1, 0.5, -2], [0, 3.25, 1e-30], [0, 1e30, 0]], np.float32)


def _feature(value) -> tf.train.Feature:
    if isinstance(value[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
    if isinstance(value[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=value))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=value))


def _example(**features) -> bytes:
    """The same record by way of TensorFlow's own messages."""
    message = tf.train.Example(features=tf.train.Features(feature={k: _feature(v) for k, v in features.items()}))
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_of_tensorflows_messages(form, monkeypatch):
    monkeypatch.setenv(PREPARING, form)
    records = serialize_examples(
        IDS,
        VALS,
        np.array([1, 0, np.nan], np.float32),
        np.array([0.25, 1, 2], np.float32),
        (np.array([-5, 7, 0]), np.array([True, True, False])),
        [b"log#1", b"x" * 300, b""],
    )
    both = [{"feature_ids": i.tolist(), "feature_vals": v.tolist()} for i, v in zip(IDS, VALS, strict=True)]
    assert records == [
        _example(**both[0], label=[1.0], weight=[0.25], group=[-5], key=[b"log#1"]),
        _example(**both[1], label=[0.0], weight=[1.0], group=[7], key=[b"x" * 300]),
        _example(**both[2], weight=[2.0], key=[b""]),
    ]


@settings(max_examples=40, deadline=None)
@given(
    ids=hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)),
    data=st.data(),
)
def test_any_ids_survive_the_bytes(ids, data):
    rows, slots = ids.shape
    vals = data.draw(
        hnp.arrays(np.float32, ids.shape, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
    )
    keys = data.draw(st.lists(st.binary(max_size=200), min_size=rows, max_size=rows))
    labels, weights = (data.draw(hnp.arrays(np.float32, rows, elements=st.floats(-1, 1, width=32))) for _ in range(2))
    labels[data.draw(hnp.arrays(bool, rows))] = np.nan
    groups = data.draw(hnp.arrays(np.int64, rows)), data.draw(hnp.arrays(bool, rows))
    columns = [data.draw(st.sampled_from([column, None])) for column in (labels, weights, groups)]
    framed = []
    for form in FORMS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(PREPARING, form)
            framed.append(framed_examples(ids, vals, *columns, keys))
    assert len({(one.frames.tobytes(), one.sizes.tobytes()) for one in framed}) == 1
    records = serialize_examples(ids, vals, np.zeros(rows, np.float32), None, None, keys)
    for record, row, values, key in zip(records, ids, vals, keys, strict=True):
        assert record == _example(feature_ids=row.tolist(), feature_vals=values.tolist(), key=[key], label=[0.0])
    parsed = parse_examples(records, slots)
    np.testing.assert_array_equal(parsed["feature_ids"], ids)
    np.testing.assert_array_equal(parsed["feature_vals"], vals)


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_taken_in_the_order_that_is_asked_for(form, monkeypatch):
    monkeypatch.setenv(PREPARING, form)
    ids, vals = np.arange(10).reshape(5, 2), np.array([[n, -n] for n in range(5)], np.float32)
    vals[1] = np.nan  # not taken
    rows, keys = np.array([4, 0, 2, 4]), [b"a", b"b", b"", b"d"]
    expected = framed_examples(ids[rows], vals[rows], np.zeros(4), None, None, keys)
    found = framed_examples(ids, vals, np.zeros(4), None, None, keys, rows)
    assert found.frames.tobytes() == expected.frames.tobytes() and found.sizes.tolist() == expected.sizes.tolist()
    assert len(framed_examples(ids, vals, None, None, None, [], rows[:0])) == 0
    for wrong, why in ([5], r"rows must lie in \[0, 5\)"), ([-1], "rows must lie"), ([1], "must be finite"):
        with pytest.raises(ValueError, match=why):
            framed_examples(ids, vals, None, None, None, [b"k"], np.array(wrong))


@pytest.mark.parametrize("form", FORMS)
def test_a_long_key_among_short_ones_keeps_its_place(form, monkeypatch):
    monkeypatch.setenv(PREPARING, form)
    keys = [b"a", b"", b"k" * (3 << 20), b"b\0", b"c"]
    ids, vals = np.arange(10).reshape(5, 2), np.ones((5, 2), np.float32)
    framed = framed_examples(ids, vals, None, None, None, keys)
    expected = [
        _example(feature_ids=row.tolist(), feature_vals=[1.0, 1.0], key=[key])
        for row, key in zip(ids, keys, strict=True)
    ]
    assert list(framed) == expected
    assert _shard(framed)[0] == _shard(expected)[0]


def test_parse_fills_in_what_is_missing():
    records = [
        _example(feature_ids=[1, 0], feature_vals=[1.0, 0.0], key=[b"a"]),
        _example(feature_ids=[2, 3], feature_vals=[0.0, 4.0], label=[1.0], weight=[0.5], group=[0], key=[b"b"]),
        _example(feature_ids=[2, 3], feature_vals=[0.0, 4.0], group=[-9]),
    ]
    parsed = parse_examples(records, 2)
    assert parsed["feature_ids"].tolist() == [[1, 0], [2, 3], [2, 3]]
    assert parsed["feature_vals"].tolist() == [[1, 0], [0, 4], [0, 4]]
    np.testing.assert_array_equal(parsed["label"], [np.nan, 1, np.nan])
    assert parsed["weight"].tolist() == [1, 0.5, 1]
    assert parsed["group"].tolist() == [0, 0, -9]
    assert parsed["has_group"].tolist() == [False, True, True]
    assert parsed["key"].tolist() == [b"a", b"b", b""]


def test_parse_of_nothing():
    parsed = parse_examples(tf.zeros([0], tf.string), 4)
    assert parsed["feature_ids"].shape == (0, 4) and parsed["group"].shape == (0,)


GOOD = {"feature_ids": [1, 2], "feature_vals": [1.0, 2.0], "key": [b"k"]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"feature_ids": [1]}, "record 1 of the batch is not of this schema: feature_ids must be int64 [2]"),
        ({"feature_ids": [1.0, 2.0]}, "record 1 .* feature_ids must be int64"),
        ({"feature_vals": [1.0, 2.0, 3.0]}, "record 1 .* feature_vals must be float [2]"),
        ({"feature_vals": [1, 2]}, "record 1 .* feature_vals must be float"),
        ({"label": [1.0, 2.0]}, "record 1 .* label must be float [1] or absent"),
        ({"label": [1]}, "record 1 .* label must be float"),
        ({"group": [b"a"]}, "record 1 .* group must be int64 [1] or absent"),
        ({"group": [1, 2]}, "group must be int64 [1] or absent"),
        ({"key": [b"a", b"b"]}, "record 1 .* key must be bytes [1]"),
    ],
)
def test_records_against_the_contract_are_named(bad, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("]", r"\]")):
        parse_examples([_example(**GOOD), _example(**{**GOOD, **bad})], 2)


@pytest.mark.parametrize(
    "change",
    [
        {"feature_vals": VALS[:2]},
        {"feature_vals": np.where(VALS == 0.5, np.inf, VALS)},
        {"labels": np.zeros(2, np.float32)},
        {"labels": np.array([0, np.inf, 1])},
        {"weights": np.array([0, np.nan, 1])},
        {"groups": (np.zeros(3, np.int64), np.ones(2, bool))},
        {"keys": [b"a"]},
    ],
)
def test_serialize_refuses_what_does_not_fit(change):
    arguments = {"labels": None, "weights": None, "groups": None, "keys": [b"a", b"b", b"c"], "feature_vals": VALS}
    with pytest.raises(ValueError):
        serialize_examples(IDS, **{**arguments, **change})


def _shard(records, block_records=256, compression="none", cut=None):
    stream = io.BytesIO()
    writer = ShardWriter(stream, block_records, compression)
    for batch in [records] if cut is None else [records[:cut], [], records[cut:]]:
        writer.write(batch)
    stats = writer.close()
    assert not stream.closed
    return stream.getvalue(), stats


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_tensorflow_reads_the_shard(tmp_path, compression):
    records = [bytes([i]) * (i % 7) for i in range(100)]
    data, stats = _shard(records, 8, compression)
    (tmp_path / "shard").write_bytes(data)
    kind = "GZIP" if compression == "gzip" else ""
    read = list(tf.data.TFRecordDataset(str(tmp_path / "shard"), kind).as_numpy_iterator())
    assert read == records
    assert stats.rows == 100 and stats.bytes == len(data)
    assert stats.sha256 == hashlib.sha256(data).hexdigest()
    plain = gzip.decompress(data) if compression == "gzip" else data
    assert len(stats.block_offsets) == 13
    for block, offset in enumerate(stats.block_offsets):
        assert int.from_bytes(plain[offset : offset + 8], "little") == len(records[8 * block])


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 19])
def test_the_bytes_do_not_depend_on_the_batches(compression, cut):
    records = [b"%d" % i * 10 for i in range(20)]
    assert _shard(records, 8, compression, cut) == _shard(records, 8, compression)


def test_an_empty_shard():
    data, stats = _shard([])
    assert data == b"" and stats == (0, 0, hashlib.sha256(b"").hexdigest(), [])


def test_writer_refuses_impossible_options():
    with pytest.raises(ValueError, match="block_records=0"):
        ShardWriter(io.BytesIO(), 0)
    with pytest.raises(ValueError, match="'zip'"):
        ShardWriter(io.BytesIO(), compression="zip")  # type: ignore[arg-type]


def _manifest(folder: Path, splits=("train", "test"), rows=20, **changes) -> Manifest:
    shards = []
    for split in splits:
        data, stats = _shard([b"%d" % i * 10 for i in range(rows)], 8)
        path = folder / "a1" / split / "part-00000.tfrecord"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        shards.append(
            ShardInfo(
                split=split,
                file=f"{split}/part-00000.tfrecord",
                positives=1 if rows else 0,
                block_records=8,
                **stats._asdict(),
            )
        )
    values = {
        "attempt": "a1",
        "schema_id": "0123456789abcdef",
        "rows_in": rows * len(shards) + 3,
        "rows_out": rows * len(shards),
        "rejects": {"bad_label": 3},
    }
    return Manifest(shards=shards, **{**values, **changes})


def test_manifest_there_and_back(tmp_path):
    manifest = _manifest(tmp_path)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == Manifest.load(str(tmp_path)) == manifest
    assert not list(tmp_path.glob(".tmp-*"))
    assert manifest.splits == {"train": 20, "test": 20} and manifest.split_rows("test") == 20
    assert manifest.path_of(tmp_path, manifest.shards[1]) == f"{tmp_path}/a1/test/part-00000.tfrecord"


def test_a_split_that_is_not_there_lists_those_that_are(tmp_path):
    with pytest.raises(UserError, match=r"split 'valid' is not there; .* train \(20 rows\), test \(20 rows\)"):
        _manifest(tmp_path).shards_of("valid")
    with pytest.raises(UserError, match="split 'train' is empty"):
        _manifest(tmp_path / "empty", rows=0).split_rows("train")


@pytest.mark.parametrize("change", [{"rows_in": 42}, {"rows_out": 39, "rows_in": 42}, {"surprise": 1}])
def test_manifest_does_not_add_up(tmp_path, change):
    with pytest.raises(ValueError):
        _manifest(tmp_path, **change)


def test_load_says_what_is_wrong_in_one_line(tmp_path):
    def refused(pattern):
        with pytest.raises(UserError, match=pattern) as caught:
            Manifest.load(tmp_path)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

    refused("is not a prepared data set: no manifest.json; run afm-ctr prepare")
    _manifest(tmp_path).save(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    refused("not valid JSON")
    path.write_bytes(b"\xff\xfe\x00")
    refused("not valid JSON")
    path.write_text("[]")
    refused("format_version None is not 1")
    path.write_text(json.dumps({**content, "format_version": 2}))
    refused("format_version 2 is not 1")
    path.write_text(json.dumps({**content, "rows_in": -1}))
    refused("rows_in: .*greater than or equal to 0")
    path.write_text(json.dumps({**content, "shards": [{**content["shards"][0], "rows": 19}]}))
    refused("20|19")
    path.write_text(json.dumps(content))
    shard = tmp_path / "a1/test/part-00000.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(r"part-00000.tfrecord has \d+ bytes, the manifest says \d+ bytes; prepare the data set again")
    shard.unlink()
    refused("is missing")
    assert Manifest.load(tmp_path, check_files=False).rows_out == 40


def test_importable_without_tensorflow():
    code = "import sys, afm_ctr.records; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
