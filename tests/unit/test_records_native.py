"""Records by the op in C++: the same arrays and errors as in Python, for everything that a shard may hold."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records_reader import _records, _schema, _split, _write

from afm_ctr import native
from afm_ctr.errors import UserError
from afm_ctr.records import Manifest, Reader
from afm_ctr.records.blocks import SplitBlocks
from afm_ctr.records.framing import FramedRecords
from afm_ctr.records.order import EpochOrder, permutation

pytestmark = pytest.mark.skipif(native.load().module is None, reason=f"reading records: {native.load().reason}")

SLOTS, SIZE = 3, 31  # of the schema


@contextlib.contextmanager
def reading(form: str, instructions: str = "") -> Iterator[None]:
    """Monkeypatch does not go with hypothesis."""
    names = {"AFM_CTR_READING": form, "AFM_CTR_INSTRUCTIONS": instructions}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def outcome(reader: Reader, form: str, instructions: str = "") -> dict[str, Any] | str:
    """The batch as lists, or the error."""
    with reading(form, instructions):
        try:
            batch = reader.batch(0, 0)
        except UserError as error:
            return str(error)
    return {name: (values.dtype, values.tobytes() if values.dtype != object else values.tolist()) for name, values in
            batch.items()}  # fmt: skip


def taken_at_once(reader: Reader, epoch: int = 0, step: int = 0) -> bool:
    """Whether the op read the batch as a whole."""
    taken = []

    def noted(*args: Any, **options: Any) -> Any:
        found = read_records(*args, **options)
        taken.append(found is not None)
        return found

    read_records = native.read_records
    with reading("native"), mock.patch.object(native, "read_records", noted), contextlib.suppress(UserError):
        reader.batch(epoch, step)
    return taken == [True]


# -- messages, byte by byte --------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    number %= 1 << 64
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(tag: int, inside: bytes) -> bytes:
    return bytes([tag]) + varint(len(inside)) + inside


def int_list(values: list[int], packed: bool) -> bytes:
    one_by_one = b"".join(b"\x08" + varint(value) for value in values)
    return field(0x1A, field(0x0A, b"".join(map(varint, values))) if packed else one_by_one)


def float_list(values: list[float], packed: bool) -> bytes:
    words = [struct.pack("<f", value) for value in values]
    return field(0x12, field(0x0A, b"".join(words)) if packed else b"".join(b"\x0d" + word for word in words))


def bytes_list(values: list[bytes]) -> bytes:
    return field(0x0A, b"".join(field(0x0A, value) for value in values))


def message(features: list[tuple[bytes, bytes]]) -> bytes:
    """An Example of map entries in this order."""
    return field(0x0A, b"".join(field(0x0A, field(0x0A, name) + field(0x12, value)) for name, value in features))


@st.composite
def good_features(draw: Callable) -> list[tuple[bytes, bytes]]:
    """Of a record of the contract, in any order, packed or not, with others in between."""
    packed = st.booleans()
    features = [
        (b"feature_ids", int_list(draw(st.lists(st.integers(0, SIZE - 1), min_size=3, max_size=3)), draw(packed))),
        (
            b"feature_vals",
            float_list(
                draw(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=3, max_size=3)),
                draw(packed),
            ),
        ),
        (b"label", float_list([draw(st.sampled_from([0.0, 1.0, -0.0]))], draw(packed))),
    ]
    if draw(st.booleans()):
        features.append((b"weight", float_list([draw(st.floats(0, 2.0**100, width=32))], draw(packed))))
    if draw(st.booleans()):
        features.append((b"group", int_list([draw(st.integers(-(2**63), 2**63 - 1))], draw(packed))))
    if draw(st.booleans()):
        features.append((b"key", bytes_list([draw(st.binary(max_size=40))])))
    for name in draw(st.lists(st.sampled_from([b"", b"other", b"labe", b"label2", b"x" * 200]), unique=True)):
        features.append((name, draw(st.sampled_from([b"", bytes_list([b"a", b"b"]), int_list([1, -1], True)]))))
    return draw(st.permutations(features))


@st.composite
def odd_features(draw: Callable) -> list[tuple[bytes, bytes]]:
    """A record with one thing changed: most of them wrong, some right all the same."""
    features = draw(good_features())
    kinds = {
        b"feature_ids": [
            int_list(ids, packed)
            for ids in ([1, 2], [1, 2, 3, 4], [], [1, 2, SIZE], [1, -1, 2], [1, 2**35, 2], [2**63 - 1, 0, 0])
            for packed in (True, False)
        ],
        b"feature_vals": [
            float_list(values, packed)
            for values in ([1.0], [1.0] * 4, [], [1.0, float("nan"), 0.0], [float("-inf"), 0.0, 0.0])
            for packed in (True, False)
        ],
        b"label": [float_list(values, True) for values in ([], [0.5], [float("nan")], [float("inf")], [0.0, 1.0])],
        b"weight": [float_list(values, True) for values in ([], [-1.0], [float("nan")], [1.0, 1.0])],
        b"group": [int_list(values, True) for values in ([], [1, 2])],
        b"key": [bytes_list(values) for values in ([], [b"a", b"b"])],
    }
    name = draw(st.sampled_from(sorted(kinds)))
    foreign = [b"", field(0x1A, b""), float_list([1.0], True), int_list([1], True), bytes_list([b"1"]), b"\x08\x01"]
    changed = draw(st.sampled_from([*kinds[name], *foreign, b"missing", b"twice"]))
    rest = [entry for entry in features if entry[0] != name]
    if changed == b"missing":
        return rest
    if changed == b"twice":
        return [*features, draw(st.sampled_from(features))]
    return draw(st.permutations([*rest, (name, changed)]))


def reader_of(folder: Path, records: list[bytes], labelled: bool = True, **options: Any) -> Reader:
    return Reader(_write(folder, [records], labelled=labelled), "train", len(records) + 2, shuffle=False, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written again for every example."""
    return tmp_path_factory.mktemp("data")


