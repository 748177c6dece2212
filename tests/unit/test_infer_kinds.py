# ruff: noqa: E501 - tables of cases
"""Logs as they come: headers, delimiters, nested values, moments, ids and texts for "missing" of many kinds.

What is inferred must be what prepare reads: each schema is used to parse the log that it was inferred from.
"""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest

from afm_ctr.errors import UserError
from afm_ctr.infer import Inference, infer_schema
from afm_ctr.infer.timestamps import time_format
from afm_ctr.rawlog import parse_log
from afm_ctr.schema import FeatureSchema

ROWS = 240


def rows_of(inference: Inference, *paths: Path) -> int:
    """Rows that the log has by the inferred schema; none may be rejected."""
    parsed = [batch for path in paths for batch in parse_log(str(path), inference.schema)]
    assert [reject for batch in parsed for reject in batch.rejects] == []
    return sum(map(len, parsed))


def suggested(inference: Inference) -> dict[str, Any]:
    return {column["name"]: column["suggested"] for column in inference.columns}


def odd(inference: Inference) -> dict[str, str]:
    return {column["name"]: "; ".join(column["odd"]) for column in inference.columns if column["odd"]}


def write(path: Path, header: str, line: Any) -> Path:
    path.write_text("\n".join([*([header] if header else []), *(line(i) for i in range(ROWS))]) + "\n")
    return path


def hit(i: int) -> int:
    """A label that nothing else in a row follows from."""
    return (i * 2654435761 >> 9) & 1


def plain(i: int) -> list[str]:
    return [str(hit(i)), f"u{i % 7}", f"{i % 13}.5"]


@pytest.mark.parametrize(
    ("header", "line", "columns", "left_out"),
    [
        (",click,user,price", lambda i: ",".join([str(i), *plain(i)]), {"user", "price"}, {"column 1"}),
        ("click,user,price,", lambda i: ",".join([*plain(i), ""]), {"user", "price"}, {"column 4"}),
        (",click,user,price,", lambda i: ",".join(["", *plain(i), ""]), {"user", "price"}, {"column 1", "column 5"}),
        ("click,user,user,price", lambda i: ",".join([*plain(i)[:2], "x", f"{i}.5"]), {"price"}, {"user"}),
        ("click|user|price|", lambda i: "|".join([*plain(i), ""]), {"user", "price"}, {"column 4"}),
        ("#click\tuser\tprice", lambda i: "\t".join(plain(i)), {"user", "price"}, set()),
        ("Click;User Name;Preis €", lambda i: ";".join(plain(i)), {"User_Name", "Preis"}, set()),
        ("click,user,1,2", lambda i: ",".join([*plain(i), str(i % 9 + 3)]), {"user", "c_1", "c_2"}, set()),
        ("click,user,price", lambda i: ",".join([*plain(i)[:2], "" if i % 3 else "1.5"]), {"user", "price"}, set()),
        ('"click","user","price"', lambda i: ",".join(plain(i)), {"user", "price"}, set()),
        ("click,text,price", lambda i: f'{hit(i)},"a, ""b"" {i % 5}",{i % 13}.5', {"text", "price"}, set()),
        ("click, text, price", lambda i: f'{hit(i)}, "a, b {i % 5}", {i % 13}.5', {"text", "price"}, set()),
        ("click, user, price", lambda i: ", ".join(plain(i)), {"user", "price"}, set()),
        ("click;user;price", lambda i: f"{hit(i)};u{i % 7};{i},{i % 90 + 10}", {"user"}, {"price"}),
        ("click;user;text", lambda i: f"{hit(i)};u{i % 7};word, and {i % 5}", {"user", "text"}, set()),
        ("click;a;b;c", lambda i: f"{hit(i)};{i},5;{i + 3},25;u{i % 4}", {"c"}, {"a", "b"}),
        ("click;user;price", lambda i: f"{hit(i)};u{i % 7};{i % 9}.{i % 990 + 10:03d},50", {"user"}, {"price"}),
        ("click,user,price", lambda i: f'{hit(i)},u{i % 7},"{i % 9 + 1},{i % 990 + 10:03d}.5"', {"user"}, {"price"}),
        ("click,user,price", lambda i: f"{hit(i)},u{i % 7},${i}.50", {"user"}, {"price"}),
        ("click;user;price", lambda i: f"{hit(i)};u{i % 7};{i + 1},{i % 990 + 10:03d}", {"user"}, {"price"}),
        ("click,user,day", lambda i: f"{hit(i)},u{i % 7},2024-01-{i % 28 + 1:02d}", {"user", "day"}, set()),
        ("clicked,colour", lambda i: f"{'yes' if hit(i) else 'no'},{'red' if i % 3 else 'blue'}", {"colour"}, set()),
        ("clicked,colour,", lambda i: f"{'yes' if hit(i) else 'no'},{'red' if i % 3 else 'blue'},", {"colour"}, {"column 3"}),
    ],
)  # fmt: skip
def test_headers(tmp_path, header, line, columns, left_out):
    path = write(tmp_path / "log.csv", header, line)
    inference = infer_schema([str(path)])
    assert inference.schema.format.header and inference.schema.label.column.lower() in ("click", "clicked")
    found = suggested(inference)
    assert {name for name, fields in found.items() if fields is not None} == columns
    assert {name for name, fields in found.items() if fields is None} == left_out == set(odd(inference))
    assert rows_of(inference, path) == ROWS
    for name in left_out - {"price", "a", "b"}:
        assert f"# {name}: LOOK AT THIS, left out:" in inference.text


