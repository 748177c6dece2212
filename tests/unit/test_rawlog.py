"""Lines of logs, and lines to rows."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.errors import UserError
from afm_ctr.rawlog import LineParser, LineStream, parse_log
from afm_ctr.rawlog.codecs import read_blocks, unpack
from afm_ctr.rawlog.layout import column_places, require
from afm_ctr.rawlog.lines import range_blocks
from afm_ctr.schema import FeatureSchema

HASH = {"kind": "hash", "buckets": 10}
LINES = [b"1,a,x", b"0,b,", b'1,"c,d",z', b"0,e,f"]


def schema(**changes: object) -> FeatureSchema:
    content = {
        "name": "t",
        "format": {"kind": "delimited", "columns": ["click", "site", "hour"], "header": False},
        "label": {"column": "click"},
        "fields": [
            {"name": "site", "kind": "categorical", "encoding": HASH},
            {"name": "hour", "kind": "categorical", "encoding": HASH},
        ],
    }
    return FeatureSchema.model_validate(content | changes)


def libfm() -> FeatureSchema:
    fields = [{"name": "user", "kind": "libfm", "ids": [0, 5]}, {"name": "item", "kind": "libfm", "ids": [5, 9]}]
    return FeatureSchema.model_validate({"name": "t", "format": {"kind": "libfm"}, "label": {}, "fields": fields})


def texts(values: np.ndarray) -> list[bytes]:
    return list(values)


# Lines out of bytes


@given(
    st.lists(st.binary(max_size=12).filter(lambda b: b"\n" not in b and not b.endswith(b"\r")), max_size=12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_ranges_divide_a_file_into_its_lines(
    lines: list[bytes], end: bytes, ended: bool, size: int, step: int
) -> None:
    data = end.join(lines) + (end if ended and lines else b"")
    # An empty text after the last line end is no line.
    expected = lines[:-1] if lines and not ended and not lines[-1] else lines
    found: list[bytes] = []
    for start in range(0, len(data), step):
        stream = LineStream(range_blocks(io.BytesIO(data), start, min(start + step, len(data)), size))
        found += stream.take(100)
    assert found == expected
    assert LineStream(unpack("gzip", read_blocks(io.BytesIO(gzip.compress(data)), size))).take(100) == expected


@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_skipping_is_taking_without_looking(skip: int, take: int, size: int) -> None:
    lines = [b"line %d" % i * (i % 4) for i in range(10)] + [b"last"]
    stream = LineStream(read_blocks(io.BytesIO(b"\n".join(lines)), size))
    assert stream.skip(skip) == min(skip, 11)
    assert stream.take(take) == lines[skip : skip + take]
    assert stream.skip(100) == max(11 - skip - take, 0)


# Lines to rows


def test_rows_of_delimited_lines() -> None:
    rows = LineParser(schema()).parse(LINES, "logs/day1.csv", 5)
    assert rows.labels.tolist() == [1, 0, 1, 0]
    assert texts(rows.columns["site"]) == [b"a", b"b", b"c,d", b"e"]
    assert texts(rows.columns["hour"]) == [b"x", b"", b"z", b"f"]
    assert rows.keys == [b"day1.csv#5", b"day1.csv#6", b"day1.csv#7", b"day1.csv#8"]
    assert rows.weights.tolist() == [1, 1, 1, 1]
    assert rows.groups == [None] * 4 and rows.rejects == []


def test_every_kind_of_damage_has_its_reason_and_the_rest_is_kept() -> None:
    lines = [
        b"1,a,x",
        b"",
        b"1,a",
        b"1,a,b,c",
        b"2,a,b",
        b",a,b",
        b"0,\xff,b",
        b'0,"a,b',
        b'0,"a"b,c',
        b"0,a\0,\xc3\xa9",
    ]
    rows = LineParser(schema()).parse(lines, "d.csv", 1)
    assert [(reject.line, reject.reason) for reject in rows.rejects] == [
        (2, "empty_line"),
        (3, "column_count"),
        (4, "column_count"),
        (5, "bad_label"),
        (6, "bad_label"),
        (7, "bad_utf8"),
        (8, "bad_quoting"),
        (9, "bad_quoting"),
    ]
    assert rows.line_numbers.tolist() == [1, 10]
    assert texts(rows.columns["site"]) == [b"a", b"a\0"]
    assert rows.lines == [lines[0], lines[9]]
    assert rows.rejects[1].detail == "2 columns, 3 expected"
    assert rows.rejects[5].to_json() == {
        "key": "d.csv#7",
        "source": "d.csv",
        "line": 7,
        "reason": "bad_utf8",
        "detail": "",
        "raw_base64": "MCz/LGI=",
    }
    assert json.loads(rows.rejects[3].to_line())["raw"] == "2,a,b"


def test_quotes_are_text_when_the_format_has_none() -> None:
    columns = {"kind": "delimited", "columns": ["click", "site", "hour"], "header": False, "quote": False}
    rows = LineParser(schema(format=columns)).parse([b'1,"a,b'], "d", 1)
    assert texts(rows.columns["site"]) == [b'"a']


def test_a_header_names_the_columns_in_any_order() -> None:
    columns = [{"name": "site", "header": "Site name"}, "click"]
    spec = schema(format={"kind": "delimited", "delimiter": "\t", "columns": columns})
    parser = LineParser(spec, b'hour\t"Site name"\t#\tclick')
    rows = parser.parse([b"7\ts\t?\t1"], "d", 2)
    assert (texts(rows.columns["site"]), texts(rows.columns["hour"])) == ([b"s"], [b"7"])
    with pytest.raises(UserError, match=r"logs/x.tsv: no column 'hour'; columns there: click, site, '.'$"):
        LineParser(spec, b"click\tSite name\t$", source="logs/x.tsv")
    with pytest.raises(UserError, match="names column 'hour' twice"):
        LineParser(spec, b"hour\thour\tSite name\tclick")
    assert (
        len(LineParser(spec, b"hour\tx\tx\tSite name\tclick").parse([b"7\t\t\ts\t1"], "d", 2)) == 1
    )  # nobody reads x
    with pytest.raises(UserError, match="no header line"):
        LineParser(spec, None)


def test_binary_and_real_labels() -> None:
    def labels(label: dict[str, object], cells: list[bytes]) -> tuple[list[float], int]:
        spec = schema(label={"column": "click", **label})
        rows = LineParser(spec).parse([cell + b",a,b" for cell in cells], "d", 1)
        return rows.labels.tolist(), len(rows.rejects)

    assert labels({"positive": ["Yes"], "negative": ["No"]}, [b"Yes", b"No", b"yes"]) == ([1, 0], 1)
    assert labels({"positive": ["5", "4"], "negative": "*"}, [b"5", b"4", b"3", b""]) == ([1, 1, 0, 0], 0)
    good = [b"2.5", b" -1e2 ", b".5", b"3."]
    assert labels({"kind": "real"}, good) == ([2.5, -100.0, 0.5, 3.0], 0)
    assert labels({"kind": "real"}, [b"nan", b"inf", b"1_0", b"", b"1e999", b"0x1"]) == ([], 6)


def test_key_group_and_weight_columns() -> None:
    columns = ["click", "site", "hour", "user", "w", "id"]
    spec = schema(
        format={"kind": "delimited", "columns": columns, "header": False},
        key="id",
        group="user",
        weight="w",
        negative_sampling={"rate": 0.25, "correct": "weights"},
    )
    lines = [b"1,a,b,u1,2,r1", b"0,a,b,,0.5,r2", b"0,a,b,u1,-1,r3", b"9,a,b,u1,1,r4", b"1,a,r5"]
    rows = LineParser(spec).parse(lines, "d.csv", 1)
    assert rows.keys == [b"r1", b"r2"]
    assert rows.groups == [b"u1", None]
    assert rows.weights.tolist() == [2.0, 2.0]  # a negative stands for four
    assert [(reject.reason, reject.key) for reject in rows.rejects] == [
        ("bad_weight", b"r3"),
        ("bad_label", b"r4"),
        ("column_count", b"d.csv#5"),
    ]


def test_a_weight_that_its_correction_makes_too_large_is_bad() -> None:
    columns = {"kind": "delimited", "columns": ["click", "site", "hour", "w"], "header": False}
    spec = schema(format=columns, weight="w", negative_sampling={"rate": 1e-9, "correct": "weights"})
    rows = LineParser(spec).parse([b"0,a,b,1e30", b"1,a,b,1e30", b"0,a,b,2"], "d.csv", 1)
    assert rows.weights.tolist() == np.array([1e30, 2e9], np.float32).tolist()
    assert [(reject.line, reject.reason) for reject in rows.rejects] == [(1, "bad_weight")]


def test_a_quoted_cell_may_be_long() -> None:
    rows = LineParser(schema()).parse([b'1,"' + b"x" * 200_000 + b'",h'], "d.csv", 1)
    assert not rows.rejects and len(rows.columns["site"][0]) == 200_000


def test_an_unlabelled_log_may_leave_the_label_out() -> None:
    with_label, without = [b"1,a,b", b"0,c"], [b"a,b", b"1,c,d"]
    rows = LineParser(schema(), labelled=False).parse(with_label, "d", 1)
    assert texts(rows.columns["site"]) == [b"a"] and np.isnan(rows.labels).all()
    rows = LineParser(schema(), labelled=False).parse(without, "d", 1)
    assert texts(rows.columns["site"]) == [b"a"] and len(rows.rejects) == 1
    # The file's first line decides for all of it.
    rows = LineParser(schema(), labelled=False, first_line=b"a,b").parse(with_label, "d", 9)
    assert texts(rows.columns["site"]) == [b"0"] and rows.rejects[0].line == 9
    with pytest.raises(UserError, match="no column 'click'"):
        LineParser(schema(format={"kind": "delimited"}), b"site,hour")
    LineParser(schema(format={"kind": "delimited"}), b"site,hour", labelled=False)


def test_further_columns_can_be_asked_for() -> None:
    rows = LineParser(schema(), extra=["click", "site"]).parse([b"1,a,b"], "d", 1)
    assert {name: texts(cells) for name, cells in rows.extra.items()} == {"click": [b"1"], "site": [b"a"]}
    with pytest.raises(UserError, match="no column 'day'; columns there: click, site, hour"):
        LineParser(schema(), extra=["day"])


def test_libfm_lines() -> None:
    lines = [b"1 2:1 7:0.5 # a comment", b"-1", b"  # nothing", b"", b"2:1 7:1", b"3 2:1"]
    rows = LineParser(libfm()).parse(lines, "d", 1)
    assert texts(rows.columns["features"]) == [b"2:1 7:0.5", b""]
    assert rows.labels.tolist() == [1, 0]
    assert [reject.reason for reject in rows.rejects] == ["empty_line", "empty_line", "bad_label", "bad_label"]
    rows = LineParser(libfm(), labelled=False).parse(lines, "d", 1)
    assert texts(rows.columns["features"]) == [b"2:1 7:0.5", b"", b"2:1 7:1", b"2:1"]


def test_a_whole_log_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    spec = schema(format={"kind": "delimited"})
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfclick,site,hour\n1,a,b\n0,c,d\n1,e,f")[:-2])
    batches = list(parse_log(str(path), spec, batch_rows=1))
    assert [batch.line_numbers.tolist() for batch in batches] == [[2], [3], []]
    (last,) = batches[-1].rejects
    assert (last.line, last.reason, last.raw, last.key) == (4, "truncated_input", b"1,e,f", b"log.csv.gz#4")


def test_a_column_that_is_not_there_is_looked_for_among_all_texts_of_the_header():
    layout = {"kind": "delimited", "header": True}
    for header, said in (
        (b"click, user,1st", "no column 'user'; columns there: click, ' user', '1st'; `trim: true` in the format"),
        (b"version https://x", "columns there: 'version https://x'$"),
    ):
        places, _ = column_places(schema(format=layout), header, "a.csv")
        with pytest.raises(UserError, match=said):
            require(places, ["user"], "a.csv")


def test_trim_drops_blanks_around_cells_and_header_texts():
    spec = schema(format={"kind": "delimited", "trim": True})
    parser = LineParser(spec, b'click , "site", hour')
    lines = [b'1, "a, ""b""", 7', b"0 , c ,8", b'1," d ", 9', b"0,e"]
    rows = parser.parse(lines, "d.csv", 2)
    assert rows.columns["site"].tolist() == [b'a, "b"', b"c", b"d"] and rows.labels.tolist() == [1, 0, 1]
    assert [reject.reason for reject in rows.rejects] == ["column_count"]
    left = parser.parse(lines[1:2], "d.csv", 2, leave_columns=True)
    assert left.spans is None  # nothing but this parser trims
    with pytest.raises(ValueError, match="strips blanks, and the delimiter is one"):
        schema(format={"kind": "delimited", "delimiter": " ", "trim": True})