@settings(max_examples=60, deadline=None)
@given(records=st.lists(good_features().map(message), min_size=1, max_size=6))
def test_every_good_record_is_taken_and_equals_what_python_reads(folder: Path, records: list[bytes]) -> None:
    reader = reader_of(folder, records)
    assert taken_at_once(reader)
    assert outcome(reader, "native") == outcome(reader, "native", "baseline") == outcome(reader, "python")


@settings(max_examples=200, deadline=None)
@given(odd=odd_features().map(message), place=st.integers(0, 4), labelled=st.booleans())
def test_what_is_wrong_or_odd_ends_as_in_python(folder: Path, odd: bytes, place: int, labelled: bool) -> None:
    records = _records(range(4))
    records.insert(place, odd)
    reader = reader_of(folder, records, labelled)
    assert outcome(reader, "native") == outcome(reader, "python")


@settings(max_examples=200, deadline=None)
@given(good=good_features().map(message), data=st.data())
def test_messages_broken_at_any_byte_end_as_in_python(folder: Path, good: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(good) - 1))
    replaced = data.draw(st.binary(max_size=3))
    reader = reader_of(folder, [good[:place] + replaced + good[place + data.draw(st.integers(0, 3)) :]])
    assert outcome(reader, "native") == outcome(reader, "python")


def test_a_record_of_no_text_is_named(folder: Path) -> None:
    """TensorFlow's message about it holds its bytes, and is no UTF-8 then."""
    reader = reader_of(folder, [*_records(range(2)), b"\x80" + _records(range(1))[0]])
    found = outcome(reader, "python")
    assert found == outcome(reader, "native") and "record 2: it is not a tf.train.Example" in found


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_files_broken_at_any_byte_end_as_in_python(folder: Path, data: st.DataObject) -> None:
    reader = reader_of(folder, _records(range(9)))
    path = folder / "attempt/train/part-00000.tfrecord"
    whole = path.read_bytes()
    place, length = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 20))
    path.write_bytes(whole[:place] + data.draw(st.binary(min_size=1, max_size=20)) + whole[place + length :])
    found = outcome(reader, "native")
    assert found == outcome(reader, "native", "baseline") == outcome(reader, "python")
    assert isinstance(found, str) or path.read_bytes()[: len(whole)] == whole