@pytest.mark.parametrize(
    ("line", "width"),
    [
        (lambda i: ",".join(plain(i)), 3),
        (lambda i: f"{hit(i)},NULL,{i}.5" if i % 3 else f"{hit(i)},7,{i}.5", 3),
        (lambda i: f"{hit(i)};{i},5;u{i % 4}", 3),
        (lambda i: f"{hit(i)}\t\t{i % 5}", 3),
        (lambda i: f"{hit(i)},{'red' if i % 3 else 'blue'},{'a' if i % 5 else 'b'}", 3),
    ],
)
def test_logs_without_a_header(tmp_path, line, width):
    path = write(tmp_path / "log.csv", "", line)
    inference = infer_schema([str(path)], label="c1")
    assert not inference.schema.format.header and len(inference.schema.format.columns) == width
    assert rows_of(inference, path) == ROWS


def test_headers_of_several_days(tmp_path):
    write(tmp_path / "1.csv", "click,user,price,old", lambda i: ",".join([*plain(i), "o"]))
    write(tmp_path / "2.csv", "price,user,click", lambda i: ",".join(reversed(plain(i))))
    write(tmp_path / "3.csv", "click,user,price,new,", lambda i: ",".join([*plain(i), f"n{i % 3}", ""]))
    inference = infer_schema([str(tmp_path / "*.csv")])
    assert inference.schema.label.column == "click" and inference.rows == 3 * ROWS
    assert {name for name, fields in suggested(inference).items() if fields} == {"user", "price"}
    told = odd(inference)
    assert "1.csv has no such column" in told["new"] and "2.csv has no such column" in told["old"]
    assert rows_of(inference, *sorted(tmp_path.glob("*.csv"))) == 3 * ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.csv": ("click,user,price", plain), "b.csv": ("", plain)}, "a.csv begins with a header line and .*b.csv"),
        ({"a.csv": ("click,user,price", lambda i: [str(i), *plain(i)])}, "the header has 3 cells .click, ….*have 4"),
        ({"a.csv": ("sep=,\nclick,user,price", plain)}, "the header is in the second line, after 'sep= ?'"),
        (
            {"a.csv": ("# made today\nclick,user,price", plain)},
            "second line, after '# made today'; remove the first",
        ),
        (
            {"a.csv": ("click,user,p", plain), "b.csv": ("hit,who,p2", plain)},
            "no column that every header names once",
        ),
    ],
)
def test_headers_that_prepare_does_not_read(tmp_path, content, message):
    for name, (header, line) in content.items():
        write(tmp_path / name, header, lambda i, line=line: ",".join(line(i)))
    with pytest.raises(UserError, match=message) as caught:
        infer_schema([str(tmp_path / "*.csv")])
    assert "\n" not in str(caught.value)


def test_a_label_is_found_by_name_whatever_its_case_and_mark(tmp_path):
    for number, header in enumerate(["# Click,user,price", "IS_CLICK,user,price", "click ,user,price"]):
        path = write(tmp_path / f"{number}.csv", header, lambda i: ",".join(plain(i)))
        assert rows_of(infer_schema([str(path)]), path) == ROWS


