"""What the library without TensorFlow makes of lines and cells: the same as NumPy and TensorFlow make of them."""

from __future__ import annotations

import json
import math
import tempfile
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_beam_encode import NUMBER, NUMBERS

from afm_ctr import analysis, native
from afm_ctr.native import RowEncoder, RowField, TextIndex, plain
from afm_ctr.rawlog import LineParser
from afm_ctr.rawlog.spans import CellSpans
from afm_ctr.schema import Analysis, FeatureSchema, NumberFacts, ResolvedSchema, resolve
from beam_jobs.encode import EncodedRows, Encoder
from beam_jobs.row_plan import row_plan

pytestmark = pytest.mark.skipif(not native.prepares(), reason="the library without TensorFlow is not built")

HASH = {"kind": "hash", "buckets": 10**9 + 7}
KEYED = HASH | {"key_file": "KEY"}
FIELDS: list[dict[str, Any]] = [
    {"name": "a", "kind": "categorical", "encoding": HASH, "missing": "own"},
    {"name": "z", "kind": "categorical", "encoding": HASH, "missing_values": ["é", "", "1"]},
    {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}},
    {"name": "o", "column": "n", "kind": "numeric", "encoding": {"kind": "value"}, "missing": "own"},
    {"name": "f", "column": "n", "kind": "numeric", "encoding": {"kind": "value"}, "missing": {"value": 3e38}},
    {"name": "t", "column": "n", "kind": "numeric", "encoding": {"kind": "value"}, "missing": {"value": 1e-39}},
    {"name": "b", "column": "n", "kind": "numeric", "encoding": {"kind": "buckets", "log_square": True}},
    {"name": "q", "column": "n", "kind": "numeric", "encoding": {"kind": "buckets", "boundaries": [-1.5, 0, 2]}},
    {
        "name": "d",
        "column": "n",
        "kind": "numeric",
        "encoding": {"kind": "buckets", "boundaries": [-1, 1e-310, 1023]},
    },
    {"name": "x", "kind": "cross", "columns": ["a", "n", "z"], "encoding": {"kind": "hash", "buckets": 97}},
    {"name": "i", "column": "a", "kind": "categorical", "encoding": {"kind": "ids", "size": 30}, "missing": "own"},
    {
        "name": "v",
        "column": "a",
        "kind": "categorical",
        "encoding": {"kind": "vocabulary", "oov": 3},
        "missing": "own",
    },
    {"name": "xv", "kind": "cross", "columns": ["z", "n"], "encoding": {"kind": "vocabulary"}},
    {"name": "m", "column": "a", "kind": "categorical", "encoding": HASH, "separator": " ", "max_values": 3},
    {"name": "mv", "column": "z", "kind": "categorical", "encoding": {"kind": "vocabulary"}, "separator": "11"},
    {"name": "mi", "column": "a", "kind": "categorical", "encoding": {"kind": "ids", "size": 30}, "separator": ","},
    {"name": "k", "column": "a", "kind": "categorical", "encoding": KEYED},
    {"name": "mk", "column": "z", "kind": "categorical", "encoding": KEYED, "separator": "a"},
]
for some in FIELDS[-5:]:
    if "separator" in some and some["name"] != "m":
        some |= {"max_values": 2, "keep": "last", "value": "one", "missing": "own"}
COUNTS = {
    "v": {b"a": 3, b"2": 2, "é".encode(): 1},
    "xv": {b"1\x1f1": 1, b"a\x1f-1": 1},
    "mv": {b"a": 2, b"9": 1, b" ": 1},
}
SPEC = {
    "name": "t",
    "format": {"kind": "delimited", "header": False, "delimiter": ";", "columns": ["label", "a", "z", "n"]},
    "label": {"negative": "*"},
    "missing_values": ["-1", " "],
    "fields": FIELDS,
}
CELL = st.text(alphabet=' \t,"#\0aé1.-29', max_size=20).map(str.encode)


@cache
def encoders() -> tuple[LineParser, Encoder, Encoder]:
    """A parser, and an encoder of either form."""
    with tempfile.NamedTemporaryFile() as key, pytest.MonkeyPatch.context() as patch:
        Path(key.name).write_text("00112233445566778899aabbccddeeff")
        spec = FeatureSchema.model_validate_json(json.dumps(SPEC).replace("KEY", key.name))
        schema = resolve(spec, Analysis(COUNTS))
        ours = Encoder(schema)
        patch.setenv(plain.PREPARING, "python")
        stock = Encoder(schema)
    return LineParser(spec), ours, stock


