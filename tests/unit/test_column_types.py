"""Parquet files of one data set have one type for a column of words."""

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

from afm_ctr.errors import UserError
from afm_ctr.rawlog import ColumnTypes, parse_log, word_columns
from afm_ctr.rawlog.side import read_side_tables
from afm_ctr.rawlog.types import kind_of
from afm_ctr.schema import Analysis, FeatureSchema, resolve
from beam_jobs import PrepareOptions, prepare
from beam_jobs.output import Output
from beam_jobs.plan import plan

HASH = {"kind": "hash", "buckets": 10}
WORD = {"name": "x", "kind": "categorical", "encoding": HASH}
NUMBER = {"name": "x", "kind": "numeric", "encoding": {"kind": "value"}}
WHEN = dt.datetime(2024, 1, 31)


def spec(**changes: Any) -> FeatureSchema:
    content = {"name": "t", "format": {"kind": "parquet"}, "fields": [WORD]}
    return FeatureSchema.model_validate(content | changes)


def write(folder: Path, **columns: Any) -> list[str]:
    """Files day0.parquet, day1.parquet, … with the arrays of each."""
    paths = []
    for day, values in enumerate(zip(*columns.values(), strict=True)):
        paths.append(str(folder / f"day{day}.parquet"))
        pq.write_table(pa.table(dict(zip(columns, values, strict=True))), paths[-1])
    return paths


def read(paths: list[str], schema: FeatureSchema) -> list[bytes]:
    types = ColumnTypes(word_columns(schema))
    found = [rows for path in paths for rows in parse_log(path, schema, types=types)]
    return [cell for rows in found for cell in rows.columns["x"]]