TEN_DIGITS = [1_000_000_000 + i * 9_999_999 for i in range(101)]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("user_id", lambda draw, i: draw.choice(TEN_DIGITS), "id"),
        ("userId", lambda draw, i: draw.choice(TEN_DIGITS), "id"),
        ("msisdn", lambda draw, i: 1_400_000_000 + 997 * draw.randint(0, 99), "id"),
        ("member", lambda draw, i: 1_500_000_000 + draw.randint(0, 50), "id"),
        ("c3", lambda draw, i: draw.choice(TEN_DIGITS), "id"),
        ("feature_7", lambda draw, i: 1_500_000_000 + draw.randint(0, 50) * 7, "id"),
        ("item_id", lambda draw, i: 20140101 + draw.randint(0, 27), "id"),
        ("sku", lambda draw, i: 1_600_000_000_000 + draw.randint(0, 90), "id"),
        ("value", lambda draw, i: draw.choice(["20010101", "20391231", "19950505"]), "id"),
        ("ts", lambda draw, i: 1_500_000_000 + draw.randint(0, 900_000), "time"),
        ("event_time", lambda draw, i: draw.choice(TEN_DIGITS), "time"),
        ("created_at", lambda draw, i: 1_600_000_000_000 + draw.randint(0, 10**9), "time"),
        ("c4", lambda draw, i: 881_250_949 + 1000 * i, "time"),
        ("x", lambda draw, i: 1_500_000_000 + 60 * draw.randint(0, 50), "time"),
        ("hour", lambda draw, i: f"141021{draw.randint(0, 23):02d}", "time"),
        ("hour", lambda draw, i: f"20141021{draw.randint(0, 23):02d}", "time"),
        ("date", lambda draw, i: 20140101 + draw.randint(0, 27), "time"),
        ("request_time", lambda draw, i: f"{1_500_000_000 + i * 60}.25", "time"),
    ],
)
def test_ids_and_moments(tmp_path, name, value, kind):
    draw = random.Random(3)
    path = write(tmp_path / "log.csv", f"click,{name}", lambda i: f"{hit(i)},{value(draw, i)}")
    inference = infer_schema([str(path)])
    (column,) = inference.columns
    kinds = {field["kind"] for field in column["suggested"] or [{"kind": "left out"}]}
    assert (kinds == {"time"}) == (kind == "time"), inference.text
    if kind == "id":
        assert "would read as moments" in column["odd"][-1] or "a different value" in column["odd"][0]
    assert rows_of(inference, path) == ROWS


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        ("user", lambda draw, i: draw.randint(1, 40), ["categorical"]),
        ("movieId", lambda draw, i: draw.randint(1, 40), ["categorical"]),
        ("userid", lambda draw, i: draw.randint(1, 40), ["categorical"]),
        ("user_id", lambda draw, i: f"{draw.randint(1, 40)}.0", ["categorical"]),
        ("store_nbr", lambda draw, i: draw.randint(1, 40), ["categorical"]),
        ("hour", lambda draw, i: draw.randint(0, 23), ["categorical"]),
        ("user_age", lambda draw, i: draw.randint(20, 60), ["numeric"]),
        ("bid", lambda draw, i: draw.randint(20, 60), ["numeric"]),
        ("num_item", lambda draw, i: draw.randint(20, 60), ["numeric"]),
        ("income", lambda draw, i: draw.randint(10_000, 99_999_999), ["numeric"]),
        ("balance", lambda draw, i: draw.randint(-300, 2000) * 3, ["numeric", "categorical"]),
        ("account", lambda draw, i: draw.randint(1, 2000) * 3, ["categorical"]),
        ("c2", lambda draw, i: 17 * i, []),
        ("c2", lambda draw, i: draw.randint(10**11, 10**12), []),
        ("tags", lambda draw, i: "|".join(f"t{draw.randint(1, 60)}" for _ in range(9)), ["categorical"]),
        ("ip", lambda draw, i: f"10.{i % 8}.0.{i % 7}", ["categorical"]),
        ("os", lambda draw, i: f"{i % 8}.0.{i % 7}", ["categorical"]),
        ("seen", lambda draw, i: 1_700_000_000_000_000 + i * 10**9, []),
        ("seen", lambda draw, i: 1_700_000_000_000_000_000 + i * 10**12, []),
    ],
)
def test_ids_and_quantities(tmp_path, name, value, kinds):
    draw = random.Random(3)
    path = write(tmp_path / "log.csv", f"click,colour,{name}", lambda i: f"{hit(i)},c{i % 5},{value(draw, i)}")
    inference = infer_schema([str(path)])
    column = inference.columns[-1]
    assert [field["kind"] for field in column["suggested"] or ()] == kinds, inference.text
    assert ("categories, or a quantity" in "".join(column["odd"])) == (len(kinds) == 2)
    assert (inference.schema.key == "c2") == (name == "c2")
    assert ("seconds since 1970" in "".join(column["odd"])) == (name == "seen")
    assert rows_of(inference, path) == ROWS


