"""Reading a prepared data set: order, ranks, position, damage."""

from __future__ import annotations

import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr import native
from afm_ctr.errors import UserError, find_user_error
from afm_ctr.models import CTRModel
from afm_ctr.records import Manifest, Reader, ShardInfo, ShardWriter, serialize_examples
from afm_ctr.schema import Analysis, FeatureSchema, ResolvedSchema, resolve

FORMS = ["python", "native"] if native.load().module is not None else ["python"]
NAMES = ("label", "weight", "feature_ids", "feature_vals", "group", "has_group", "key", "row")


@pytest.fixture(params=FORMS, autouse=True)
def form(request, monkeypatch) -> str:
    """Every test reads in Python and, where the library is built, by the op."""
    monkeypatch.setenv("AFM_CTR_READING", request.param)
    return request.param


def _schema(name: str = "toy") -> ResolvedSchema:
    field = {"kind": "categorical", "encoding": {"kind": "ids", "size": 10}}
    spec = {
        "name": name,
        "format": {"kind": "delimited", "header": False, "columns": ["label", "a", "b", "c"]},
        "label": {"column": "label", "kind": "binary"},
        "fields": [{"name": column, **field} for column in "abc"],
    }
    return resolve(FeatureSchema.model_validate(spec), Analysis.empty())