@given(st.lists(st.tuples(CELL, CELL, st.one_of(CELL, NUMBER)), min_size=1, max_size=70))
@example([(b"29", b"", number.encode()) for number in NUMBERS])
@example([(b"", b"", str(10**n + more).encode()) for n in range(10) for more in (-1, 0)])
@example([(b"", b"", number) for number in (b"1022", b"1023", b"1024", b"01023", b"7:", b"/7", b"00000000", b"1 23")])
@example([(text, b"", b"") for text in (b"30", b" 7 ", b"1" * 18, b"1" * 19, b"0" * 19, b"+1", b"\v2\f", b"1 2")])
@example([(b"", b"", number) for number in (b"3e-39", b"-1e-38", b"1.17549435e-38", b"3.5e38", b"-3.5e38", b"1e308")])
@example(
    [(text, text, b"") for text in (b"1,2,3", b"1,,29 ", b"1, x", b"3,30", b"-1,2", b"a a  2 9", b"911a119", b"11")]
)
@example([(bytes(range(97, 97 + size)), b"a".join([b"z" * size] * 3), b"") for size in range(20)])
@settings(max_examples=25, deadline=None)
def test_cells_are_encoded_as_tensorflow_does(rows: list[tuple[bytes, ...]]) -> None:
    parser, ours, stock = encoders()
    lines = [b"1;" + b";".join(row) for row in rows]
    spans, columns = (parser.parse(lines, "f", 1, leave_columns=leave) for leave in (True, False))
    assert (spans.spans is not None) == (b'"' not in b"".join(lines)) and columns.spans is None
    expected = stock(columns)
    for parsed in (spans, columns, spans.take(np.arange(len(spans)))):
        found = ours(parsed)
        assert sorted(ours.multi_fields) == sorted(stock.multi_fields)
        cut = expected.cut[:, [stock.multi_fields.index(name) for name in ours.multi_fields]]
        for name, one, other in zip(EncodedRows._fields, found, expected._replace(cut=cut), strict=True):
            assert one.tobytes() == other.tobytes() and one.shape == other.shape, name


def both(schema: ResolvedSchema) -> tuple[Encoder, Encoder]:
    """An encoder of either form."""
    with pytest.MonkeyPatch.context() as patch:
        ours = Encoder(schema)
        patch.setenv(plain.PREPARING, "python")
        return ours, Encoder(schema)


def same(encoders: tuple[Encoder, Encoder], column: str, cells: list[bytes]) -> EncodedRows:
    """What both make of rows of one column, bit by bit."""
    spec = FeatureSchema.model_validate(SPEC | {"missing_values": [], "fields": [FIELDS[2]]})
    parsed = LineParser(spec, labelled=False).parse([b"1;2;3;4"] * len(cells), "f", 1)
    parsed.columns = {column: np.array(cells, object)}
    found, expected = (encoder(parsed) for encoder in encoders)
    for name, one, other in zip(EncodedRows._fields, found, expected, strict=True):
        assert one.tobytes() == other.tobytes() and one.shape == other.shape, name
    return found


@cache
def times() -> tuple[Encoder, Encoder]:
    texts = ["iso", "epoch", "epoch_ms", "clock", "%y%m%d%H", "%d/%m/%Y %H:%M:%S", "Y%Yd%d%m H%H"]
    fields = [
        {"name": f"{part}{n}", "column": "a", "kind": "time", "format": text, "part": part, "missing": missing}
        for n, text in enumerate(texts)
        for part, missing in zip(["hour", "weekday", "weekend", "day", "month"], ["own", "absent"] * 3, strict=False)
        if part == "hour" or text != "clock"
    ]
    return both(resolve(FeatureSchema.model_validate(SPEC | {"fields": fields}), Analysis({})))


PIECES = [
    *"0123456789:-+TZ .,ApPm/Yd\0\n",
    "00",
    "12",
    "23",
    "31",
    "2016-02-29",
    "07:05",
    "2014-10-21T",
    "1413849600",
]
MOMENT = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30))
FORMATS = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%y%m%d%H", "%H:%M:%S", "%d/%m/%Y %H:%M:%S", "Y%Yd%d%m H%H"]