DIFFERENT = {
    "int and double": (pa.array([1, 2]), pa.array([None, 2.0])),
    "int and string": (pa.array([1, 2]), pa.array(["01", "2"])),
    "bool and int": (pa.array([True, False]), pa.array([1, 0])),
    "date and string": (pa.array([WHEN.date()] * 2), pa.array(["31/1/2024"] * 2)),
    "date and timestamp": (pa.array([WHEN.date()] * 2), pa.array([WHEN] * 2)),
    "with and without a zone": (pa.array([WHEN] * 2), pa.array([WHEN] * 2, pa.timestamp("us", "UTC"))),
    "float and double": (pa.array([0.1, 1], pa.float32()), pa.array([0.1, 1])),
    "list and scalar": (pa.array([["a"], ["b"]]), pa.array(["a", "b"])),
    "lists of int and double": (pa.array([[1], [2]]), pa.array([[1.0], [2.0]])),
    "decimals": (pa.array([decimal.Decimal("1.0")] * 2), pa.array([decimal.Decimal("1.00")] * 2)),
}
ALIKE = {
    "widths": (pa.array([1, 2], pa.int8()), pa.array([1, 2], pa.uint64())),
    "dictionary": (pa.array(["1", "2"]).dictionary_encode(), pa.array(["1", "2"], pa.large_string())),
    "bytes": (pa.array([b"1", b"2"]), pa.array(["1", "2"])),
    "null": (pa.nulls(2), pa.array([1, 2])),
    "units": (pa.array([WHEN] * 2, pa.timestamp("s")), pa.array([WHEN] * 2, pa.timestamp("ns"))),
    "lists": (pa.array([[1], []]), pa.array([[1], []], pa.large_list(pa.int8()))),
    "lists of nothing": (pa.array([[], None]), pa.array([["a"], ["b"]])),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_type_is_refused_with_both_files(name: str, tmp_path: Path) -> None:
    paths = write(tmp_path, x=DIFFERENT[name])
    for order in (paths, paths[::-1]):
        with pytest.raises(UserError) as refused:
            read(order, spec())
        said = str(refused.value)
        assert said.startswith(f"{order[1]}: column 'x' is ") and f" in {order[0]}: " in said and "\n" not in said


@pytest.mark.parametrize("name", ALIKE)
def test_types_with_the_same_texts_may_differ(name: str, tmp_path: Path) -> None:
    first, second = ALIKE[name]
    cells = read(write(tmp_path, x=(first, second)), spec())
    assert len(cells) == 4
    if not {kind_of(first.type), kind_of(second.type)} & {None}:
        assert cells[:2] == cells[2:]


def test_numbers_may_differ(tmp_path: Path) -> None:
    paths = write(tmp_path, x=(pa.array([1, 2]), pa.array([1.0, None])))
    assert read(paths, spec(fields=[NUMBER])) == [b"1", b"2", b"1.0", b""]


@pytest.mark.parametrize("changes", [{"key": "k"}, {"group": "k", "label": {"column": "y"}}])
def test_keys_and_groups_are_words(changes: dict[str, Any], tmp_path: Path) -> None:
    arrays = (pa.array([1, 2]), pa.array([1.0, 2.0]))
    paths = write(tmp_path, x=arrays, y=(arrays[0],) * 2, k=arrays)
    with pytest.raises(UserError, match="column 'k' is double, and int64 in"):
        read(paths, spec(fields=[NUMBER], **changes))


@pytest.mark.parametrize(
    ("fields", "split", "refused"),
    [(WORD, "hash:y:80/10/10", "x"), (NUMBER, "hash:x:80/10/10", "x"), (NUMBER, "hash:y:80/10/10", "")],
)
def test_prepare_looks_before_it_reads(fields: Any, split: str, refused: str, tmp_path: Path) -> None:
    write(tmp_path, x=(pa.array([1]), pa.array([1.0])), y=(pa.array([1]),) * 2)
    options = PrepareOptions(
        schema=spec(fields=[fields]), inputs=[f"{tmp_path}/*.parquet"], output=str(tmp_path / "out"), split=split
    )
    output = Output(options.output, False)
    if not refused:
        assert len(plan(options, output).logs) == 2
        return
    with pytest.raises(
        UserError, match=rf"day1\.parquet: column '{refused}' is double, and int64 in .*day0\.parquet"
    ):
        plan(options, output)


def test_files_of_a_side_table(tmp_path: Path) -> None:
    table = {
        "input": "day*.parquet",
        "format": {"kind": "parquet"},
        "key": {"log": "u", "table": "id"},
        "columns": ["x", "n", {"name": "f", "flags": ["r"]}],
    }
    fields = [WORD, {**NUMBER, "name": "n"}, {**WORD, "name": "f", "separator": "|", "max_values": 2}]
    schema = spec(side_tables={"t": table}, fields=fields)
    good = {
        "id": (pa.array([1]), pa.array([2])),
        "x": (pa.array(["a"]), pa.array(["b"])),
        "n": (pa.array([1]), pa.array([2.5])),
        "r": (pa.array([True]), pa.array([0])),
    }
    write(tmp_path, **good)
    tables = read_side_tables(schema, tmp_path)
    assert tables is not None
    assert tables.join({"u": np.array([b"2"], object)})["n"].tolist() == [b"2.5"]
    for name in ("id", "x"):
        write(tmp_path, **{**good, name: (pa.array([1]), pa.array([2.0]))})
        with pytest.raises(UserError, match=rf"day1\.parquet: column '{name}' is double, and int64 in .*day0"):
            read_side_tables(schema, tmp_path)


def test_what_a_model_has_learned(tmp_path: Path) -> None:
    fields = [{**WORD, "encoding": {"kind": "vocabulary"}}]
    known = ({b"5": 1, b"a": 1}, True), ({b"5.0": 1}, False), ({b"5": 1, b"5.0": 1}, False), ({}, False)
    for words, refused in known:
        schema = resolve(spec(fields=fields), Analysis({"x": words}, {}))
        types = ColumnTypes(word_columns(schema.spec), schema)
        types.add({"x": pa.list_(pa.int8())}, "a")
        for kind in (pa.float64(), pa.float32(), pa.list_(pa.float64())):
            alone = ColumnTypes(word_columns(schema.spec), schema)
            if not refused:
                alone.add({"x": kind}, "b.parquet")
                continue
            with pytest.raises(UserError, match=r"^b\.parquet: column 'x' is .*, and the schema has learned whole"):
                alone.add({"x": kind}, "b.parquet")


def test_a_continued_data_set_has_the_types_of_its_parent(tmp_path: Path) -> None:
    (path,) = write(tmp_path, x=(pa.array([1.0, 2.0]),))
    parent = resolve(spec(fields=[{**WORD, "encoding": {"kind": "vocabulary"}}]), Analysis({"x": {b"1": 1}}, {}))
    parent.save(tmp_path / "old")
    for changes in ({"schema": parent}, {"schema": parent.spec, "parent_schema": str(tmp_path / "old")}):
        options = PrepareOptions(**{"inputs": [path], "output": str(tmp_path / "out"), **changes})
        with pytest.raises(UserError, match="the schema has learned whole numbers"):
            plan(options, Output(options.output, False))


def test_json_numbers_in_two_forms_are_told(tmp_path: Path) -> None:
    fields = [{**WORD, "encoding": {"kind": "vocabulary"}}]
    lines = [{"x": 5}, {"x": 5.0}, {"x": 2.5}, {"x": "a"}, {"x": 7.0}]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[str] = []
    options = {"inputs": [str(tmp_path / "log")], "output": str(tmp_path / "out"), "labelled": False}
    prepare(PrepareOptions(schema=spec(format={"kind": "jsonl"}, fields=fields), warn=said.append, **options))
    assert said == [
        "vocabulary 'x': 1 numbers are there as integers and as floats, such as 5 and 5.0, which are two words; "
        "write them alike"
    ]