@pytest.mark.parametrize("instructions", ["", "baseline"])
@pytest.mark.parametrize("width", [1, 2, 16, 17, 63, 64, 65, 200])
def test_ids_of_every_length(tmp_path: Path, width: int, instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one to nine bytes, alone and mixed, beginning and ending anywhere in the 64 bytes looked at together."""
    monkeypatch.setenv("AFM_CTR_INSTRUCTIONS", instructions)
    rng = np.random.default_rng(width)
    rows = [[2 ** int(b) - 1 for b in rng.integers(0, high, width)] for high in (8, 15, 22, 29, 36, 60, 63)]
    records = [message([(b"feature_vals", float_list([0.0] * width, True)), (b"feature_ids", int_list(ids, True))])
               for ids in rows]  # fmt: skip
    framed = FramedRecords.of(records)
    path = tmp_path / "shard"
    path.write_bytes(framed.frames.tobytes())
    stretches = np.array([[0, 0, framed.frames.size, len(rows), 0, len(rows)]])
    options: dict[str, Any] = {"labelled": False, "binary": False, "groups": True, "keys": True}
    options |= {"rows": len(rows) + 1, "slots": width}
    none = np.zeros((0, 2), np.uint64)
    found = native.read_records([str(path)], stretches, none, feature_size=2**63 - 1, **options)
    assert found is not None
    assert found["feature_ids"].tolist() == [*rows, [0] * width]
    assert np.isnan(found["label"][:-1]).all() and found["weight"].tolist() == [1.0] * len(rows) + [0.0]
    largest = max(max(ids) for ids in rows)
    assert native.read_records([str(path)], stretches, none, feature_size=largest, **options) is None
    assert native.read_records([str(path)], stretches, none, feature_size=largest + 1, **options) is not None


@pytest.mark.parametrize("block", [1, 3, 4, 5, 256, 1000])
def test_the_order_inside_a_block_is_pythons(tmp_path: Path, block: int) -> None:
    reader = Reader(_write(tmp_path, _split(1003, 2), block), "train", 400, seed=-3)
    for step in range(reader.steps_per_epoch):
        with reading("native"):
            assert taken_at_once(reader, 5, step)
            found = reader.batch(5, step)
        with reading("python"):
            wanted = reader.batch(5, step)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize(("name", "value"), [("labels", 1e-40), ("weights", -1e-40)])
def test_small_numbers_are_not_zeros_on_any_thread(tmp_path: Path, name: str, value: float) -> None:
    records = _records(range(400), **{name: np.full(400, value, np.float32)})
    reader = Reader(_write(tmp_path, [records], 1), "train", 400, shuffle=False)
    for step in range(20):
        assert not taken_at_once(reader), step
    found = outcome(reader, "native")
    assert found == outcome(reader, "python") and f"the {name[:-1]} is " in found


def test_keys_of_orders_are_those_of_permutation() -> None:
    order = EpochOrder(np.array([5, 7]), seed=-1, epoch=3)
    for block, rows in ((0, 5), (1, 7)):
        (key,) = order.keys([block])
        draws = np.random.Philox(key=key).random_raw(rows)
        np.testing.assert_array_equal(np.argsort(draws, kind="stable"), permutation(rows, -1, 3, block))


def test_chosen_columns_alone(tmp_path: Path) -> None:
    folder = _write(tmp_path, _split(10, 1))
    whole = Reader(folder, "train", 4)
    for columns in (("feature_ids", "row"), ("label", "key"), ("has_group",)):
        for form in ("native", "python"):
            with reading(form):
                batch = whole.batch(0, 1, columns)
                (element,) = whole.dataset(0, 1, columns).take(1).as_numpy_iterator()
                assert tuple(batch) == tuple(element) == tuple(name for name in whole.batch(0, 1) if name in columns)
                for name in columns:
                    np.testing.assert_array_equal(batch[name], whole.batch(0, 1)[name])
                    np.testing.assert_array_equal(element[name], batch[name])
    with pytest.raises(ValueError, match="columns"):
        whole.batch(0, 0, ("labels",))


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_packed_shards_and_long_blocks_are_read_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    from afm_ctr.records import blocks

    folder = _write(tmp_path, _split(40, 1), 8, compression)  # type: ignore[arg-type]
    assert taken_at_once(Reader(folder, "train", 9)) == (compression == "none")
    monkeypatch.setattr(blocks, "MOST_BYTES_AT_ONCE", 100)
    assert not taken_at_once(Reader(folder, "train", 9))


def test_stretches_that_there_are_not_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path, _split(8, 1), 8)
    blocks = SplitBlocks(folder, Manifest.load(folder), "train")
    (shard, start, stop, rows) = blocks.places(np.array([0]))[0].tolist()
    for wrong in (
        [shard, start, stop, rows, 0, 9],
        [shard, start, stop, rows, 5, 4],
        [shard, -1, stop, rows, 0, 8],
        [shard, 9, 3, 1, 0, 1],
        [-1, start, stop, rows, 0, 8],
        [1, start, stop, rows, 0, 8],
    ):
        with pytest.raises(Exception, match="no such stretches"):
            native.read_records(
                blocks.paths_tensor, np.array([wrong]), np.zeros((0, 2), np.uint64), rows=8, slots=3,
                feature_size=31, labelled=True, binary=True, groups=True, keys=True,
            )  # fmt: skip


def test_the_form_is_chosen_by_the_library_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFM_CTR_READING", "quick")
    with pytest.raises(UserError, match="AFM_CTR_READING=quick: choose native or python"):
        native.reads_records()
    for wanted, read in (("", True), ("native", True), ("python", False)):
        monkeypatch.setenv("AFM_CTR_READING", wanted)
        assert native.reads_records() == read
    monkeypatch.setattr(native.records, "load", lambda: native.op._Loaded(reason="not built"))
    for wanted in ("", "python"):
        monkeypatch.setenv("AFM_CTR_READING", wanted)
        assert not native.reads_records()
    monkeypatch.setenv("AFM_CTR_READING", "native")
    with pytest.raises(UserError, match=r"not built; build it by `python scripts/build_native\.py`"):
        native.reads_records()


def test_schema_of_these_tests() -> None:
    assert (_schema().num_slots, _schema().feature_size) == (SLOTS, SIZE)
