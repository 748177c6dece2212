"""JSON Lines scanned in C++: whatever a batch holds, the rows are those that Python reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_json_arrow import GOOD, KINDS, ODD, SPEC

from afm_ctr import native
from afm_ctr.native.cells import PREPARING
from afm_ctr.rawlog import LineParser, ParsedLines, jsonl
from afm_ctr.rawlog.json_arrow import ArrowJson

pytestmark = pytest.mark.skipif(not native.prepares(), reason="the ops in C++ are not built")
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
        patch.setattr(ArrowJson, "wants", lambda self, lines: False)
        patch.setattr(jsonl, "_MOST_OTHER", 1.0)
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


def test_lines_that_are_mostly_odd_and_columns_with_a_dot_are_left_to_others() -> None:
    odd = LineParser(SPEC).parse([b'{"click":1,"x":"\\n"}'] * 5 + [GOOD[0].encode()], "d", 1, leave_columns=True)
    assert odd.spans is None and odd.columns["x"].tolist() == [b"\n"] * 5 + [b"a"]
    layout = {"kind": "jsonl", "columns": [{"name": "y", "header": "a.y"}]}
    dotted = SPEC.model_copy(update={"format": SPEC.format.model_validate(layout)})
    assert LineParser(dotted).parse([b'{"click":1,"a":{"y":"b"}}'], "d", 1, leave_columns=True).spans is None


def test_the_other_form_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREPARING, "python")
    assert LineParser(SPEC).parse([line.encode() for line in GOOD], "d", 1, leave_columns=True).spans is None
