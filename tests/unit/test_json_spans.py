"""JSON Lines scanned in C++: whatever a batch holds, the rows are those that Python reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afm_ctr import native
from afm_ctr.native.plain import PREPARING
from afm_ctr.rawlog import LineParser, ParsedLines, jsonl
from afm_ctr.schema import FeatureSchema

pytestmark = pytest.mark.skipif(not native.prepares(), reason="the ops in C++ are not built")
HASH = {"kind": "hash", "buckets": 10}
SPEC = FeatureSchema.model_validate(
    {
        "name": "t",
        "format": {"kind": "jsonl", "columns": [{"name": "y", "header": "the y"}]},
        "label": {"column": "click", "negative": "*"},
        "key": "k",
        "fields": [
            {"name": "x", "kind": "categorical", "encoding": HASH, "separator": "|", "max_values": 3},
            {"name": "y", "kind": "categorical", "encoding": HASH},
            {"name": "z", "kind": "categorical", "encoding": HASH},
        ],
    }
)
GOOD: list[str] = [json.dumps({"click": 1, "k": f"k{i}", "x": "a", "the y": i, "z": i / 8}) for i in range(80)]
KINDS: dict[str, list[str]] = {
    "text": ['"a"', '"é\\u00e9\\ud83d\\ude00"', '"a|b"', '""', '"\\u0000\\n"', "null", '"\\u001f"'],
    "whole": ["0", "-0", "7", "-12", "9007199254740993", "null"],
    "float": [
        "0.5",
        "1.10",
        "3",
        "3.0",
        "-0.0",
        "1e5",
        "1E-7",
        "NaN",
        "-Infinity",
        "1e308",
        "123456789012.25",
        "null",
    ],
    "bool": ["true", "false", "null"],
    "list": ['["a","b"]', "[]", "null", '["c"]', '["a|b"]', '[null,"d"]'],
    "wholes": ["[1,2]", "[-0]", "[]"],
    "null": ["null"],
}
ODD = [
    '{"x":"\udcff"}',  # a byte that is not UTF-8
    *("{", "[1]", "", "{}", "x", '{"x":"a"} {"x":"b"}', '{"x":{}', '{"x":"\\ud800"}', '{"x":"tab\t"}', '{"w":Inf}'),
    *('{"x":1,"x":"b"}', '{"click":1,"w":1,"w":2}', ' {"click":1,"x":"c"}\t', '{"click":1,"w":[NaN,{"a":"}"}]}'),
    *(
        '{"click":1,"w":-NaN}',
        '{"click":1,"w":01}',
        '{"click":1,"the y":123456789012345678901234567890}',
        '{"x":[[1]]}',
    ),
    *(
        '{"click":2,"x":"}\\n{"}',
        '{"x":"a",}',
        '{"x":1e400}',
        '{"w":' + "[" * 2000 + "]" * 2000 + "}",
        '{"x":{"y":1}}',
    ),
]
FLOATS = [
    "0.0",
    "-0.5",
    "0.0001",
    "0.00001",
    "123456789012.123",
    "1234567890123456.5",
    "0.50",
    "2.0",
    "-2.0",
    "100.00",
]
MORE = [
    *(
        f'{{"click":1,"the y":{number}}}'
        for number in [*FLOATS, "-0", "00", "1.", ".5", "+1", "1e5", "0x1", "-", "1_0"]
    ),
    *('{"click":1,"unread":"\\u12G4"}', '{"click":1,"unread":"\\x"}', '{"click":1,"unread":"\\/\\uD800"}', '{"a"}'),
    *('{"click":1,"x":"a","x":null}', '{"click":1,"\\u0078":"b","x":"a"}', '{"click":1,"x":"a","\\u0078":"b"}'),
    *('{"click":1,"unread":[1,]}', '{"click":1,"unread":{"a":[{"b":null}]}}', '{"click":1,"unread":nul}', "{,}"),
    *('{"click" : 1 , "x"\t:\r"é" }', '{"click":1}}', '{"click":1,"x":tru', '{"click":1,"x":"a', "\v{}", '{"x":"a"'),
    *("\ufeff{}", '{"click":1,"x":true,"z":false,"k":"\x7f"}', '{"click":1,"unread":' + "[" * 70 + "]" * 70 + "}"),
]


def parsed(lines: list[str], spans: bool) -> ParsedLines:
    parser = LineParser(SPEC)
    raw = [line.encode("utf-8", "surrogateescape") for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREPARING, "native" if spans else "python")
        rows = parser.parse(raw, "d", 1, leave_columns=spans)
        if rows.spans is not None:
            rows.columns = parser.columns_of(rows, np.arange(len(rows)))
    assert (rows.spans is not None) == spans
    return rows


def content(rows: ParsedLines) -> tuple[Any, ...]:
    columns = {name: cells.tolist() for name, cells in rows.columns.items()}
    return columns, rows.keys, rows.labels.tolist(), rows.lines, rows.line_numbers.tolist(), rows.rejects


VALUE = st.one_of(
    st.sampled_from([value for values in KINDS.values() for value in values]),
    st.from_regex(r"-?[0-9]{1,17}(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.floats().map(json.dumps),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), st.lists, max_leaves=4).map(
        json.dumps
    ),
)
LINE = st.lists(st.tuples(st.sampled_from(["x", "the y", "z", "k", "w", "click"]), VALUE), max_size=7).map(
    lambda pairs: "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"
)


@given(st.lists(st.one_of(LINE, st.sampled_from(ODD + MORE)), min_size=1, max_size=8))
@example([line for odd in ODD + MORE for line in (odd, GOOD[0])])
@example(["{", '"x":1}'])
@settings(max_examples=150, deadline=None)
def test_the_rows_are_those_of_python(lines: list[str]) -> None:
    lines = [line for line in lines if "\n" not in line]
    assert content(parsed(lines or GOOD[:1], True)) == content(parsed(lines or GOOD[:1], False))


@given(st.text(alphabet='{}[]":,\\ 01.-eEntrufalsx\t', max_size=30), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_damaged_lines_are_those_of_python(noise: str, start: int, size: int) -> None:
    line = '{"click":1,"x":"a","unread":[{"b":-1.5e3},"\\u00e9",null],"z":0.25,"k":"k1"}'
    lines = [GOOD[0], line[:start] + noise + line[start + size :], GOOD[1]]
    assert content(parsed(lines, True)) == content(parsed(lines, False))


def test_plain_lines_are_scanned_and_need_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(jsonl.JsonCutter, "cut", cut)
    lines = [line.encode() for line in GOOD]
    rows = LineParser(SPEC).parse(lines, "d", 1, leave_columns=True)
    assert rows.spans is not None and rows.spans.cells("y")[:2] == [b"0", b"1"] and len(rows) == len(GOOD)
    assert rows.spans.cells("z")[:3] == [b"0.0", b"0.125", b"0.25"]


@pytest.mark.parametrize(
    "value",
    [
        *(
            '"a\\"b\\\\\\/\\b\\f\\n\\r\\t"',
            '"\\u00e9\\ud83d\\ude00\\u0000\\uFFFF"',
            "NaN",
            "Infinity",
            "-Infinity",
            "1e5",
            "1E-7",
        ),
        *(
            "1.10",
            "-0.0",
            "0.00001",
            "1e16",
            "1e15",
            "123456789012345678.0",
            "0.00",
            "1e-299",
            "1.7976931348623157e308",
            "[]",
        ),
        *('["a", "\\u00e9", 1, -0, 2.50, true, null, NaN, ""]', "[null]", '[ "a" ]', '["a","b"]'),
    ],
)
def test_these_need_no_python(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'{{"click": 1, "x": {value}}}', GOOD[0]]
    wanted = content(parsed(lines, False))

    def cut(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(jsonl.JsonCutter, "cut", cut)
    assert content(parsed(lines, True)) == wanted


@pytest.mark.parametrize(
    "value",
    ['["a,b"]', '["a|b"]', '"\\ud800"', '"\\ude00\\ud83d"', "1e400", "5e-324", "1e-310", "[[1]]", "[{}]", "{}"],
)
def test_these_are_left_to_python(value: str) -> None:
    raw = f'{{"click": 1, "x": {value}}}'.encode()
    plain = native.scan_json(raw, 1, {"x": (b",", b"|"), "click": (b",",)})[3]
    assert not plain[0]
    lines = [raw.decode(), GOOD[0]]
    assert content(parsed(lines, True)) == content(parsed(lines, False))


def test_a_list_where_a_column_holds_one_value_is_left_to_python() -> None:
    assert not native.scan_json(b'{"x": ["a"]}', 1, {"x": ()})[3][0]


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1e22)
@example(9007199254740993.0)
@example(2.0**-1074)
def test_floats_are_those_of_python(number: float) -> None:
    # Seventeen digits, and so not always the shortest text.
    text, starts, ends, plain = native.scan_json(b'{"x": %.17e}' % number, 1, {"x": ()})
    if 0 < abs(number) < 1e-300:
        assert not plain[0]
        return
    assert plain[0] and text[starts[0, 0] : ends[0, 0]] == repr(number).encode()


@given(st.permutations(["click", "k", "x", "the y", "z", "w", "v"]), st.lists(st.integers(0, 6), max_size=12))
@settings(max_examples=50, deadline=None)
def test_keys_in_any_order_and_left_out(order: list[str], out: list[int]) -> None:
    lines = [GOOD[0]]
    for number, place in enumerate(out):
        some = order[place:] + order[: place // 2]
        lines.append("{" + ", ".join(f'"{key}": {number}{at}' for at, key in enumerate(some)) + "}")
    assert content(parsed(lines, True)) == content(parsed(lines, False))


def test_many_keys_that_nobody_asks_for() -> None:
    lines = ["{" + "".join(f'"{at * n}": 1, ' for at in range(400)) + f'"x": {n}, "click": 1' + "}" for n in range(4)]
    assert content(parsed(lines, True)) == content(parsed(lines, False))


def test_columns_with_a_dot_are_left_to_python() -> None:
    layout = {"kind": "jsonl", "columns": [{"name": "y", "header": "a.y"}]}
    dotted = SPEC.model_copy(update={"format": SPEC.format.model_validate(layout)})
    assert LineParser(dotted).parse([b'{"click":1,"a":{"y":"b"}}'], "d", 1, leave_columns=True).spans is None


def test_cells_that_are_wanted_as_texts_are_scanned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(jsonl.JsonCutter, "cut", cut)
    rows = LineParser(SPEC).parse([line.encode() for line in GOOD], "d", 1)
    assert rows.spans is None and rows.columns["y"][:2].tolist() == [b"0", b"1"]


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ('{"click":1,"w":', '{"w":1}}', '{"click":1}{"click":1}'),
        ('{"click":1,"w":{}', '{"w":1}}', '{"click":1}{"click":1}'),
        ('{"click":1,"w":"}', '{"}', '{"click":1}{"click":1}'),
        ("{}{}", "", '{"click":1}'),
    ],
)
def test_lines_that_only_together_are_objects(first: str, second: str, third: str) -> None:
    lines = [*GOOD, first, second, third]
    assert content(parsed(lines, True)) == content(parsed(lines, False))


def test_the_other_form_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREPARING, "python")
    assert LineParser(SPEC).parse([line.encode() for line in GOOD], "d", 1, leave_columns=True).spans is None
