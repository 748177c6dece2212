"""JSON Lines and Parquet: what a value's cell is, and that every format gives the same rows."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.errors import UserError
from afm_ctr.rawlog import LineParser, ParsedLines, offers, parse_log
from afm_ctr.rawlog.arrow_texts import plain_table
from afm_ctr.schema import FeatureSchema

HASH = {"kind": "hash", "buckets": 10}
UTC = dt.UTC


def schema(kind: str, *names: str, **changes: Any) -> FeatureSchema:
    """Columns of hashed words, and a label."""
    fields = [{"name": name, "kind": "categorical", "encoding": HASH} for name in names]
    layout = {"kind": kind, **changes.pop("format", {})}
    content = {"name": "t", "format": layout, "label": {"column": "click", "negative": "*"}, "fields": fields}
    return FeatureSchema.model_validate(content | changes)


def reasons(rows: ParsedLines) -> list[tuple[int, str, str]]:
    return [(reject.line, reject.reason, reject.detail) for reject in rows.rejects]


def json_cells(*objects: str, **changes: Any) -> list[bytes]:
    """The cells of column x of JSON texts that are all good."""
    rows = LineParser(schema("jsonl", "x", **changes)).parse([text.encode() for text in objects], "d", 1)
    assert reasons(rows) == []
    return list(rows.columns["x"])


def parquet_cells(values: Any, tmp_path: Path) -> list[bytes]:
    """The cells of a Parquet column."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": values}), path)
    return [
        cell for rows in parse_log(str(path), schema("parquet", "x"), labelled=False) for cell in rows.columns["x"]
    ]


# JSON Lines


def test_a_json_value_has_the_text_of_what_it_is_read_as() -> None:
    numbers = ["9007199254740993", "-0", "1.10", "1e5", "1E400", "-Infinity", "-0.0", "1" * 5000]
    assert json_cells(*(f'{{"x":{number}}}' for number in numbers)) == [
        b"9007199254740993",
        b"0",
        b"1.1",
        b"100000.0",
        b"inf",
        b"-inf",
        b"-0.0",
        b"1" * 5000,
    ]
    assert json_cells('{"x":[-0,1.10,NaN,"-0"]}', '{"x":"-0"}') == [b"0|1.1||-0", b"-0"]
    assert json_cells('{"x":"é\\u0000\\"|"}', '{"x":null}', "{}", '{"x":""}') == ['é\0"|'.encode(), b"", b"", b""]
    assert json_cells('{"x":true}', '{"x":false}', '{"x":NaN}', ' {"x" : 7}\t') == [b"true", b"false", b"", b"7"]
    assert json_cells('{"x":["a",1.50,null,true]}', '{"x":[]}', '{"x":"a|b"}') == [b"a|1.5||true", b"", b"a|b"]
    assert json_cells('{"x":["a","b"]}', format={"list_separator": ", "}) == [b"a, b"]
    assert json_cells('{"x":1,"x":2}', '{"x":"tab\tand \0"}') == [b"2", b"tab\tand \0"]


TAGS = {
    "label": {"column": "click"},
    "fields": [{"name": "x", "kind": "categorical", "separator": ",", "max_values": 3, "encoding": HASH}],
}
LISTS: list[Any] = [
    ["a", "b"],
    ["a|b", "c"],
    ["c", "a,b"],
    ["a|b"],
    [],
    None,
    ["", "a"],
    ["|"],
    [None, "d"],
]
HELD = [(2, "'a|b'"), (3, "'a,b'"), (4, "'a|b'"), (8, "'|'")]


