"""JSON Lines by Arrow: whatever a batch holds, the rows are those that Python reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afm_ctr.rawlog import LineParser, ParsedLines, jsonl
from afm_ctr.rawlog.json_arrow import LEARN_FROM, ArrowJson
from afm_ctr.schema import FeatureSchema

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


def parsed(lines: list[str], arrow: bool, monkeypatch: pytest.MonkeyPatch) -> ParsedLines:
    """The lines behind enough good ones to learn from, in two batches of one parser."""
    monkeypatch.setattr(ArrowJson, "wants", ArrowJson.wants if arrow else lambda self, lines: False)
    monkeypatch.setattr("afm_ctr.rawlog.json_arrow._FEWEST", 1)
    parser = LineParser(SPEC)
    parser.parse([line.encode("utf-8", "surrogateescape") for line in lines[: len(lines) // 2]], "d", 1)
    return parser.parse([line.encode("utf-8", "surrogateescape") for line in lines], "d", 1)


def content(rows: ParsedLines) -> tuple[Any, ...]:
    columns = {name: cells.tolist() for name, cells in rows.columns.items()}
    return columns, rows.keys, rows.labels.tolist(), rows.lines, rows.line_numbers.tolist(), rows.rejects


LINE = st.fixed_dictionaries({name: st.sampled_from(sorted(KINDS)) for name in ("x", "the y", "z")})


@given(LINE, st.lists(st.tuples(*[st.integers(0, 99)] * 3), min_size=1, max_size=12), st.lists(st.sampled_from(ODD)))
@example({"x": "float", "the y": "float", "z": "float"}, [(2, 3, 0), (0, 0, 1)], [])
@settings(max_examples=150, deadline=None)
def test_the_rows_are_those_of_python(kinds: dict[str, str], picks: list[Any], odd: list[str]) -> None:
    lines = []
    for number, places in enumerate(picks):
        cells = [
            f'"{name}": {KINDS[kind][at % len(KINDS[kind])]}'
            for (name, kind), at in zip(kinds.items(), places, strict=True)
        ]
        lines.append(f'{{"click": {number % 2}, {", ".join(cells)}, "k": "{number}", "unread": [{{}}]}}')
    for number, line in enumerate(odd):
        lines.insert(number * 3 % len(lines), line)
    with pytest.MonkeyPatch.context() as patch:
        assert content(parsed(lines, True, patch)) == content(parsed(lines, False, patch))


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_line_among_good_ones(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*GOOD[:10], odd, *GOOD[10:], odd, *GOOD]
    fast = content(parsed(lines, True, monkeypatch))
    monkeypatch.undo()
    assert fast == content(parsed(lines, False, monkeypatch))


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ('{"click":1,"w":', '{"w":1}}', '{"click":1}{"click":1}'),
        ('{"click":1,"w":{}', '{"w":1}}', '{"click":1}{"click":1}'),
        ('{"click":1,"w":"}', '{"}', '{"click":1}{"click":1}'),
        ("{}{}", "", '{"click":1}'),
    ],
)
def test_lines_that_only_together_are_objects(
    first: str, second: str, third: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [*GOOD, first, second, third]
    fast = content(parsed(lines, True, monkeypatch))
    monkeypatch.undo()
    assert fast == content(parsed(lines, False, monkeypatch))


def test_arrow_does_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would compare Python with itself."""
    real = jsonl._all_objects

    def few(lines: Sequence[bytes]) -> Any:
        assert len(lines) <= LEARN_FROM
        return real(lines)

    monkeypatch.setattr(jsonl, "_all_objects", few)
    lines = [line.encode() for line in GOOD if json.loads(line)["z"] % 1] * 8
    rows = LineParser(SPEC).parse(lines, "d", 1)
    assert rows.columns["y"][:2].tolist() == [b"1", b"2"] and rows.columns["z"][0] == b"0.125" and not rows.rejects
