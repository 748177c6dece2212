"""The transform against the plain Python reference, and the rules that a reference alone would not show."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_transform import fingerprint64, transform_row

from afm_ctr.features import FeatureTransform
from afm_ctr.schema import Analysis, FeatureSchema, NumberFacts, ResolvedSchema, resolve

SPEC = FeatureSchema.model_validate(
    yaml.safe_load("""
name: everything
format: {kind: delimited}
missing_values: ["-1", new, "2014-10-21", " "]
spaces: {thing: {kind: vocabulary, oov: 3}, code: {kind: ids, size: 50}, met: {kind: hash, buckets: 9}}
fields:
  - {name: one, kind: categorical, space: thing}
  - {name: logged, column: n, kind: numeric, encoding: {kind: value, log: true}}
  - {name: tags, kind: categorical, space: thing, max_values: 3, separator: "||", missing: own,
     missing_values: [x, "||"]}
  - {name: hashed, kind: categorical, encoding: {kind: hash, buckets: 7}, missing: own}
  - {name: codes, kind: categorical, space: code, max_values: 2, separator: ",", value: one}
  - {name: code, column: codes, kind: categorical, space: code, missing: own, missing_values: []}
  - {name: filled, column: n, kind: numeric, encoding: {kind: value, standardise: true}, missing: {value: 2.5}}
  - {name: cut, column: n, kind: numeric, encoding: {kind: buckets, boundaries: [-1, 0, 1]}}
  - {name: square, column: m, kind: numeric, encoding: {kind: buckets, log_square: true}, missing: own,
     missing_values: [nan]}
  - {name: empty, column: one, kind: categorical, encoding: {kind: vocabulary}}
  - {name: other, column: hashed, kind: categorical, encoding: {kind: hash, buckets: 11}}
  - {name: pair, kind: cross, columns: [one, hashed], encoding: {kind: hash, buckets: 13}, missing: own}
  - {name: known, kind: cross, columns: [one, tags], space: thing, missing_values: [b]}
  - {name: met_one, kind: cross, columns: [hashed, one], space: met}
  - {name: met_two, kind: categorical, column: hashed, space: met}
  - {name: hour, column: iso, kind: time, format: iso, part: hour, missing: own}
  - {name: weekday, column: iso, kind: time, format: iso, part: weekday, missing_values: ["nan"]}
  - {name: month, column: iso, kind: time, format: iso, part: month}
  - {name: weekend, column: stamp, kind: time, format: epoch, part: weekend}
  - {name: day, column: stamp, kind: time, format: epoch, part: day}
  - {name: minute, column: stamp, kind: time, format: epoch_ms, part: hour}
  - {name: packed, kind: time, format: "%y%m%d%H", part: weekday, missing: own}
  - {name: clock, kind: time, format: clock, part: hour}