@pytest.mark.parametrize(
    ("cells", "span", "note"),
    [
        (["2024-03-01T23:30:00+09:00", "2024-03-02T08:00:00+09:00"], "from 2024-03-01 23:30 to 2024-03-02 08:00 +09:00", "offset +09:00; hours and weekdays are of UTC"),
        (["2024-03-01 23:30:00-0230"] * 2, "from 2024-03-01 23:30 to 2024-03-01 23:30 -0230", "offset -0230"),
        (["2024-03-01T23:30:00Z", "2024-03-02"], "from 2024-03-01 23:30 to 2024-03-02 00:00 UTC", "are of UTC."),
        (["2024-03-01 23:30:00", "2024-03-02 08:00:00"], "from 2024-03-01 23:30 to 2024-03-02 08:00", "those of the cells"),
        (["1700000000", "1700000060"], "from 2023-11-14 22:13 to 2023-11-14 22:14 UTC", "are of UTC."),
        (["2024-03-01T00:30:00+02:00", "2024-03-01T00:30:00Z"], "from 2024-02-29 22:30 to 2024-03-01 00:30 UTC", "2 offsets (+02:00, Z)"),
    ],
)  # fmt: skip
def test_moments_are_shown_in_the_zone_that_they_are_in(cells, span, note):
    found = time_format([cell.encode() for cell in cells])
    assert found.span == span and note in (found.zone_note or "")


@pytest.mark.parametrize(
    "text", ["2024-W01-1", "2024-001-1", "2024-02-30", "2024-01-02T25:00", "2024-01-02T03:04:05+25"]
)
def test_what_python_would_read_as_a_moment_and_the_transform_does_not(text):
    assert time_format([text.encode()]) is None


def json_log(path: Path, row: Any) -> Path:
    path.write_text("\n".join(json.dumps(row(i)) for i in range(ROWS)) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "columns", "left_out"),
    [
        (lambda i: {"geo": None if i % 3 else {"country": f"c{i % 4}"}}, {"geo_country"}, set()),
        (lambda i: {"geo": None if i % 3 == 0 else {"c": {"d": f"c{i % 4}"} if i % 2 else None}}, {"geo_c_d"}, set()),
        (lambda i: {"user": f"u{i % 9}", "imp": [{"id": 1}]}, {"user"}, {"imp"}),
        (lambda i: {"user": f"u{i % 9}", "m": [[1, 2]]}, {"user"}, {"m"}),
        (lambda i: {"user": f"u{i % 9}", "x": {"a": [{"b": 1}], "c": f"{i % 5}"}}, {"user", "x_c"}, {"x.a"}),
        (lambda i: {"user": f"u{i % 9}", "x": {"y": f"{i % 3}"} if i % 2 else "text"}, {"user", "x_y"}, {"x"}),
        (lambda i: {"user": f"u{i % 9}", "none": {}}, {"user"}, set()),
        (lambda i: {"user": f"u{i % 9}", "": "x", "n": {"": 1}}, {"user"}, {"", "n."}),
        (lambda i: {"user": f"u{i % 9}", "tags": [f"a{i % 3}|b", f"c{i % 4}"]}, {"user", "tags"}, set()),
        (lambda i: {"user": f"u{i % 9}", "seen": {f"s{i}{j}": 1 for j in range(3)}}, {"user"}, {"seen"}),
    ],
)  # fmt: skip
def test_objects_within_objects(tmp_path, row, columns, left_out):
    path = json_log(tmp_path / "log.jsonl", lambda i: {"click": hit(i), **row(i)})
    inference = infer_schema([str(path)])
    found = suggested(inference)
    assert {name for name, fields in found.items() if fields is not None} == columns, inference.text
    assert {name for name, fields in found.items() if fields is None} == left_out
    assert rows_of(inference, path) == ROWS


def test_parquet_columns_that_are_no_cells(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    from pyarrow import parquet

    columns = {
        "click": arrow.array([hit(i) for i in range(ROWS)]),
        "user": arrow.array([f"u{i % 9}" for i in range(ROWS)]),
        "m": arrow.array([[("a", 1)]] * ROWS, arrow.map_(arrow.string(), arrow.int64())),
        "imp": arrow.array([[{"id": 1}]] * ROWS),
        "deep": arrow.array([[[1]]] * ROWS),
        "geo": arrow.array([{"country": f"c{i % 4}", "path": [{"x": 1}]} if i % 3 else None for i in range(ROWS)]),
    }
    table = arrow.table(columns)
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table.append_column("late", columns["user"]), tmp_path / "b.parquet")
    inference = infer_schema([str(tmp_path / "*.parquet")])
    found = suggested(inference)
    assert {name for name, fields in found.items() if fields is not None} == {"user", "geo_country"}
    assert {name for name, fields in found.items() if fields is None} == {"m", "imp", "deep", "geo.path"}
    assert rows_of(inference, *sorted(tmp_path.glob("*.parquet"))) == 2 * ROWS
    inference = infer_schema([str(tmp_path / "[ab].parquet"), str(tmp_path / "b.parquet")])
    assert inference.files == 2