def _records(rows: range, **changes) -> list[bytes]:
    """Row i has key r<i> and numbers that follow from i."""
    i = np.array(rows)
    values = {
        "feature_ids": np.stack([i % 31, (i * 7) % 31, np.zeros_like(i)], 1),
        "feature_vals": np.stack([i, i * 0.5, i * 0], 1).astype(np.float32),
        "labels": (i % 3 == 0).astype(np.float32),
        "weights": (1 + i % 2).astype(np.float32),
        "groups": (i // 4, i % 5 != 0),
        "keys": [b"r%d" % row for row in rows],
    }
    return serialize_examples(**{**values, **changes})


def _write(
    folder: Path, shards, block_records=4, compression="none", schema=None, labelled=True, split="train"
) -> Path:
    """A data set from lists of records, one a shard."""
    infos = []
    for number, records in enumerate(shards):
        file = f"{split}/part-{number:05d}.tfrecord"
        path = folder / "attempt" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            writer = ShardWriter(stream, block_records, compression)
            writer.write(records)
            stats = writer.close()
        infos.append(
            ShardInfo(
                split=split,
                file=file,
                positives=0,
                compression=compression,
                block_records=block_records,
                **stats._asdict(),
            )
        )
    schema = schema or _schema()
    schema.save(folder)
    rows = sum(map(len, shards))
    Manifest(
        attempt="attempt", schema_id=schema.id, shards=infos, rows_in=rows, rows_out=rows, labelled=labelled
    ).save(folder)
    return folder


def _split(rows: int, shards: int) -> list[list[bytes]]:
    edges = np.linspace(0, rows, shards + 1).astype(int).tolist()
    return [_records(range(a, b)) if b > a else [] for a, b in pairwise(edges)]


def _keys(batches) -> list[bytes]:
    return [key for batch in batches for key in batch["key"].tolist() if key]


def _epoch(reader: Reader, epoch: int = 0, start: int = 0) -> list[dict]:
    return [reader.batch(epoch, step) for step in range(start, reader.steps_per_epoch)]


def _same(a: dict, b: dict) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 60),
    shards=st.integers(1, 3),
    block=st.integers(1, 9),
    batch=st.integers(1, 20),
    size=st.integers(1, 5),
    shuffle=st.booleans(),
    compression=st.sampled_from(["none", "none", "gzip"]),
    epoch=st.integers(0, 3),
)
def test_ranks_share_every_step_of_one_rank(
    tmp_path_factory, rows, shards, block, batch, size, shuffle, compression, epoch
):
    folder = _write(tmp_path_factory.mktemp("data"), _split(rows, shards), block, compression)
    alone = Reader(folder, "train", batch, seed=5, shuffle=shuffle)
    ranks = [Reader(folder, "train", batch, seed=5, rank=r, size=size, shuffle=shuffle) for r in range(size)]
    assert alone.rows == rows and alone.steps_per_epoch == -(-rows // batch)
    walked = _epoch(alone, epoch)
    wanted = [b"r%d" % i for i in range(rows)]
    assert (_keys(walked) if not shuffle else sorted(_keys(walked))) == (wanted if not shuffle else sorted(wanted))
    # A reader that starts anywhere, with no history, meets the same rows.
    middle = len(walked) // 2
    for one, other in zip(
        walked[middle:], _epoch(Reader(folder, "train", batch, seed=5, shuffle=shuffle), epoch, middle), strict=True
    ):
        _same(one, other)
    for step, whole in enumerate(walked):
        parts = [reader.batch(epoch, step) for reader in ranks]
        assert all(len(part["key"]) == ranks[0].local_batch == -(-batch // size) for part in parts)
        for name in NAMES:
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined[:batch], whole[name], err_msg=name)
            if name != "row":
                assert not np.any(joined[batch:] != (b"" if name == "key" else 0))
        assert [int((part["weight"] > 0).sum()) for part in parts] == [r.local_rows(step) for r in ranks]


def test_what_a_batch_holds(tmp_path):
    reader = Reader(_write(tmp_path, _split(5, 2)), "train", 3, shuffle=False)
    batch = reader.batch(epoch=2, step=1)
    assert batch["feature_ids"].tolist() == [[3, 21, 0], [4, 28, 0], [0, 0, 0]]
    assert batch["feature_vals"].tolist() == [[3, 1.5, 0], [4, 2, 0], [0, 0, 0]]
    assert batch["label"].tolist() == [1, 0, 0] and batch["weight"].tolist() == [2, 1, 0]
    assert batch["group"].tolist() == [0, 1, 0] and batch["has_group"].tolist() == [True, True, False]
    assert batch["key"].tolist() == [b"r3", b"r4", b""]
    assert batch["row"].tolist() == [15, 16, 17]  # (2 epochs * 2 steps + 1) * 3 rows + place
    kinds = [np.int64, np.float32, np.float32, np.float32, np.int64, np.bool_, object, np.int64]
    names = ["feature_ids", "feature_vals", "label", "weight", "group", "has_group", "key", "row"]
    assert [batch[name].dtype for name in names] == kinds


def test_dataset_is_the_batches_with_static_shapes(tmp_path):
    reader = Reader(_write(tmp_path, _split(23, 2)), "train", 6, seed=1, rank=1, size=4)
    dataset = reader.dataset(epoch=1, start_step=2)
    assert dataset.element_spec["feature_ids"] == tf.TensorSpec([2, 3], tf.int64)
    assert dataset.element_spec["key"] == tf.TensorSpec([2], tf.string)
    assert set(dataset.element_spec) == set(NAMES) and dataset.cardinality() == 2
    read = list(dataset.as_numpy_iterator())
    for one, other in zip(read, _epoch(reader, 1, 2), strict=True):
        _same(one, other)
    assert list(reader.dataset(0, reader.steps_per_epoch)) == []


def test_as_dataset_is_the_batches_of_all_epochs_and_goes_on_anywhere(tmp_path):
    reader = Reader(_write(tmp_path, _split(11, 2)), "train", 4, seed=3)
    walked = list(reader.as_dataset(epochs=2, supervised=True).as_numpy_iterator())
    wanted = [reader.batch(epoch, step) for epoch in (0, 1) for step in range(3)]
    assert [len(label) for _, label, _ in walked] == [4, 4, 3] * 2  # nothing is padded
    for (x, label, weight), batch in zip(walked, wanted, strict=True):
        real = len(label)
        for name, values in {**x, "label": label, "weight": weight}.items():
            np.testing.assert_array_equal(values, batch[name][:real], err_msg=name)
    rest = list(reader.as_dataset(epochs=2, start=(0, 2)).as_numpy_iterator())
    assert [part["row"][0] for part in rest] == [batch["row"][0] for batch in wanted[2:]]
    assert len(list(reader.as_dataset(3))) == 4


def test_as_dataset_of_ranks_pads_to_equal_shapes(tmp_path):
    folder = _write(tmp_path, _split(9, 2))
    ranks = [Reader(folder, "train", 4, seed=3, rank=rank, size=2) for rank in (0, 1)]
    parts = [list(reader.as_dataset(epochs=2, supervised=True).as_numpy_iterator()) for reader in ranks]
    alone = list(Reader(folder, "train", 4, seed=3).as_dataset(epochs=2, supervised=True).as_numpy_iterator())
    for one, other, (x, label, weight) in zip(*parts, alone, strict=True):
        assert one[1].shape == other[1].shape == (2,)
        real = np.concatenate([one[2], other[2]]) > 0
        for part, whole in ((1, label), (2, weight)):
            np.testing.assert_array_equal(np.concatenate([one[part], other[part]])[real], whole)
        ids = np.concatenate([one[0]["feature_ids"], other[0]["feature_ids"]])
        np.testing.assert_array_equal(ids[real], x["feature_ids"])


def test_our_models_fit_a_reader_and_go_on(tmp_path):
    """Epochs have their own orders, under ``fit`` too; the second one alone, later, makes the same weights."""
    reader = Reader(_write(tmp_path, _split(11, 2)), "train", 4, seed=3)

    def fresh() -> CTRModel:
        model = CTRModel("fm", {"factors": 2}, reader.schema.feature_size, 3, [(0, 1), (0, 2), (1, 2)])
        model.compile("adagrad")
        return model

    whole, parts, by_hand = fresh(), fresh(), fresh()
    whole.fit(reader, epochs=2, validation_data=reader, verbose=0)
    parts.fit(reader, epochs=1, verbose=0)
    parts.fit(reader, epochs=2, initial_epoch=1, verbose=0)
    by_hand.fit(reader.as_dataset(epochs=2), verbose=0)
    for others in (parts, by_hand):
        for one, other in zip(whole.get_weights(), others.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert whole.predict(reader, verbose=0)["logit"].shape == (11,)


def test_as_dataset_without_labels(tmp_path):
    reader = Reader(_write(tmp_path, [_records(range(5), labels=None)], labelled=False), "train", 5)
    (batch,) = reader.as_dataset()
    assert sorted(batch) == ["feature_ids", "feature_vals", "row", "weight"]
    with pytest.raises(UserError, match=r"split 'train': no labels, which supervised=True needs"):
        reader.as_dataset(supervised=True)


def test_one_row_many_ranks(tmp_path):
    folder = _write(tmp_path, [[], _records(range(1)), []])
    parts = [Reader(folder, "train", 1, rank=rank, size=3).batch(0, 0) for rank in range(3)]
    assert [part["key"].tolist() for part in parts] == [[b"r0"], [b""], [b""]]
    assert [part["weight"].tolist() for part in parts] == [[1], [0], [0]]


def test_seed_and_epoch_change_the_order(tmp_path):
    folder = _write(tmp_path, _split(40, 1))
    orders = [_keys(_epoch(Reader(folder, "train", 7, seed=s), e)) for s, e in [(0, 0), (0, 1), (1, 0)]]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]


@pytest.mark.parametrize("arguments", [{"rank": 2, "size": 2}, {"rank": -1}])
def test_impossible_ranks(tmp_path, arguments):
    with pytest.raises(ValueError, match="rank"):
        Reader(_write(tmp_path, _split(5, 1)), "train", 2, **arguments)


def test_impossible_positions(tmp_path):
    reader = Reader(_write(tmp_path, _split(5, 1)), "train", 2)
    with pytest.raises(ValueError, match="step 3"):
        reader.batch(0, 3)
    with pytest.raises(ValueError, match="start_step 4"):
        reader.dataset(0, 4)
    for options, words in (
        ({"batch_size": 2.5}, "batch_size 2.5 must be a whole number of at least 1"),
        ({"batch_size": 4, "seed": "a"}, "seed 'a' must be a whole number"),
    ):
        with pytest.raises(UserError, match=words):
            Reader(tmp_path, "train", **options)
    with pytest.raises(UserError, match="epochs -1 must be a whole number of at least 0"):
        Reader(tmp_path, "train", 4).as_dataset(epochs=-1)
    with pytest.raises(UserError, match="batch_size 0"):
        Reader(tmp_path, "train", 0)


def test_split_and_schema_are_checked_at_the_start(tmp_path):
    folder = _write(tmp_path, [[]])
    with pytest.raises(UserError, match=r"split 'train' is empty; .* train \(0 rows\)"):
        Reader(folder, "train", 2)
    with pytest.raises(UserError, match="split 'test' is not there"):
        Reader(folder, "test", 2)
    _schema("other").save(folder)
    with pytest.raises(UserError, match=r"foreign schema: schema.yaml is [0-9a-f]{16}, manifest.json was made with"):
        Reader(folder, "train", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_ids": [1, 2, 31]}, r"slot 2 \(c\) has id 31 outside \[0, 31\)"),
        ({"feature_ids": [1, -1, 3]}, r"slot 1 \(b\) has id -1 outside"),
        ({"label": []}, "no label in a labelled data set"),
        ({"label": [np.inf]}, "the label is inf"),
        ({"label": [-1.0]}, "the label is -1.0, not 0 or 1"),
        ({"feature_vals": [1, np.nan, 3]}, r"slot 1 \(b\) has the value nan"),
        ({"weight": [-1.0]}, "the weight is -1.0"),
        ({"weight": [np.inf]}, "the weight is inf"),
        ({"feature_ids": [1, 2]}, r"feature_ids must be int64 \[3\]"),
    ],
)
def test_rows_that_are_not_of_the_schema_are_named(tmp_path, changes, message):
    message_of_row_6 = tf.train.Example.FromString(_records(range(6, 7))[0])
    for name, values in changes.items():
        feature = message_of_row_6.features.feature[name]
        feature.Clear()
        if values:
            (feature.int64_list if name == "feature_ids" else feature.float_list).value.extend(values)
    bad = message_of_row_6.SerializeToString()
    reader = Reader(_write(tmp_path, [_records(range(6)) + [bad] + _records(range(7, 9))]), "train", 9)
    with pytest.raises(UserError, match=message) as caught:
        reader.batch(0, 0)
    assert "part-00000.tfrecord: block 1 (byte" in str(caught.value) and ", record 2: " in str(caught.value)
    assert ("key 'r6'" in str(caught.value)) == ("must be" not in message)
    assert str(caught.value).endswith("; prepare the data set again")


def test_unlabelled_data_have_no_labels(tmp_path):
    records = _records(range(4), labels=None)
    batch = Reader(_write(tmp_path, [records], labelled=False), "train", 5, shuffle=False).batch(0, 0)
    np.testing.assert_array_equal(batch["label"], [np.nan] * 4 + [0])


def _all_rows(folder: Path) -> list[tuple]:
    rows = []
    for batch in _epoch(Reader(folder, "train", 7, shuffle=False)):
        rows += zip(*(batch[name].tolist() for name in NAMES), strict=True)
    return rows


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_damage_is_never_read_as_data(tmp_path, compression):
    folder = _write(tmp_path, _split(30, 1), 8, compression)
    path = folder / "attempt/train/part-00000.tfrecord"
    intact, wanted, draw = path.read_bytes(), _all_rows(folder), random.Random(7)
    found = 0
    for _ in range(60):
        place = draw.randrange(len(intact))
        path.write_bytes(intact[:place] + bytes([intact[place] ^ draw.randrange(1, 256)]) + intact[place + 1 :])
        try:
            assert _all_rows(folder) == wanted
        except UserError as error:
            found += 1
            assert f"{path}: block " in str(error) and "prepare the data set again" in str(error)
    # The header of a gzip file holds a few bytes that mean nothing to the data.
    assert found == 60 if compression == "none" else found > 50


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_shard_cut_short_or_gone_while_it_is_read(tmp_path, compression):
    folder = _write(tmp_path, _split(30, 1), 8, compression)
    path = folder / "attempt/train/part-00000.tfrecord"
    intact = path.read_bytes()
    for size in (0, 1, 40, len(intact) // 2, len(intact) - 1):
        reader = Reader(folder, "train", 30)
        path.write_bytes(intact[:size])
        with pytest.raises(UserError, match=r"is damaged: .*; prepare the data set again"):
            reader.batch(0, 0)
        path.write_bytes(intact)
    reader = Reader(folder, "train", 30)
    shutil.rmtree(path.parent)
    with pytest.raises(UserError, match="cannot be read"):
        reader.batch(0, 0)


def test_a_copy_in_another_process_reads_the_same_batches(tmp_path):
    reader = Reader(_write(tmp_path, _split(30, 1), 8), "train", 8, seed=3, rank=1, size=2)
    copied = pickle.loads(pickle.dumps(reader))
    for name, values in reader.batch(1, 2).items():
        np.testing.assert_array_equal(copied.batch(1, 2)[name], values)


def test_an_error_in_a_thread_of_tensorflow_reaches_the_caller(tmp_path):
    folder = _write(tmp_path, [_records(range(6)) + _records(range(6, 7), feature_ids=np.array([[99, 0, 0]]))])
    reader = Reader(folder, "train", 3, shuffle=False)
    read = []
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        for batch in reader.dataset(0):
            read += batch["key"].numpy().tolist()
    assert read == [b"r%d" % i for i in range(6)]
    assert "key 'r6': feature_ids: slot 0 (a) has id 99" in str(reader.error)
    assert str(find_user_error(caught.value)) == str(reader.error)


@pytest.mark.parametrize("form", ["python"], indirect=True)  # the op keeps no blocks
def test_blocks_are_read_once_by_steps_in_order(tmp_path, monkeypatch):
    from afm_ctr.io import paths

    folder = _write(tmp_path, _split(64, 1), 8)
    opened = []
    monkeypatch.setattr(paths, "open_binary", lambda path, real=paths.open_binary: opened.append(path) or real(path))
    reader = Reader(folder, "train", 3)
    opened.clear()
    _epoch(reader)
    assert len(opened) == 8


@pytest.mark.parametrize("form", ["python"], indirect=True)
def test_a_small_cache_changes_nothing(tmp_path, monkeypatch):
    from afm_ctr.records import blocks

    folder = _write(tmp_path, _split(64, 2), 8)
    wanted = _epoch(Reader(folder, "train", 5))
    monkeypatch.setattr(blocks, "CACHE_BYTES", 1)
    for one, other in zip(_epoch(Reader(folder, "train", 5)), wanted, strict=True):
        _same(one, other)


@pytest.mark.parametrize("kept", [1, 5000, 1 << 20])
def test_threads_may_share_a_reader(tmp_path, monkeypatch, kept):
    from afm_ctr.records import blocks

    monkeypatch.setattr(blocks, "CACHE_BYTES", kept)
    folder = _write(tmp_path, _split(120, 2), 8)
    wanted = _epoch(Reader(folder, "train", 5))
    shared = Reader(folder, "train", 5)
    with ThreadPoolExecutor(6) as pool:
        for one, other in zip(pool.map(lambda step: shared.batch(0, step % 24), range(72)), wanted * 3, strict=True):
            _same(one, other)
