"""Cells as stretches of a text and lines cut by Python give the same ids, in C++ and by TensorFlow."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afm_ctr import native
from afm_ctr.native.plain import PREPARING
from afm_ctr.rawlog import LineParser
from afm_ctr.schema import Analysis, FeatureSchema, resolve
from beam_jobs.encode import Encoder

HASH = {"kind": "hash", "buckets": 10**9}
COLUMNS = ["z", "label", "a", "unused", "n"]
SCHEMA = FeatureSchema.model_validate(
    {
        "name": "t",
        "format": {"kind": "delimited", "delimiter": ";", "header": True},
        "label": {"column": "label", "negative": "*"},
        "missing_values": ["-1", " "],
        "fields": [
            {"name": "a", "kind": "categorical", "encoding": HASH},
            {"name": "z", "kind": "categorical", "encoding": HASH, "missing_values": ["é", "", "1"]},
            {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}},
            {"name": "b", "column": "n", "kind": "numeric", "encoding": {"kind": "buckets", "log_square": True}},
            {"name": "x", "kind": "cross", "columns": ["a", "n", "z"], "encoding": {"kind": "hash", "buckets": 97}},
            {"name": "m", "column": "z", "kind": "categorical", "encoding": HASH, "separator": " ", "max_values": 2},
            {"name": "v", "column": "a", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
            {"name": "xv", "kind": "cross", "columns": ["z", "n"], "encoding": {"kind": "vocabulary"}},
            {"name": "i", "column": "a", "kind": "categorical", "encoding": {"kind": "ids", "size": 3}},
        ],
    }
)
CELL = st.text(alphabet=' \t,"#\0aé1.-', max_size=6).map(str.encode)
NUMBER = st.one_of(
    st.floats().map(str),
    st.integers(-(10**25), 10**25).map(str),
    st.text(alphabet="0123456789.eE+- \t\0naifx_", max_size=30),
    st.from_regex(r"[ \t]?[+-]?[0-9]{0,25}\.?[0-9]{0,25}([eE][+-]?[0-9]{1,3})? ?", fullmatch=True),
).map(str.encode)
NUMBERS = [
    *("0", "-0", "+7", "007", "5.", ".5", ".", "-", "", " ", "1e5", "1E-7", "1e", "1e+", "nan", "inf", "0x10", "1_0"),
    *("9007199254740993", "123456789012345678901234567890", "1e22", "1e23", "1e308", "1e309", "-1e400", "1e-400"),
    *("4.9e-324", "2.4e-324", "1e99999999999", "0e99999999999", "1e-99999999999", "2.2250738585072011e-308"),
    *("\v1\f", "1\0", "٣", "1,5", "0.1", "179769313486231580793728971405301199e273"),
]


@cache
def encoder(form: str) -> Encoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREPARING, form)
        return Encoder(resolve(SCHEMA, Analysis({"v": {b"1": 2, b"a": 3}, "xv": {b"1\x1f1": 1, b"a\x1f-": 1}})))


FORMS = ["python", *(["native"] if native.prepares() else [])]


@given(
    st.lists(st.tuples(*[CELL] * 4, st.one_of(CELL, NUMBER)), min_size=1, max_size=8),
    st.sampled_from([COLUMNS, ["z", "n", "label", "unused", "a"]]),  # each is a graph of its own
    st.booleans(),
)
@example([(b"1", b"1", b"2", b"", number.encode()) for number in NUMBERS], COLUMNS, False)
@settings(max_examples=60, deadline=None)
def test_plain_lines_give_what_python_cuts(rows: list[list[bytes]], order: list[str], quote: bool) -> None:
    spec = SCHEMA.model_copy(update={"format": SCHEMA.format.model_copy(update={"quote": quote})})
    parser = LineParser(spec, ";".join(order).encode())
    lines = [b";".join(row) for row in rows] + [b"1;2;3", b"", b"1;2;3;4;5;6"]
    plain = parser.parse(lines, "f", 2, leave_columns=True)
    whole = parser.parse(lines, "f", 2)
    joined = b"".join(lines)
    assert (plain.spans is not None) == (native.prepares() and not (quote and b'"' in joined) and b"\r" not in joined)
    assert plain.rejects == whole.rejects and plain.lines == whole.lines and plain.keys == whole.keys
    assert plain.labels.tolist() == whole.labels.tolist()
    if not len(whole):
        return
    every = np.arange(len(whole))[::-1]
    for name, cells in parser.columns_of(plain, every).items():
        assert cells.tolist() == whole.columns[name][::-1].tolist()
    expected = encoder("python")(whole)
    for form in FORMS:
        found = encoder(form)(plain)
        for one, other in zip(found, expected, strict=True):
            assert one.tobytes() == other.tobytes() and one.shape == other.shape
        reverse = encoder(form)(plain.take(every))
        assert reverse.feature_ids.tolist() == expected.feature_ids[::-1].tolist()


def test_columns_of_spans_are_those_of_python() -> None:
    parser = LineParser(SCHEMA, ";".join(COLUMNS).encode())
    lines = [b"a;1;b;;1", b"1;2", b"c;0;d;e;"]
    plain, whole = parser.parse(lines, "f", 2, leave_columns=True), parser.parse(lines, "f", 2)
    for rows in ([1, 0], [1], []):
        some = np.array(rows, np.int64)
        assert {name: cells.tolist() for name, cells in parser.columns_of(plain, some).items()} == {
            name: cells.tolist() for name, cells in parser.columns_of(whole, some).items()
        }
    assert parser.cells_of(plain, 1) == {"a": b"d", "z": b"c", "n": b""}
    [reject] = plain.rejects
    assert (reject.reason, reject.detail, reject.line) == ("column_count", "2 columns, 5 expected", 3)


def test_lines_that_hold_line_ends_are_cut_by_python() -> None:
    rows = LineParser(SCHEMA, ";".join(COLUMNS).encode()).parse([b"a;1;\nb;;1"], "f", 2, leave_columns=True)
    assert rows.spans is None and rows.columns["a"].tolist() == [b"\nb"]