def test_damaged_parquet_files_and_bytes_that_are_no_text(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    from pyarrow import parquet

    path, whole = tmp_path / "a.parquet", tmp_path / "whole.parquet"
    parquet.write_table(arrow.table({"click": [0, 1] * ROWS, "user": [f"u{i}" for i in range(2 * ROWS)]}), whole)
    content = whole.read_bytes()
    for damaged in (
        content[:4],
        content[: len(content) // 2],
        content[:-1],
        content[:-8] + b"\xff" * 4 + content[-4:],
    ):
        path.write_bytes(damaged)
        for files in ([str(path)], [str(whole), str(path)]):
            with pytest.raises(UserError, match=r"a.parquet: a broken Parquet file .*; repair it or leave it out"):
                infer_schema(files)
    path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    with pytest.raises(UserError, match=r"a.parquet: row group 0 cannot be read .*; repair the file or leave it out"):
        infer_schema([str(path)])
    (tmp_path / "log.csv").write_text("click,user\n1,a\n")
    with pytest.raises(UserError, match=r"log.csv is not a Parquet file, and others are"):
        infer_schema([str(whole), str(tmp_path / "log.csv")])
    parquet.write_table(arrow.table({"click": [0, 1] * ROWS, "user": [b"\xe9", b"\xe8"] * ROWS}), path)
    with pytest.raises(
        UserError, match=r"none of the lines looked at is a row \(bad_utf8: 480\); write its texts as UTF-8$"
    ):
        infer_schema([str(path)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{i} qid:{i} 5:1 24:1", "libsvm text with qid:.*sed -E"),
        ("{i} 0:4:1 1:1{i}:0.0949", "libffm text, field:id:value.*sed -E"),
        ("0:4:1 1:1{i}:0.0949", "libffm text"),
        ("{i} 0:1 9999999999999999999999999:1", "has the id 9999999999999999999999999, and ids number the rows"),
        ("{i} 0:1 " + "9" * 6000 + ":1", r"has the id 9+… \(6000 digits\)"),
        ("{i} 0:1 2147483648:1", "has the id 2147483648"),
    ],
)
def test_libsvm_that_is_no_libfm(tmp_path, line, message):
    (tmp_path / "log.txt").write_text("".join(line.format(i=i % 2) + "\n" for i in range(50)))
    with pytest.raises(UserError, match=message) as caught:
        infer_schema([str(tmp_path / "log.txt")])
    assert "\n" not in str(caught.value)
    if "id:" in message:
        spec = {
            "name": "x",
            "format": {"kind": "libfm"},
            "label": {},
            "fields": [{"name": "a", "kind": "libfm", "ids": [0, 9]}],
        }
        with pytest.raises(UserError, match=message):
            list(parse_log(str(tmp_path / "log.txt"), FeatureSchema.model_validate(spec)))


def test_the_same_globs_as_prepare(tmp_path, monkeypatch):
    from beam_jobs import files

    monkeypatch.chdir(tmp_path)
    for path in ("log[1].csv", "log1.csv", "logs/a.csv", "logs/b/c/x.csv", "logs/b/d/e/x.csv", "a*b.csv", "q?.csv"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write(Path(path), "click,user,price", lambda i: ",".join(plain(i)))
    for pattern in ("log[1].csv", "logs/**/*.csv", "logs/*.csv", "a*b.csv", "q?.csv", "**/x.csv", "log[12].csv"):
        assert infer_schema([pattern]).files == len(files.match(pattern)), pattern
    assert infer_schema(["log1.csv", "./log1.csv", str(tmp_path / "log*.csv")]).files == 2  # one file by three paths
    with pytest.raises(UserError, match="logs is a folder; name its files"):
        infer_schema(["logs"])


@pytest.mark.parametrize("text", ["\\N", "NULL", "null", "nan", "NaN", "<NA>", "N/A", "#N/A", "(null)"])
def test_texts_for_missing(tmp_path, text):
    draw = random.Random(5)

    def line(i: int) -> str:
        price = text if i % 5 == 0 else f"{draw.uniform(0, 9):.3f}"
        return "\t".join([str(hit(i)), f"u{i % 7}" if i % 4 else text, price])

    path = write(tmp_path / "log.tsv", "", line)
    inference = infer_schema([str(path)], label="c1")
    assert inference.schema.missing_values == (text,)
    price = next(field for field in inference.schema.fields if field.name == "c3")
    assert price.kind == "numeric" and price.missing == "own"
    assert next(c for c in inference.columns if c["name"] == "c3")["missing"] == pytest.approx(0.2)
    assert next(c for c in inference.columns if c["name"] == "c2")["missing"] == pytest.approx(0.25)


@pytest.mark.parametrize("text", ["NA", "-", "?", "none", "unknown", "not set"])
def test_texts_that_are_missing_among_numbers_only(tmp_path, text):
    def line(i: int) -> str:
        return ",".join([str(hit(i)), text if i % 3 else "x", text if i % 5 == 0 else f"{i % 90}.5"])

    inference = infer_schema([str(write(tmp_path / "log.csv", "click,word,price", line))])
    by_name = {field.name: field for field in inference.schema.fields}
    assert by_name["price"].kind == "numeric" and by_name["price"].missing_values == (text,)
    assert inference.schema.missing_values == () and by_name["word"].missing_values is None


def test_missing_among_moments(tmp_path):
    path = write(
        tmp_path / "a.csv", "click,at", lambda i: f"{hit(i)},{'-' if i % 9 == 0 else f'2024-01-{i % 28 + 1:02d}'}"
    )
    (field,) = infer_schema([str(path)]).schema.fields
    assert field.kind == "time" and field.missing == "own" and field.missing_values == ("-",)


def test_the_next_command_is_for_the_shell(tmp_path):
    path = write(tmp_path / "it's a $log.csv", "click,user,price", lambda i: ",".join(plain(i)))
    inference = infer_schema([str(path)])
    words = shlex.split(inference.command([str(path), "x *.csv"], Path("my schema.yaml")))
    assert words == [
        "afm-ctr", "prepare", "--schema", "my schema.yaml", "--input", str(path), "--input", "x *.csv",
        "--output", "DATA", "--split", "tail:0.1/0.1",
    ]  # fmt: skip
    sorted_by_label = write(tmp_path / "s.csv", "click,user,price", lambda i: f"{i // 120},u{i % 7},{i}.5")
    assert infer_schema([str(sorted_by_label)]).split == "hash:key:80/10/10"
    unlabelled = infer_schema([str(path)], labelled=False)
    assert unlabelled.command(["a"], Path("b")).endswith("--output DATA --no-label")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"click" ,"user"\n' + "1,a\n0,b\n" * 60, "first line cannot be cut, there is text after a closing quote"),
        ("click,click,user\n" + "1,1,a\n0,0,b\n" * 60, "column click, by its name the label, .*names it twice"),
        ("click,text\n" + '1,"a\nb"\n0,c\n' * 60, "a line end inside quotes is not supported"),
        ("[" + ",\n".join('{"click": 1, "user": "a"}' for _ in range(60)) + "]", "a JSON array.*jq -c '"),
        ('{\n  "click": 1\n}\n' * 60, "JSON over several lines.*jq -c"),
        ('{"click": 1, "user": "a"},\n' * 60, "its JSON objects are followed by commas: sed "),
        ("{'click': 1, 'user': 'a'}\n" * 60, "objects as Python prints them.*json.dumps"),
        ("click   user   price\n" + "1   a    2\n0   bb   3\n" * 60, "several blanks stand between"),
        ("click,user,price\n" + "1,'a, b',2\n0,'c, d',3\n" * 60, "wrapped in double quotes, not in single ones"),
        ("1 -3:1 10:0.5\n0 -4:1 11:0.5\n" * 60, "its cells are pairs such as '11:0.5'"),
        ("1 3:nan 10:0.5\n0 4:nan 11:0.5\n" * 60, "its cells are pairs"),
        ("1 user:a:1 item:b:1\n0 user:c:1 item:d:1\n" * 60, "its cells are pairs such as 'item:d:1'"),
        ("1 qid:a1 5:1 24:0.5\n0 qid:a1 5:1 24:0.5\n" * 60, "libsvm text with qid:"),
    ],
)
def test_texts_that_are_close_to_a_log_are_named(tmp_path, content, message):
    (tmp_path / "log.txt").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        infer_schema([str(tmp_path / "log.txt")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "header"), [("utf-16", "click,a"), ("latin-1", "click,é"), ("latin-1", "click,a")]
)
def test_text_that_is_not_utf8(tmp_path, encoding, header):
    (tmp_path / "log.csv").write_text(header + "\n" + "1,é\n0,è\n" * 60, encoding=encoding)
    with pytest.raises(UserError, match=r"write .* as UTF-8: iconv -f"):
        infer_schema([str(tmp_path / "log.csv")])


def test_columns_of_which_lines_in_another_encoding_leave_nothing(tmp_path):
    (tmp_path / "log.csv").write_text("click,a\n" + "1,é\n0,x\n" * 60, encoding="latin-1")
    with pytest.raises(UserError, match=r"a: constant: always 'x'; some lines are no rows \(bad_utf8: 60\): .*iconv"):
        infer_schema([str(tmp_path / "log.csv")], labelled=False)


def test_a_label_that_is_named_and_cannot_be_read(tmp_path):
    path = write(tmp_path / "a.csv", "click,click,user", lambda i: f"{hit(i)},{hit(i)},u{i % 7}")
    with pytest.raises(UserError, match=r"--label click: .*the header names it twice; rename one of them"):
        infer_schema([str(path)], label="click")


def test_a_label_of_null_is_none(tmp_path):
    path = write(tmp_path / "a.csv", "click,user", lambda i: f"{'NULL' if i % 10 == 0 else hit(i)},u{i % 7}")
    inference = infer_schema([str(path)])
    assert (inference.schema.label.positive, inference.schema.label.negative) == (("1",), ("0",))
    said = "LOOK AT THIS: 10.00% of the rows have none: they will be rejected, and prepare stops at more than 1 %"
    assert said in " ".join(inference.text.replace("#", "").split())


def test_names_that_are_no_features(tmp_path):
    header = "click,conversion,sample_weight,rating,like,user"
    path = write(tmp_path / "a.csv", header, lambda i: f"{hit(i)},{i % 3 % 2},{i % 4 + 1},{i % 5},{i},u{i % 7}")
    odd = {column["name"]: column["odd"] for column in infer_schema([str(path)]).columns}
    assert odd["conversion"] == ["by its name it is another label: is it known before the label is?"]
    assert "then `weight: sample_weight`, and no field" in odd["sample_weight"][0]
    assert not odd["user"] and "label" not in odd["like"][0]


@pytest.mark.parametrize("name", ["self", "class", "None", "from"])
def test_a_word_of_python_gets_a_name_that_a_signature_takes(tmp_path, name):
    path = write(tmp_path / "a.csv", f"click,{name},user", lambda i: f"{hit(i)},s{i % 5},u{i % 7}")
    schema = infer_schema([str(path)]).schema
    assert [(column.name, column.header) for column in schema.format.columns] == [(f"c_{name}", name)]
    assert {field.name for field in schema.fields} == {f"c_{name}", "user"}


def test_codes_with_zeros_in_front_are_words(tmp_path):
    path = write(tmp_path / "a.csv", "click,zip,user", lambda i: f"{hit(i)},{i * 7 % 100:05d},u{i % 7}")
    field = {field.name: field for field in infer_schema([str(path)]).schema.fields}["zip"]
    assert field.kind == "categorical"


@pytest.mark.parametrize(
    ("cell", "form", "warning"),
    [
        (lambda i: f"{i % 12 + 1:02d}/{i % 28 + 1:02d}/2024", "%m/%d/%Y", ""),
        (lambda i: f"{i % 28 + 1:02d}/{i % 12 + 1:02d}/2024 {i % 24:02d}:05", "%d/%m/%Y %H:%M", ""),
        (lambda i: f"{i % 12 + 1:02d}/{i % 11 + 1:02d}/2024", "%m/%d/%Y", "%d/%m/%Y fits as well"),
        (lambda i: f"{i % 28 + 1:02d}/Oct/2014:{i % 24:02d}:{i % 60:02d}:07 +0200", None, "in a form that no time"),
        (lambda i: f"10/{i % 28 + 1:02d}/2014 {i % 12 + 1:02d}:{i % 60:02d} PM", None, "in a form that no time"),
    ],
)
def test_dates_of_other_places(tmp_path, cell, form, warning):
    path = write(tmp_path / "a.csv", "click,at,user", lambda i: f"{hit(i)},{cell(i)},u{i % 7}")
    inference = infer_schema([str(path)])
    at = next(column for column in inference.columns if column["name"] == "at")
    assert {field["format"] for field in at["suggested"] or []} == ({form} if form else set())
    assert warning in "; ".join(at["odd"]) and bool(warning) == bool(at["odd"])
    assert inference.schema.key is None and rows_of(inference, path) == ROWS


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (lambda i: f"{i + 1},{i % 990 + 10:03d}", "marks between thousands: 1,010 for 1010"),
        (lambda i: f"{i},{i % 89 + 10}", "a decimal comma: 0,10 for 0.10"),
        (lambda i: f"{i % 9 + 1}.{i % 990 + 10:03d},50", "a decimal comma: 1.010,50 for 1010.50"),
        (lambda i: f"€ {i}.25", "a currency or unit: € 0.25 for 0.25"),
        (lambda i: f"{i % 90 + 5} min", "a unit: 5 min for 5"),
        (lambda i: f"{i % 90 + 5:02d}kg", "a unit: 05kg for 05"),
        (
            lambda i: f"{i % 40}:{i % 60:02d}",
            "durations such as 3:45, and a numeric field reads plain numbers; write",
        ),
        (lambda i: f"['x{i % 7}', 'y{i % 3}']", "lists or objects as a program prints them: ['x"),
        (lambda i: "[]" if i % 3 else f"('x{i % 7}',)", "lists or objects as a program prints them: "),
        (lambda i: f"[{i % 5} 0.5 {i % 7}.]", "write values with a mark between them: x|y"),
        (lambda i: f"{{'a': {i % 5}, 'b': None}}", "lists or objects as a program prints them: {'a': "),
    ],
)
def test_cells_in_a_form_that_no_field_reads(tmp_path, cell, said):
    path = write(tmp_path / "a.csv", "click;user;price", lambda i: f"{hit(i)};u{i % 7};{cell(i)}")
    assert said in odd(infer_schema([str(path)]))["price"]


