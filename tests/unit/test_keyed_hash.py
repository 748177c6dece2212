"""Hashing with a key: SipHash-2-4, the same ids on every path, and the key where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.errors import UserError
from afm_ctr.features import FeatureTransform
from afm_ctr.schema import Analysis, FeatureSchema, ResolvedSchema, resolve, validate
from afm_ctr.statistics import Collector

MASK = 2**64 - 1
KEY = bytes(range(16))


def siphash(key: bytes, text: bytes) -> int:
    """SipHash-2-4 as its authors describe it."""
    k0, k1 = (int.from_bytes(word, "little") for word in (key[:8], key[8:]))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turn(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & MASK

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = v[0] + v[1] & MASK
            v[2] = v[2] + v[3] & MASK
            v[1], v[3] = turn(v[1], 13) ^ v[0], turn(v[3], 16) ^ v[2]
            v[0] = turn(v[0], 32)
            v[2] = v[2] + v[1] & MASK
            v[0] = v[0] + v[3] & MASK
            v[1], v[3] = turn(v[1], 17) ^ v[2], turn(v[3], 21) ^ v[0]
            v[2] = turn(v[2], 32)

    padded = text + bytes(7 - len(text) % 8) + bytes([len(text) & 255])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "user.key"
    path.write_text(KEY.hex() + "\n")
    return path


def spec(key_file: Path | str, **changes: Any) -> FeatureSchema:
    space = {"kind": "hash", "buckets": 1009, "key_file": str(key_file)}
    fields = [
        {"name": "user", "kind": "categorical", "space": "secret"},
        {"name": "pair", "kind": "cross", "columns": ["user", "site"], "space": "secret"},
        {"name": "open", "column": "user", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 1009}},
    ]
    content = {"name": "s", "format": {"kind": "delimited"}, "spaces": {"secret": space}, "fields": fields}
    return validate(FeatureSchema, content | changes, "schema.yaml")


def ids_of(schema: ResolvedSchema, users: list[bytes]) -> np.ndarray:
    transform = tf.function(FeatureTransform(schema), autograph=False)
    columns = {"user": tf.constant(users), "site": tf.constant([b"x"] * len(users))}
    return transform(columns).feature_ids.numpy()


def test_the_reference_is_the_published_one() -> None:
    assert siphash(KEY, bytes(range(15))) == 0xA129CA6149BE45E5  # the test vector of the paper


@pytest.mark.parametrize("key", [KEY, b"\xff" * 16, bytes(16)])
def test_ids_are_siphash_of_the_cell(key: bytes, key_file: Path) -> None:
    key_file.write_text(key.hex())
    schema = resolve(spec(key_file), Analysis.empty())
    users = [b"u%d" % i for i in range(50)] + [b"x" * n for n in range(1, 20)]
    ids = ids_of(schema, users)
    start = schema.global_id("secret", 0)
    assert (ids[:, 0] - start).tolist() == [siphash(key, user) % 1009 for user in users]
    assert (ids[:, 1] - start).tolist() == [siphash(key, user + b"\x1fx") % 1009 for user in users]
    assert (ids[:, 0] - start).tolist() != (ids[:, 2] - schema.global_id("open", 0)).tolist()


def test_a_saved_schema_has_a_check_and_no_key(key_file: Path, tmp_path: Path) -> None:
    schema = resolve(spec(key_file), Analysis.empty())
    schema.save(tmp_path / "data")
    written = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert KEY.hex().encode() not in written and KEY not in written
    loaded = ResolvedSchema.load(tmp_path / "data")
    assert loaded == schema and loaded.id == schema.id and loaded.key_checks.keys() == {"secret"}
    np.testing.assert_array_equal(ids_of(loaded, [b"a"]), ids_of(schema, [b"a"]))
    key_file.write_text("0" * 32)
    with pytest.raises(UserError, match=r"user\.key: is not the key that the data was prepared with"):
        FeatureTransform(loaded)
    with pytest.raises(UserError, match="is not the key"):
        resolve(spec(key_file), Analysis.empty(), parent=schema)
    key_file.unlink()
    with pytest.raises(UserError, match=r"key_file: .*user\.key: cannot be read: No such file"):
        FeatureTransform(loaded)


def test_a_continued_schema_may_have_its_key_elsewhere(key_file: Path, tmp_path: Path) -> None:
    schema = resolve(spec(key_file), Analysis.empty())
    moved = key_file.rename(tmp_path / "moved.key")
    grown = resolve(spec(moved), Analysis.empty(), parent=schema)
    assert grown.parent_id == schema.id and grown.key_checks == schema.key_checks
    plain = {"kind": "hash", "buckets": 1009}
    with pytest.raises(UserError, match="keyed of its id space is False, was True"):
        resolve(spec(moved, spaces={"secret": plain}), Analysis.empty(), parent=schema)


@pytest.mark.parametrize("content", ["", "abc", "0" * 31, "0" * 33, "g" * 32])
def test_a_file_that_holds_no_key(content: str, key_file: Path) -> None:
    key_file.write_text(content)
    with pytest.raises(UserError, match=r"user\.key: must hold 32 hexadecimal digits") as refused:
        resolve(spec(key_file), Analysis.empty())
    assert not content or content not in str(refused.value)


def test_the_path_is_absolute() -> None:
    with pytest.raises(UserError, match=r"spaces\.secret\.key_file: 'user\.key': must be an absolute path"):
        spec("user.key")


def test_statistics_show_buckets_in_place_of_values(key_file: Path) -> None:
    schema = resolve(spec(key_file), Analysis.empty())
    users = [b"alice"] * 3 + [b"bob"]
    ids = ids_of(schema, users)
    columns = {"user": np.array(users, object), "site": np.array([b"x"] * 4, object)}
    collector = Collector(schema, 4)
    collector.add(ids, np.zeros(4))
    collector.add_sample(np.arange(4), columns, ids, np.zeros(4))
    hidden, crossed, shown = collector.partial().finish(schema, "train").fields
    assert [(top.value, top.rows) for top in hidden.top] == [
        (str(siphash(KEY, b"alice") % 1009), 3),
        (str(siphash(KEY, b"bob") % 1009), 1),
    ]
    assert hidden.distinct == 2 and "alice" not in str(crossed)
    assert shown.top[0].value == "alice"