@given(
    st.lists(
        st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
        | st.builds(
            lambda at, form, piece, place: (text := at.strftime(form))[:place] + piece + text[place:],
            MOMENT,
            st.sampled_from(FORMATS),
            st.sampled_from(["", "", "0", "9", "-", ".5", "Z", "+0200", "-05:30", " pm", "\n"]),
            st.integers(0, 24),
        )
        | st.integers(-(10**18), 10**18).map(str),
        min_size=1,
        max_size=40,
    )
)
@example(
    ["-0.5", "-0.0", "-60", "-60.01", "1.", "9" * 18, "9" * 19, "+1", ".5", "-", "-60000.0", "12:00 am", "12:30 P.M."]
)
@example(
    ["0001-01-01T00-23:59", "9999-12-31T23:59:59+23:59", "2014-10-21T07Z", "2014-10-21T07+24", "2014-10-21T07+0060"]
)
@example(
    ["1900-02-29", "2000-02-29", "0000-01-01", "2014-13-01", "2014-10-21T24:00", "2014-10-21T07:05:60", "690101000"]
)
@example(["68123123", "69010100", "00022900", "29/02/2016 00:00:00", "Y2016d2902 H23", "Y2016d2902 H2x", "13:00 pm"])
@settings(max_examples=25, deadline=None)
def test_times_are_those_of_tensorflow(texts: list[str]) -> None:
    same(times(), "a", [text.encode() for text in texts])


@pytest.mark.parametrize("form", ["native", "python"])
def test_bad_times_are_told_without_tensorflow(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plain.PREPARING, form)
    texts = [b"", b" ", b"2016-02-29", b"2015-02-29", b" 2014-10-21T07:05Z ", b"x", b"14102107"]
    assert analysis._bad_times(texts, "iso").tolist() == [False, False, False, True, False, True, True]
    assert analysis._bad_times(texts, "%y%m%d%H").tolist() == [False, False, True, True, True, True, False]


@cache
def logarithms() -> tuple[Encoder, Encoder]:
    fills = [{}, {"missing": "own"}, *({"missing": {"value": number}} for number in (0, 2.5, -3e38, 1e-39))]
    fields = [
        {"name": f"l{n}", "column": "n", "kind": "numeric", "encoding": encoding | {"kind": "value", "log": True}}
        | fill
        for n, (fill, encoding) in enumerate(zip(fills, [{}, {}, *[{"standardise": True}] * 4], strict=True))
    ]
    facts = {f"l{n}": NumberFacts(9, 1.25 + n, 0.3) for n in range(2, 6)}
    return both(resolve(FeatureSchema.model_validate(SPEC | {"fields": fields}), Analysis({}, facts)))


@given(st.lists(NUMBER | st.floats(-1e9, 1e9).map(lambda x: repr(x).encode()), min_size=1, max_size=200))
@example([number.encode() for number in NUMBERS])
@example([b"2.2250738585072014e-308", b"-1e-310", b"1.7976931348623157e308", b"-1e308", b"1e-17", b"-4e-8"])
@settings(max_examples=25, deadline=None)
def test_logarithms_have_the_bits_of_tensorflow(numbers: list[bytes]) -> None:
    same(logarithms(), "n", numbers)


def test_a_logarithm_between_two_numbers_of_32_bits_is_left_to_tensorflow() -> None:
    ours, _ = logarithms()
    tied = [repr(math.expm1(1 + (2 * n + 1) * 2.0**-24)).encode() for n in range(100)]
    spans = CellSpans.of({"n": [b"1", *tied, b"x"]})
    assert spans is not None
    found = native.RowEncoder(row_plan(ours._schema), {"n": 0})(spans.text, spans.starts, spans.ends)[1][:, 0]
    assert np.isnan(found[1:-1]).all() and np.isfinite(found[[0, -1]]).all()
    encoded = same(logarithms(), "n", [b"1", *tied, b"x"])
    # The last bit is a whole number's either way.
    assert np.abs((encoded.feature_vals[1:-1, 0] - 1) * 2.0**23 - np.arange(100) - 0.5).max() == 0.5


@cache
def libfm() -> tuple[Encoder, Encoder]:
    # Not in the order of their ids, with a gap, and with room for several entries in two of them.
    ids = {"a": [10, 20], "b": [0, 8], "c": [20, 30], "d": [40, 10**9]}
    more = {"b": {"max_values": 2, "missing": "own"}, "c": {"missing": "own"}, "d": {"max_values": 3}}
    fields = [{"name": name, "kind": "libfm", "ids": some} | more.get(name, {}) for name, some in ids.items()]
    spec = {"name": "l", "format": {"kind": "libfm"}, "label": {}, "fields": fields}
    return both(resolve(FeatureSchema.model_validate(spec), Analysis({})))


VALUES = ["1", "0", "-0.0", "2.5", "1e-3", "1e39", "-1e38", "1e-39", "1e-320", "x", "", "1:1", "nan", "."]
ENTRY = st.builds(
    "{}:{}".format, st.sampled_from([*range(45), "007", "-1", "x", "", "9" * 18]), st.sampled_from(VALUES)
)