def test_numbers_with_letters_of_many_kinds_are_codes(tmp_path):
    path = write(tmp_path / "a.csv", "click,seat,user", lambda i: f"{hit(i)},{i % 30}{'ABC'[i % 3]},u{i % 7}")
    assert {field.name: field.kind for field in infer_schema([str(path)]).schema.fields}["seat"] == "categorical"


@pytest.mark.parametrize(
    ("cell", "span"),
    [
        (lambda i: f"{i % 24}:{i % 60:02d}", "from 00:00 to 23:59"),
        (lambda i: f"{i % 24:02d}:{i % 60:02d}:30.5", "from 00:00 to 23:59"),
        (lambda i: f"{i % 12 + 1}:{i % 60:02d} {'AP'[i // 12 % 2]}M", "from 00:11 to 23:58"),
    ],
)
def test_a_time_of_day_becomes_its_hour(tmp_path, cell, span):
    path = write(tmp_path / "a.csv", "click,seen,user", lambda i: f"{hit(i)},{cell(i)},u{i % 7}")
    inference = infer_schema([str(path)])
    field = {field.name: field for field in inference.schema.fields}["seen_hour"]
    assert (field.kind, field.column, field.format, field.part) == ("time", "seen", "clock", "hour")
    assert f"A time of day (clock), {span}. - {{name" in " ".join(inference.text.replace("#", "").split())
    assert rows_of(inference, path) == ROWS


