"""A first schema out of a sample: what is recognised, what is said of it, and that the schema can be read."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from afm_ctr.errors import UserError
from afm_ctr.infer import Inference, infer_schema, sample, save
from afm_ctr.infer.suggest import shown_number
from afm_ctr.infer.timestamps import time_format
from afm_ctr.infer.write import flow
from afm_ctr.rawlog import parse_log
from afm_ctr.schema import FeatureSchema, NumericField, TimeField, read_yaml
from afm_ctr.synthetic import make_logs

WORDS = ["red", "green", "blue", "black", "white", "pink"]


def table(rows: int = 600, seed: int = 0) -> dict[str, list[str]]:
    """Columns of every kind. ``clicked`` is 1 a third of the time and follows from ``later`` alone."""
    draw = random.Random(seed)
    clicked = [draw.random() < 0.3 for _ in range(rows)]
    return {
        "request id": [f"r{i:05d}x" for i in range(rows)],
        "clicked": [str(int(c)) for c in clicked],
        "when": [f"2024-03-{1 + i % 28:02d} {i % 24:02d}:{i % 60:02d}:00" for i in range(rows)],
        "colour": [draw.choice(WORDS) if draw.random() > 0.2 else "" for _ in range(rows)],
        "tags": ["|".join(draw.sample(WORDS, draw.randint(1, 3))) for _ in range(rows)],
        "price": [f"{draw.uniform(1, 9):.2f}" for _ in range(rows)],
        "amount": [f"{draw.lognormvariate(1, 2):.3f}" for _ in range(rows)],
        "visits": [str(int(draw.paretovariate(0.7)) - 1) for _ in range(rows)],
        "age": [str(draw.randint(18, 70)) for _ in range(rows)],
        "device_id": [str(draw.randint(0, 10**9)) if draw.random() < 0.5 else "7" for _ in range(rows)],
        "country": [draw.choice(["01", "07", "49"]) for _ in range(rows)],
        "version": ["3"] * rows,
        "nothing": [""] * rows,
        "later": [f"{draw.uniform(5, 9) if c else draw.uniform(0, 4):.3f}" for c in clicked],
    }


def delimited(path: Path, columns: dict[str, list[str]], delimiter: str = ",", header: bool = True) -> Path:
    lines = [delimiter.join(cells) for cells in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([delimiter.join(columns), *lines] if header else lines) + "\n")
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Inference:
    return infer_schema([str(delimited(tmp_path_factory.mktemp("log") / "shop.csv", table()))])


def fields(inference: Inference) -> dict[str, Any]:
    return {field.name: field for field in inference.schema.fields}


def test_kinds_and_encodings(found):
    schema = found.schema
    assert schema.name == "shop" and schema.key == "request_id"
    assert (schema.label.column, schema.label.positive, schema.label.negative) == ("clicked", ("1",), ("0",))
    assert schema.format.header and not schema.format.quote
    assert [(c.name, c.header) for c in schema.format.columns] == [("request_id", "request id")]
    by_name = fields(found)
    assert isinstance(by_name["when_hour"], TimeField) and by_name["when_hour"].format == "%Y-%m-%d %H:%M:%S"
    assert by_name["when_weekday"].part == "weekday"
    assert by_name["colour"].encoding.kind == "vocabulary" and by_name["colour"].missing == "own"
    assert (by_name["tags"].separator, by_name["tags"].max_values) == ("|", 3)
    assert by_name["price"].encoding.quantiles == 10 and by_name["age"].encoding.quantiles == 10
    assert by_name["amount"].encoding.log and by_name["amount"].encoding.standardise
    assert by_name["visits"].encoding.log_square
    assert by_name["device_id"].encoding.kind == "hash"
    assert by_name["country"].kind == "categorical"  # 01 is a code


def test_what_is_odd_is_left_out_and_said(found):
    odd = {column["name"]: "; ".join(column["odd"]) for column in found.columns if column["odd"]}
    assert set(odd) == {"request_id", "version", "nothing", "later"}
    assert "constant: always '3'" in odd["version"] and "always empty" in odd["nothing"]
    assert "gives the label away: alone it has an AUC of 1.000" in odd["later"]
    assert "a different value (600 in 600)" in odd["request_id"]
    assert not set(fields(found)) & set(odd)
    for name in odd:
        assert f"  # - {{name: {name}, " in found.text  # a person can take it back


def test_figures_are_in_the_comments(found):
    columns = table()
    missing = columns["colour"].count("") / 600
    lines = found.text.splitlines()
    (line,) = [line for line in lines if line.startswith("  # colour:")]
    assert f"{missing:.1%} missing; 6 distinct" in line and "own AUC 0.5" in line
    assert "look at 600 rows of 600 in" in found.text
    assert all(len(line) <= 118 for line in lines if not line.lstrip("# ").startswith(("- ", "/")))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0004271796399, "0.0004272"),
        (-12.3456, "-12.35"),
        (1234567.5, "1234568"),
        (1764000000.0, "1764000000"),
        (7, "7"),
    ],
)
def test_figures_have_four_digits_or_all_before_the_point(number, text):
    assert shown_number(number) == text


def test_a_field_of_several_values_has_the_ids_of_its_values(found):
    (column,) = [column for column in found.columns if column["name"] == "tags"]
    assert (column["distinct_in_all"], column["distinct"] > 100) == (len(WORDS), True)


def test_the_text_is_the_schema(found, tmp_path):
    save(found, tmp_path / "deep" / "schema.yaml", overwrite=False)
    assert FeatureSchema.load(tmp_path / "deep" / "schema.yaml") == found.schema
    with pytest.raises(UserError, match="is there already; give --overwrite"):
        save(found, tmp_path / "deep" / "schema.yaml", overwrite=False)
    save(found, tmp_path / "deep" / "schema.yaml", overwrite=True)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["schema.yaml"]


@pytest.mark.parametrize("delimiter", ["\t", ";", "|"])
@pytest.mark.parametrize("header", [True, False])
def test_delimiters_and_headers(tmp_path, delimiter, header):
    columns = {name: cells for name, cells in table(200).items() if name != "tags"}
    inference = infer_schema(
        [str(delimited(tmp_path / "log.txt", columns, delimiter, header))], label=None if header else "c2"
    )
    written = inference.schema.format
    assert (written.delimiter, written.header) == (delimiter, header)
    if not header:
        assert written.names == tuple(f"c{i + 1}" for i in range(len(columns)))
    rows = list(parse_log(str(tmp_path / "log.txt"), inference.schema))
    assert sum(map(len, rows)) == 200 and not any(batch.rejects for batch in rows)


def test_a_header_over_words_alone(tmp_path):
    draw = random.Random(1)
    columns = {name: [draw.choice(WORDS) for _ in range(50)] for name in ("one", "two")}
    columns["seen"] = [draw.choice(["yes", "no"]) for _ in range(50)]
    inference = infer_schema([str(delimited(tmp_path / "a.csv", columns))])
    assert inference.schema.format.header and inference.schema.label.positive == ("yes",)
    inference = infer_schema([str(delimited(tmp_path / "b.csv", columns, header=False))], label="c3")
    assert not inference.schema.format.header and inference.rows == 50


def test_quotes(tmp_path):
    (tmp_path / "q.csv").write_text(
        "click,text,n\n" + "".join(f'{i % 2},"a, ""b"" {i % 3}",{i}.5\n' for i in range(60))
    )
    inference = infer_schema([str(tmp_path / "q.csv")])
    assert inference.schema.format.quote and inference.rejects == {}
    assert next(c for c in inference.columns if c["name"] == "text")["distinct"] == 3


def json_log(path: Path, columns: dict[str, list[str]]) -> Path:
    lines = []
    for row in zip(*columns.values(), strict=True):
        value: dict[str, Any] = dict(zip(columns, row, strict=True))
        value["tags"] = value["tags"].split("|")
        value["shop"] = {"clicked": int(value.pop("clicked")), "price": float(value.pop("price"))}
        lines.append(json.dumps({name: cell for name, cell in value.items() if cell != ""}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_json_lines(tmp_path):
    path = json_log(tmp_path / "log.jsonl", table())
    inference = infer_schema([str(path)], label="shop.clicked")
    assert inference.schema.format.kind == "jsonl"
    assert ("shop_price", "shop.price") in [(c.name, c.header) for c in inference.schema.format.columns]
    by_name = fields(inference)
    assert by_name["tags"].separator == "|" and isinstance(by_name["shop_price"], NumericField)
    (rows,) = parse_log(str(path), inference.schema)
    assert len(rows) == 600 and int(rows.labels.sum()) == table()["clicked"].count("1")


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    from pyarrow import parquet

    columns: dict[str, Any] = dict(table())
    columns["price"] = [float(cell) for cell in columns["price"]]
    columns["tags"] = [cell.split("|") for cell in columns["tags"]]
    path = tmp_path / "log.parquet"
    parquet.write_table(arrow.table(columns), path, row_group_size=100)
    inference = infer_schema([str(path)])
    assert inference.schema.format.kind == "parquet" and inference.schema.label.column == "clicked"
    assert fields(inference)["tags"].separator == "|" and inference.total == inference.rows == 600
    (rows,) = parse_log(str(path), inference.schema)
    assert len(rows) == 600


def test_libfm_with_and_without_fields(tmp_path):
    draw = random.Random(2)
    apart = [
        f"{draw.choice([-1, 1])} {draw.randint(0, 9)}:1 {draw.randint(10, 29)}:1 {draw.randint(30, 31)}:0.5"
        for _ in range(500)
    ]
    (tmp_path / "a.libfm").write_text("\n".join(apart))
    inference = infer_schema([str(tmp_path / "a.libfm")])
    assert [field.ids for field in inference.schema.fields] == [(0, 10), (10, 30), (30, 32)]
    assert inference.schema.label.negative == ("-1",)
    mixed = [" ".join([str(i % 2), *(f"{k}:1" for k in draw.sample(range(50), 1 + i % 4))]) for i in range(300)]
    (tmp_path / "b.libfm").write_text("\n".join(mixed))
    (field,) = infer_schema([str(tmp_path / "b.libfm")]).schema.fields
    assert field.ids == (0, 50) and field.max_values == 4


def test_synthetic_criteo_logs(tmp_path):
    make_logs(tmp_path / "log.tsv.gz", 3000, malformed=0.02)
    inference = infer_schema([str(tmp_path / "*.gz")])
    assert inference.schema.format.delimiter == "\t" and len(inference.schema.format.columns) == 40
    assert inference.schema.label.column == "c1" and len(inference.schema.fields) == 39
    assert set(inference.rejects) == {"column_count", "bad_utf8"}
    assert fields(inference)["c20"].kind == "categorical"


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [
        ("", None, "the files are empty"),
        ("a,click\n", "click", "there is nothing below the header line"),
        ("a,click\r\r\nx,1\r\r\ny,0\r\r\n", "click", r"other carriage returns: tr -d '\\r' < FILE"),
        ("a,click\rx,1\ry,0\r", "click", r"other carriage returns: tr '\\r' '\\n' < FILE"),
        ("hello\nworld\n", None, "neither JSON Lines, libfm text nor text"),
        ("a,b\n1,x\n2,y\n3,z\n", None, r"name it with --label COLUMN, or say --no-label: a \(1, 2, …\), b"),
        ("a,b\n1,x\n2,y\n", "c", "--label c: .*log.csv has no such column; it has a"),
        ("click,b\n1,x\n0,x\n", None, "no column is fit for a feature: b: constant"),
        ("1::2::3\n4::5::6\n", "c1", "'::' stands between its cells"),
        (
            "t,b\n" + "".join(f"w{i},{i % 2}\n" for i in range(40)),
            "t",
            "column t has 40 texts in 40 rows, which is no label",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, content, label, message):
    (tmp_path / "log.csv").write_text(content, newline="")
    with pytest.raises(UserError, match=message) as caught:
        infer_schema([str(tmp_path / "log.csv")], label=label)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_no_empty_one(tmp_path):
    (tmp_path / "log.csv.zst").write_bytes(zstandard.compress(b"a,click\nx,1\n" * 90)[:-9])
    with pytest.raises(UserError, match="no complete line: the zstd stream ends early"):
        infer_schema([str(tmp_path / "log.csv.zst")])


def test_files_put_together_with_their_headers_and_blank_lines(tmp_path):
    """A header among the rows is no value of theirs, and most lines may be empty."""
    one = "price,click\n\n" + "".join(f"{i % 7}.5,{i % 2}\n\n" for i in range(40))
    (tmp_path / "log.csv").write_text(one * 2)
    found = infer_schema([str(tmp_path / "log.csv")])
    assert found.rejects == {"empty_line": 82, "header again": 1} and found.rows == 80
    assert "LOOK AT THIS: prepare stops where they are more than 1 %" in found.text
    assert not found.schema.missing_values and fields(found)["price"].kind == "numeric"
    assert fields(found)["price"].missing_values is None


def test_files_that_cannot_be_looked_at(tmp_path):
    for pattern, message in [(str(tmp_path / "*.csv"), "no such file"), ("gs://b/x", "looks at local files")]:
        with pytest.raises(UserError, match=message):
            infer_schema([pattern])


@pytest.mark.parametrize(
    ("texts", "positive", "negative"),
    [(["Yes", "No"], ("Yes",), ("No",)), (["true", "false"], ("true",), ("false",)), (["-1", "1"], ("1",), ("-1",)),
     (["1", "2", "3", "4", "5"], ("4", "5"), ("1", "2", "3"))],
)  # fmt: skip
def test_labels(tmp_path, texts: Sequence[str], positive, negative):
    rows = 100
    columns = {"label": [texts[i % len(texts)] for i in range(rows)], "a": [WORDS[i // 7 % 6] for i in range(rows)]}
    label = infer_schema([str(delimited(tmp_path / "l.csv", columns))]).schema.label
    assert (set(label.positive), set(label.negative)) == (set(positive), set(negative))


def test_no_label_and_a_real_one(tmp_path):
    path = str(delimited(tmp_path / "shop.csv", table()))
    assert infer_schema([path], labelled=False).schema.label is None
    assert infer_schema([path], label="price").schema.label.kind == "real"


@pytest.mark.parametrize("rows", [1, 40, 5000])
def test_samples_are_spread_and_bounded(tmp_path, rows):
    for name, opened in (("a.txt", open), ("b.gz", gzip.open)):
        with opened(tmp_path / name, "wb") as stream:
            stream.write(b"".join(b"line %05d\n" % i for i in range(5000)))
        found = sample.sample_file(str(tmp_path / name), rows, 1 << 20)
        assert len(found.lines) == min(rows, 4999) and found.total == 4999 and found.first == b"line 00000"
        numbers = [int(line[5:]) for line in found.lines]
        assert numbers == sorted(set(numbers)) and (rows < 40 or numbers[-1] > 4800)
    large = sample.sample_file(str(tmp_path / "a.txt"), rows, 16_000)  # of 55 kB: in stretches
    numbers = [int(line[5:]) for line in large.lines]
    assert numbers == sorted(set(numbers)) and (rows < 40 or numbers[-1] > 4500)
    assert large.total == pytest.approx(5000, rel=0.01)


def test_many_files(tmp_path):
    columns = table(700)
    for number in range(30):
        part = {name: cells[number * 20 : number * 20 + 20] for name, cells in columns.items()}
        delimited(tmp_path / f"part-{number:02d}.csv", part)
    inference = infer_schema([str(tmp_path / "part-*.csv")])
    assert (inference.files, inference.looked_at, inference.rows, inference.total) == (30, 20, 400, 600)
    assert inference.schema.format.header


@pytest.mark.parametrize(
    ("cells", "form"),
    [([b"14102100", b"14103023"], "%y%m%d%H"), ([b"20141021"], "%Y%m%d"), ([b"881250949"], "epoch"),
     ([b"1700000000123"], "epoch_ms"), ([b"2024-01-02T03:04:05Z", b"2024-01-02"], "iso"), ([b"2024-02-30"], None),
     ([b"12345678"], None), ([b"1"], None), ([], None), ([b"x"], None)],
)  # fmt: skip
def test_moments(cells, form):
    found = time_format(cells)
    assert (found.form if found else None) == form


def test_texts_that_yaml_would_read_as_something_else(tmp_path):
    odd = ["no", "1e3", "~", "a: b", '\x07\u2028😀"\\', "null", "- x", "{", "#", ""]
    (tmp_path / "odd.yaml").write_text("\n".join(["texts:", *(f"- {flow(text)}" for text in odd)]), encoding="utf-8")
    assert read_yaml(tmp_path / "odd.yaml") == {"texts": odd}