@pytest.mark.parametrize("kind", ["jsonl", "list", "large_list", "dictionary", "fixed"])
def test_a_list_with_a_separator_inside_an_element_is_rejected(kind: str, tmp_path: Path) -> None:
    """It would come apart inside the element: by the separator of lists, or by that of the field."""
    spec = schema("jsonl" if kind == "jsonl" else "parquet", "x", **TAGS)
    if kind == "jsonl":
        lines = [json.dumps({"click": 1, "x": value}).encode() for value in LISTS]
        rows = LineParser(spec).parse(lines, "d.jsonl", 1)
    else:
        text = pa.dictionary(pa.int32(), pa.string()) if kind == "dictionary" else pa.string()
        lists, values = pa.list_(text), LISTS
        if kind == "large_list":
            lists = pa.large_list(text)
        elif kind == "fixed":
            lists, values = pa.list_(text, 2), [([*(value or []), "", ""])[:2] for value in LISTS]
        path = tmp_path / "d.parquet"
        pq.write_table(pa.table({"click": [1] * len(LISTS), "x": pa.array(values, lists)}), path)
        (rows,) = parse_log(str(path), spec)
    assert [(line, reason) for line, reason, _ in reasons(rows)] == [(line, "bad_list") for line, _ in HELD]
    for (_, _, detail), (_, element) in zip(reasons(rows), HELD, strict=True):
        assert detail == f"column 'x': the list's element {element} holds the separator of lists"
    assert [cell.strip(b"|") for cell in rows.columns["x"]] == [b"a|b", b"", b"", b"a", b"d"]


def test_a_text_with_separators_is_no_list(tmp_path: Path) -> None:
    assert json_cells('{"x":"a|b,c"}') == [b"a|b,c"]
    assert parquet_cells(["a|b,c"], tmp_path) == [b"a|b,c"]


def test_a_dotted_key_reaches_into_objects() -> None:
    columns = {"columns": [{"name": "x", "header": "user.id"}]}
    texts = ['{"user":{"id":7}}', '{"user.id":8,"user":{"id":7}}', '{"user":3}', '{"user":null}', "{}"]
    assert json_cells(*texts, format=columns) == [b"7", b"8", b"", b"", b""]


def test_broken_json_has_its_reason_and_the_rest_is_kept() -> None:
    lines = [
        b'{"click":1,"x":"a"}',
        b'{"click":1,"x":"a"',
        b'["click"]',
        b'{"click":1} {"click":0}',
        b'{"click":1,"x":{"y":1}}',
        b'{"click":1,"x":[[1]]}',
        b'{"click":1,"x":"\\ud800"}',
        b"[" * 100_000,
        b"",
        b'{"x":"\xff"}',
        b'{"click":0}',
    ]
    rows = LineParser(schema("jsonl", "x", label={"column": "click"})).parse(lines, "d.jsonl", 1)
    assert [(line, reason) for line, reason, _ in reasons(rows)] == [
        *[(line, "bad_json") for line in range(2, 9)],
        (9, "empty_line"),
        (10, "bad_utf8"),
    ]
    details = [detail for _, _, detail in reasons(rows)]
    assert details[1:4] == [
        "no object but '[\"click\"]'",
        "something follows the value: ' {\"click\":0}'",
        "column 'x': an object; name what is in it: `header: a.b`",
    ]
    assert rows.rejects[0].raw == lines[1] and rows.rejects[0].key == b"d.jsonl#2"
    assert (rows.labels.tolist(), list(rows.columns["x"])) == ([1, 0], [b"a", b""])


PARSER = LineParser(schema("jsonl", "x"), labelled=False)