@pytest.mark.parametrize(("header", "kept"), [("play_duration", False), ("callLength", False), ("at", True)])
def test_a_duration_is_no_time_of_day(tmp_path, header, kept):
    path = write(tmp_path / "a.csv", f"click,{header},user", lambda i: f"{hit(i)},{i % 9}:{i % 60:02d},u{i % 7}")
    column = next(c for c in infer_schema([str(path)]).columns if c["name"] == header)
    assert (column["suggested"] is not None) == kept
    said = "a duration? Its hours end at 8" if kept else "write them in seconds"
    assert said in "; ".join(column["odd"])


@pytest.mark.parametrize("far", ["1e999", "-1e400", "9" * 400])
def test_a_number_that_no_float_holds_is_none(tmp_path, far):
    path = write(tmp_path / "a.csv", "click;user;price", lambda i: f"{hit(i)};u{i % 7};{far if i == 77 else i / 8}")
    inference = infer_schema([str(path)])
    assert inference.columns[1]["suggested"][0]["kind"] == "numeric"
    assert "Cells that are no numbers: 1; prepare" in " ".join(inference.text.replace("#", "").split())


@pytest.mark.parametrize("cell", ["[18-25]", "{3F2504E0-4F89-11D3}", "[RAP]", "(none)", "(0, 10]"])
def test_brackets_may_be_part_of_a_word(tmp_path, cell):
    path = write(tmp_path / "a.csv", "click;user;place", lambda i: f"{hit(i)};u{i % 7};{cell if i % 3 else 'x'}")
    assert "place" not in odd(infer_schema([str(path)]))
    path = write(
        tmp_path / "a.csv", "click;user;place", lambda i: f"{hit(i)};u{i % 7};{cell.replace('1', str(i % 3))}{i % 2}"
    )
    assert "place" not in odd(infer_schema([str(path)]))