@given(
    st.lists(st.lists(ENTRY | st.sampled_from(["x", ":", "\t", "\v\f", "5"]), max_size=8).map(" ".join), min_size=1)
)
@settings(max_examples=60, deadline=None)
def test_entries_of_libfm_text_are_those_of_tensorflow(lines: list[str]) -> None:
    same(libfm(), "features", [line.encode() for line in lines])


def test_ids_of_a_space_that_has_grown_lie_in_several_ranges() -> None:
    starts, shifts = np.array([0, 2, 5], np.int64), np.array([10, 100, 1000], np.int64)
    field = RowField("ids", ("a",), (), 0, starts, shifts, size=7)
    text, edges = b"0123456", np.arange(7, dtype=np.int32)[:, None]
    ids, values, bad, _ = RowEncoder([field], {"a": 0})(text, edges, edges + np.int32(1))
    assert ids[:, 0].tolist() == [10, 11, 102, 103, 104, 1005, 1006] and (values == 1).all() and not bad.any()


def test_entries_that_meet_in_a_place_are_all_found() -> None:
    entries = [b"%d" % n for n in range(3000)]
    one = np.zeros(1, np.int64)
    encode = RowEncoder(
        [RowField("vocabulary", ("a",), (), 0, one, one, size=1, entries=TextIndex(entries))], {"a": 0}
    )
    cells = CellSpans.of({"a": [*entries, b"3000", b"00", b"-"]})
    assert cells is not None
    assert encode(cells.text, cells.starts, cells.ends)[0][:, 0].tolist() == [*range(1, 3001), 0, 0, 0]


@pytest.mark.parametrize("start, end", [(-1, 1), (2, 1), (0, 5)])
def test_a_cell_outside_its_text_is_refused(start: int, end: int) -> None:
    one = np.zeros(1, np.int64)
    encode = RowEncoder([RowField("hash", ("a",), (), 0, one, one, size=7)], {"a": 0})
    with pytest.raises(ValueError, match="cells: one is outside the text"):
        encode(b"abcd", np.array([[start]], np.int32), np.array([[end]], np.int32))
    with pytest.raises(ValueError, match="do not fit"):
        encode(b"abcd", np.zeros((1, 0), np.int32), np.zeros((1, 0), np.int32))
    with pytest.raises(ValueError, match="int64, not int32"):
        encode(b"abcd", np.array([[0]]), np.array([[1]]))


def test_fingerprints_are_those_of_tensorflow() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(size) for size in range(200) for _ in range(3)]
    expected = tf.fingerprint(tf.constant(texts, tf.string)).numpy().view("<u8")[:, 0]
    assert native.fingerprints(texts).tolist() == expected.tolist()
    assert native.fingerprints([]).tolist() == []


@given(
    st.lists(st.text(alphabet="a;;\n", max_size=40).map(str.encode), max_size=6),
    st.integers(1, 5),
    st.integers(-1, 1),
)
@settings(max_examples=100, deadline=None)
def test_lines_are_cut_as_python_does(lines: list[bytes], width: int, more: int) -> None:
    joined, rows = b"\n".join(lines), max(len(lines) + more, 0)
    found, cut = native.cut_lines(joined, b";", rows, width), [line.split(b";") for line in joined.split(b"\n")]
    assert (found is None) == (rows != len(cut))
    if found is not None:
        starts, ends, counts = found
        assert (starts.dtype, ends.dtype, counts.tolist()) == (np.int32, np.int32, list(map(len, cut)))
        for first, last, cells in zip(starts.tolist(), ends.tolist(), cut, strict=True):
            expected = cells if len(cells) == width else [b""] * width
            assert [joined[a:b] for a, b in zip(first, last, strict=True)] == expected


def test_columns_become_cells_of_one_text() -> None:
    columns = {"a": [b"x", b"", b"yy"], "b": [b"\xc3\xa9", b"\n", b""]}
    spans = CellSpans.of(columns)
    assert spans is not None and {name: spans.cells(name) for name in spans.places} == columns


def test_texts_too_long_for_places_of_31_bits_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_ctr.rawlog.spans.LARGEST_TEXT", 3)
    assert CellSpans.of({"a": [b"xx", b"y"]}) is not None and CellSpans.of({"a": [b"xx", b"yy"]}) is None
    parser, ours, stock = encoders()
    parsed = parser.parse([b'1;"a";b;1'], "f", 1)
    for one, other in zip(ours(parsed)[:3], stock(parsed)[:3], strict=True):
        assert one.tolist() == other.tolist()
    assert sorted(ours(parsed).cut[0]) == sorted(stock(parsed).cut[0])