@given(st.lists(st.one_of(st.none(), st.text(max_size=5), st.integers(), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_cells_do_not_depend_on_the_rows_beside_them(values: list[Any]) -> None:
    lines = [json.dumps({"x": value}).encode() for value in values]
    alone = [PARSER.parse([line], "d", 1).columns["x"][0] for line in lines]
    assert list(PARSER.parse(lines, "d", 1).columns["x"]) == alone


PIECES = ['{"x":1}', '{"x":[1', "2]}", '{"x":1},{"x":2}', '{"x":"a', 'b"}', "7", "null", '{"x":1}]', '[{"x":1}', "{}"]
PIECES += ['{"x":-73056193128840517}', "-73056193128840517", '{"x":"', '"', ",", "]", "[", " ", '{"x":1}, ']


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7))
@settings(max_examples=300, deadline=None)
def test_a_broken_line_does_not_join_with_its_neighbours(texts: list[str]) -> None:
    lines = [text.encode() for text in texts]
    alone = [PARSER.parse([line], "d", i) for i, line in enumerate(lines, 1)]
    together = PARSER.parse(lines, "d", 1)
    assert together.rejects == [reject for rows in alone for reject in rows.rejects]
    assert list(together.columns["x"]) == [cell for rows in alone for cell in rows.columns["x"]]


# Parquet


def test_cells_of_every_type(tmp_path: Path) -> None:
    when = dt.datetime(2024, 1, 31, 23, 59, 8)
    for values, cells in (
        (pa.array([1, None, -(2**62)]), [b"1", b"", b"-4611686018427387904"]),
        (pa.array([2**64 - 1], pa.uint64()), [b"18446744073709551615"]),
        (pa.array([True, None, False]), [b"true", b"", b"false"]),
        (pa.array(["é", "", None]), ["é".encode(), b"", b""]),
        (pa.array([b"a\0b"]), [b"a\0b"]),
        (pa.array(["b", None]).dictionary_encode(), [b"b", b""]),
        (pa.array([when, None], pa.timestamp("s")), [b"2024-01-31T23:59:08", b""]),
        (pa.array([when.replace(microsecond=500)], pa.timestamp("us")), [b"2024-01-31T23:59:08.0005"]),
        (pa.array([when.replace(tzinfo=UTC)], pa.timestamp("ms", "Asia/Tokyo")), [b"2024-01-31T23:59:08Z"]),
        (pa.array([when.date()]), [b"2024-01-31"]),
        (pa.array([decimal.Decimal("1.10")]), [b"1.10"]),
        (pa.array([["a", None, "b"], None, []]), [b"a||b", b"", b""]),
        (pa.array([[1.5, 2.0], [1e20]], pa.large_list(pa.float64())), [b"1.5|2.0", b"1e+20"]),
        (pa.nulls(2), [b"", b""]),
        (pa.array(["é", None], pa.string_view()), ["é".encode(), b""]),
        (pa.array([b"a", None], pa.binary_view()), [b"a", b""]),
        (pa.array([["a", None], None], pa.list_view(pa.string_view())), [b"a|", b""]),
    ):
        assert parquet_cells(values, tmp_path) == cells


@given(st.lists(st.floats(), min_size=1, max_size=20), st.lists(st.floats(width=32), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_floats_are_the_shortest_text_that_is_the_number(tmp_path_factory: Any, doubles: Any, singles: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert parquet_cells(pa.array(doubles), folder) == [repr(x).encode() if x == x else b"" for x in doubles]
    array = np.array(singles, np.float32)
    texts = parquet_cells(pa.array(array), folder)
    read = np.array([float(text or b"nan") for text in texts], np.float32)
    assert np.array_equal(read, array, equal_nan=True) and b"nan" not in texts
    assert max(len(text.split(b"e")[0].strip(b"-0.")) for text in texts) <= 10


def test_only_the_columns_that_are_read_need_be_cells(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    users = pa.array([{"id": 7, "no": {"x": 1}}, None])
    table = {"click": [1, 0], "user": users, "maps": pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int8()))}
    pq.write_table(pa.table(table | {"lists": [[[1]], [[2]]], "word": [b"a", b"\xff"]}), path)
    spec = schema("parquet", "user", "word", format={"columns": [{"name": "user", "header": "user.id"}]})
    (rows,) = parse_log(str(path), spec)
    assert list(rows.columns["user"]) == [b"7"] and rows.keys == [b"log.parquet#1"]
    (reject,) = rows.rejects
    assert reject[:5] == (b"log.parquet#2", str(path), 2, "bad_utf8", "column 'word'")
    assert json.loads(reject.raw) == {"click": 0, "user": None, "word": "\\xff"}
    assert json.loads(rows.lines[0])["user"] == {"id": 7} and [*rows.lines[:1]] == [rows.lines[0]]
    strange = {"column": "click", "positive": ["7"], "negative": ["8"]}
    nothing = next(parse_log(str(path), schema("parquet", "word", label=strange)))
    assert (len(nothing), len(nothing.rejects), len(nothing.columns["word"])) == (0, 2, 0)
    for name, message in (
        ("user", "column 'user' is a struct; name what is in it"),
        ("maps", "column 'maps' is a map"),
        ("lists", "column 'lists' is a list of lists or structs"),
        ("word2", "no column 'word2'; columns there: click, user, maps, lists, word$"),
    ):
        with pytest.raises(UserError, match=rf"log.parquet: {message}"):
            next(parse_log(str(path), schema("parquet", name)))
    with pytest.raises(UserError, match="is a Parquet file; set"):
        next(parse_log(str(path), schema("jsonl", "word")))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"log.parquet: a broken Parquet file \(.*\); repair it or leave it out"):
        next(parse_log(str(path), spec))
    path.write_bytes(b"click,word\n")
    with pytest.raises(UserError, match="is not a Parquet file; say in the schema how it is written"):
        next(parse_log(str(path), spec))


def test_a_damaged_row_group_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"x": [f"word {i}" for i in range(5000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[20:2000] = bytes(1980)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"log.parquet: row group 0 cannot be read \(.*\); repair the file"):
        list(parse_log(str(path), schema("parquet", "x"), labelled=False))


# All formats

NO = {"negative": ["false"]}
ROWS = [
    {"click": i % 3 == 0, "site": f'a,"{i % 7}', "n": i * 1.5 - 9, "tags": [f"t{i % 4}", "x"][: i % 3], "id": i}
    for i in range(300)
]


def write(folder: Path, kind: str) -> Path:
    """The rows as a log of a format."""
    import csv

    path = folder / f"log.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=64)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(ROWS[0])
            for row in ROWS:
                writer.writerow([str(row["click"]).lower(), row["site"], row["n"], "|".join(row["tags"]), row["id"]])
    return path


@pytest.mark.parametrize("batch", [7, 4096])
def test_the_same_rows_whatever_the_format(tmp_path: Path, batch: int) -> None:
    found = {}
    for kind in ("delimited", "jsonl", "parquet"):
        spec = schema(
            kind, "site", "n", "tags", key="id", group="site", label={"column": "click", "positive": ["true"]} | NO
        )
        batches = list(parse_log(str(write(tmp_path, kind)), spec, batch_rows=batch))
        assert all(len(rows) == batch for rows in batches[:-1]) and not any(rows.rejects for rows in batches)
        cells = {name: [c for rows in batches for c in rows.columns[name]] for name in ("site", "n", "tags")}
        joined = [(k, g, y) for r in batches for k, g, y in zip(r.keys, r.groups, r.labels.tolist(), strict=True)]
        found[kind] = (cells, joined)
    assert found["delimited"] == found["jsonl"] == found["parquet"]
    assert len(found["parquet"][1]) == 300


def test_which_columns_a_log_offers(tmp_path: Path) -> None:
    from afm_ctr.rawlog import ParquetLog

    with write(tmp_path, "parquet").open("rb") as stream:
        header = ParquetLog(stream, "p").header
    for kind, first in (("delimited", b"click,site,id"), ("jsonl", None), ("parquet", header)):
        spec = schema(kind, "site", format={"columns": [{"name": "key", "header": "id"}]})
        assert offers(spec, first, "key", "p") and offers(spec, first, "site", "p")
        assert not offers(spec, first, "other", "p")


def test_a_schema_says_what_belongs_to_its_format() -> None:
    for kind, layout, fields, message in (
        ("jsonl", {"delimiter": ","}, ["site"], "delimiter: unknown key"),
        ("parquet", {"max_line_bytes": 9}, ["site"], "max_line_bytes: unknown key"),
        ("jsonl", {"list_separator": ""}, ["site"], "list_separator"),
        ("jsonl", {"max_line_bytes": 0}, ["site"], "greater than or equal to 1"),
        ("parquet", {"columns": ["site", "site"]}, ["site"], "'site' is listed twice"),
        ("jsonl", {"columns": [{"name": "s", "header": "site"}]}, ["site"], "that header is named 's'"),
        ("jsonl", {}, ["click"], "a label cannot be a feature"),
    ):
        with pytest.raises(ValueError, match=message):
            schema(kind, *fields, format=layout)


def test_views_of_lists_become_lists() -> None:
    """Valid ones: Arrow's own cast leaves the last offset to chance."""
    lists = pa.array([["a", "b"], None, [], ["c", None]], pa.list_view(pa.string_view()))
    for one in (
        lists,
        lists[1:],
        lists[1:3],
        lists[:0],
        pa.array([[1, 2], None, [3]], pa.large_list_view(pa.int32())),
    ):
        column = plain_table(pa.table({"x": one})).column("x")
        column.validate(full=True)
        assert column.to_pylist() == one.to_pylist() and pa.types.is_large_list(column.type)