""")
)
FACTS = Analysis(
    counts={"thing": {b"a": 5, b"b b": 5, b"\xff\x00": 9, b" ": 1, b"a\x1fb b": 2}, "empty": {}},
    numbers={"filled": NumberFacts(3, 1.5, 0.25)},
)
TEXTS = [b"", b"a", b"b b", b"\xff\x00", b" ", b"new", b"ein laengeres", b"a||a||b b", b"||", b"x||y||a||b b", b"|a"]
CODES = [
    b"",
    b"0",
    b"49",
    b"50",
    b"7,8",
    b" 7 , 8,9",
    b",,3,",
    b"x,1",
    b"1,2,x",
    b"-1",
    b"  ",
    b"9" * 19,
    b"007",
    b"1.0",
]
NUMBERS = [
    b"",
    b" ",
    b"0",
    b"-0",
    b"1",
    b"-1",
    b"2.5",
    b" 3e2\t",
    b"nan",
    b"inf",
    b"0x1F",
    b"1_000",
    b"1e400",
    b"-1e39",
]
NUMBERS += [b".5", b"5.", b".", b"+7", b"1e-400", b"1,5", b"\xd9\xa1", b"--1", b"0.1", b"123456789.123456789", b"1e"]
TIMES = [b"", b" ", b"2014-10-21", b"2016-02-29T23:59:59.9Z", b"1900-02-29", b"2014-10-21T00:05+02:00", b"14:00"]
TIMES += [b"2014-10-21 23:05-0130", b"0000-01-01", b"0001-01-01", b"2014-10-21T24:00", b"2014-10-21T07:60", b"nan"]
STAMPS = [b"", b"0", b"-1", b"-0.5", b"1413849600", b"1413849600123", b"1.", b"+1", b"1e9", b"9" * 18, b"9" * 19]
PACKED = [b"", b"14102107", b" 14102107 ", b"14102124", b"14022900", b"00022900", b"69010100", b"1410210", b"x"]
CLOCKS = [
    b"",
    b"7:05",
    b" 07:05:30.25 ",
    b"0:00",
    b"24:00",
    b"23:60",
    b"23:59:60",
    b"12:00 am",
    b"12:30PM",
    b"1:15:00 p.m.",
]
CLOCKS += [
    b"0:15 am",
    b"13:00 pm",
    b"7:5",
    b"7",
    b"007:05",
    b"7:05  pm",
    b"7:05 pm.",
    b"-7:05",
    b"7:05 x",
    b"7:05\nx",
]
EMPTY = dict.fromkeys(SPEC.raw_columns, b"")
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "one": st.sampled_from(TEXTS) | st.binary(max_size=14),
            "tags": st.sampled_from(TEXTS) | st.lists(st.binary(max_size=5), max_size=5).map(b"||".join),
            "hashed": st.binary(max_size=14),
            "iso": st.sampled_from(TIMES) | st.datetimes().map(lambda at: at.isoformat().encode()),
            "stamp": st.sampled_from(STAMPS) | st.integers(-(10**12), 10**13).map(lambda x: b"%d" % x),
            "packed": st.sampled_from(PACKED) | st.datetimes().map(lambda at: at.strftime("%y%m%d%H").encode()),
            "clock": st.sampled_from(CLOCKS) | st.times().map(lambda at: at.isoformat().encode()),
            "codes": st.sampled_from(CODES) | st.text(alphabet="0159, x-", max_size=9).map(str.encode),
            "n": st.sampled_from(NUMBERS)
            | st.floats(width=32).map(lambda x: repr(x).encode())
            | st.binary(max_size=6),
            "m": st.sampled_from(NUMBERS) | st.integers(-5, 10**7).map(lambda x: str(x).encode()),
        }
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def schema() -> ResolvedSchema:
    return resolve(SPEC, FACTS)


@pytest.fixture(scope="module")
def transform(schema: ResolvedSchema) -> FeatureTransform:
    return FeatureTransform(schema)


@pytest.fixture(scope="module")
def in_graph(schema: ResolvedSchema, transform: FeatureTransform) -> tf.types.experimental.PolymorphicFunction:
    signature = {name: tf.TensorSpec([None], tf.string) for name in schema.raw_columns}
    return tf.function(transform, input_signature=[signature], autograph=False)


def columns_of(rows: list[dict[str, bytes]]) -> dict[str, tf.Tensor]:
    return {name: tf.constant([row[name] for row in rows], tf.string) for name in rows[0]}


@settings(max_examples=15, deadline=None)
@given(ROWS)
@example([{**EMPTY, "one": t, "tags": t, "codes": c, "n": n, "m": n} for t, c, n in zip(TEXTS, CODES, NUMBERS)])  # noqa: B905
@example([{**EMPTY, "n": n, "m": n} for n in NUMBERS])
@example([{**EMPTY, "iso": t, "one": b"a", "tags": b"b b", "hashed": b"x"} for t in TIMES])
@example([{**EMPTY, "clock": c} for c in CLOCKS])
@example([{**EMPTY, "stamp": s, "packed": p} for s, p in zip(STAMPS, [*PACKED, *PACKED])])  # noqa: B905
def test_eager_and_graph_equal_the_reference(schema, transform, in_graph, rows):
    columns = columns_of(rows)
    encoded = in_graph(columns)
    ids, vals, bad = zip(*(transform_row(schema, row) for row in rows), strict=True)
    np.testing.assert_array_equal(encoded.feature_ids.numpy(), ids)
    np.testing.assert_array_equal(encoded.bad.numpy(), bad)
    expected = np.array(vals, np.float32)
    # The logarithm of another library may round the last bit the other way.
    np.testing.assert_array_max_ulp(encoded.feature_vals.numpy(), expected, maxulp=1)
    eager = transform(columns)
    np.testing.assert_array_equal(eager.feature_ids, encoded.feature_ids)
    np.testing.assert_array_equal(eager.bad, encoded.bad)
    np.testing.assert_array_max_ulp(eager.feature_vals.numpy(), expected, maxulp=1)


@settings(max_examples=20, deadline=None)
@given(ROWS, st.integers(0, 40), st.integers(0, 40))
def test_place_in_the_batch_never_changes_an_id(in_graph, rows, before, after):
    row = rows[0]
    alone = in_graph(columns_of([row]))
    padded = in_graph(columns_of([rows[-1]] * before + [row] + [rows[-1]] * after))
    np.testing.assert_array_equal(padded.feature_ids[before], alone.feature_ids[0])
    np.testing.assert_array_equal(padded.bad[before], alone.bad[0])
    np.testing.assert_array_max_ulp(padded.feature_vals[before].numpy(), alone.feature_vals[0].numpy(), maxulp=1)


def test_shapes_and_types(schema, in_graph):
    encoded = in_graph.get_concrete_function().structured_outputs
    assert encoded.feature_ids.shape.as_list() == [None, schema.num_slots]
    assert encoded.feature_vals.shape.as_list() == [None, schema.num_slots]
    assert encoded.bad.shape.as_list() == [None, len(SPEC.fields)]
    assert (encoded.feature_ids.dtype, encoded.feature_vals.dtype) == (tf.int64, tf.float32)


def test_a_batch_of_no_rows(schema, in_graph):
    encoded = in_graph({name: tf.constant([], tf.string) for name in schema.raw_columns})
    assert encoded.feature_ids.shape == (0, schema.num_slots)
    assert encoded.bad.shape == (0, len(SPEC.fields))


def one_row(schema: ResolvedSchema, transform: FeatureTransform, **cells: bytes) -> dict[str, tuple[int, float]]:
    encoded = transform({name: tf.constant([cells.get(name, b"")]) for name in schema.raw_columns})
    ids, vals = encoded.feature_ids[0].numpy(), encoded.feature_vals[0].numpy()
    return {slot.name: (int(ids[slot.index]), float(vals[slot.index])) for slot in schema.slots}


def test_a_present_zero_is_present(schema, transform):
    row = one_row(schema, transform, n=b"0")
    assert row["logged"] == (schema.global_id("logged", 0), 0.0)
    assert row["filled"] == (schema.global_id("filled", 0), (0 - 1.5) / 0.25)
    assert row["cut"] == (schema.global_id("cut", 2), 1.0)


def test_missing_policies(schema, transform):
    row = one_row(schema, transform)
    assert row["logged"] == (0, 0.0)
    assert row["filled"] == (schema.global_id("filled", 0), (2.5 - 1.5) / 0.25)
    assert row["square"] == (schema.global_id("square.missing", 0), 1.0)
    assert row["tags[0]"] == (schema.global_id("tags.missing", 0), 1.0)
    assert row["tags[1]"] == (0, 0.0)
    assert row["one"] == (0, 0.0)


def test_values_of_a_multi_valued_field(schema, transform):
    row = one_row(schema, transform, tags=b"a||||a||\xff\x00||b b", codes=b"3, 4,5")
    entry = {value: schema.global_id("thing", 3 + i) for i, value in enumerate(schema.vocabularies["thing"])}
    third = float(np.float32(1) / np.float32(3))
    tags = [row[f"tags[{i}]"] for i in range(3)]
    assert tags == [(entry[b"a"], third), (entry[b"a"], third), (entry[b"\xff\x00"], third)]
    codes = [row[f"codes[{i}]"] for i in range(2)]
    assert codes == [(schema.global_id("code", 3), 1.0), (schema.global_id("code", 4), 1.0)]


def test_a_cross_is_its_columns_texts_together(schema, transform):
    row = one_row(schema, transform, one=b"a", tags=b"b b", hashed=b"x")
    assert row["known"] == (schema.global_id("thing", 3 + schema.vocabularies["thing"].index(b"a\x1fb b")), 1.0)
    assert row["pair"] == (schema.global_id("pair", fingerprint64(b"a\x1fx") % 13), 1.0)
    assert row["met_one"] == (schema.global_id("met", fingerprint64(b"x\x1fa") % 9), 1.0)
    missing = one_row(schema, transform, one=b"a")
    assert missing["pair"] == (schema.global_id("pair.missing", 0), 1.0)
    assert missing["known"] == missing["met_one"] == (0, 0.0)


def test_parts_of_a_moment(schema, transform):
    row = one_row(schema, transform, iso=b"2014-10-20T01:30+02:00", stamp=b"1413676800000", packed=b"14101923")
    assert row["hour"] == (schema.global_id("hour", 23), 1.0)
    assert [row[name][0] - schema.global_id(name, 0) for name in ("weekday", "month", "packed")] == [6, 9, 6]
    assert row["minute"] == (schema.global_id("minute", 0), 1.0)
    saturday = one_row(schema, transform, stamp=b"1413590400")
    assert saturday["weekend"] == (schema.global_id("weekend", 1), 1.0)
    assert saturday["day"] == (schema.global_id("day", 17), 1.0)


def test_fields_of_one_space_share_ids(schema, transform):
    row = one_row(schema, transform, one=b"a", tags=b"a")
    assert row["one"] == row["tags[0]"]


def test_hashing_is_fingerprint64():
    assert fingerprint64(b"") == 0x9AE16A3B2F90404F  # k2 of the published source
    texts = [b"x" * n for n in range(65)] + [bytes(range(n, n + 12)) for n in range(50)]
    hashed = tf.strings.to_hash_bucket_fast(tf.constant(texts), 1_000_003).numpy()
    assert hashed.tolist() == [fingerprint64(text) % 1_000_003 for text in texts]


def test_log_square_ids_do_not_depend_on_the_place_in_a_batch():
    spec = {"name": "x", "kind": "numeric", "encoding": {"kind": "buckets", "log_square": True}}
    schema = resolve(
        FeatureSchema.model_validate({"name": "s", "format": {"kind": "delimited"}, "fields": [spec]}),
        Analysis.empty(),
    )
    transform = tf.function(FeatureTransform(schema), autograph=False)
    numbers = np.random.default_rng(0).integers(-3, 2_000_000, 3001)
    together = transform({"x": tf.constant([b"%d" % n for n in numbers])}).feature_ids.numpy()[:, 0]
    shifted = transform({"x": tf.constant([b"7"] + [b"%d" % n for n in numbers])}).feature_ids.numpy()[1:, 0]
    np.testing.assert_array_equal(together, shifted)


def test_an_absent_column_is_named(transform):
    with pytest.raises(ValueError, match="'tags' is not there"):
        transform({"one": tf.constant([b""]), "n": tf.constant([b""])})


def test_ids_are_within_the_table(schema, in_graph):
    rows = [
        {**EMPTY, "one": t, "tags": t, "hashed": t, "codes": b"49", "n": n, "m": n} for t in TEXTS for n in NUMBERS
    ]
    ids = in_graph(columns_of(rows)).feature_ids.numpy()
    assert ids.min() >= 0
    assert ids.max() < schema.feature_size
