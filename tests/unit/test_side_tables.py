"""Side tables: what they bring, how they are read, and what is said where they are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_ctr.errors import UserError
from afm_ctr.rawlog import LineParser, parse_log
from afm_ctr.rawlog.side import read_side_tables, side_tables_beside
from afm_ctr.records.manifest import TableInfo
from afm_ctr.schema import Analysis, FeatureSchema, resolve, validate
from afm_ctr.sidetables import SideTables

USERS = {
    "input": "users*.csv",
    "format": {"kind": "delimited"},
    "key": {"log": "user", "table": "id"},
    "columns": ["age", {"name": "likes", "flags": ["Red", "Blue"]}],
}
SPEC: dict[str, Any] = {
    "name": "s",
    "format": {"kind": "delimited", "header": False, "columns": ["label", "user", "n"]},
    "label": {"column": "label"},
    "side_tables": {"users": USERS},
    "fields": [
        {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}},
        {"name": "age", "kind": "numeric", "encoding": {"kind": "value"}},
        {
            "name": "likes",
            "kind": "categorical",
            "separator": "|",
            "max_values": 2,
            "encoding": {"kind": "hash", "buckets": 9},
        },
    ],
}
TABLE = "id,age,Red,Blue,unread\nu2,7,1,1,x\n\nu1,é,0,1,y\n"


def spec_of(**changes: Any) -> FeatureSchema:
    table = {**USERS, **changes.pop("table", {})}
    return validate(FeatureSchema, {**SPEC, "side_tables": {"users": table}, **changes}, "schema.yaml")


def cells(*texts: bytes) -> np.ndarray:
    return np.array(texts, object)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "users.csv").write_text(TABLE)
    (tmp_path / "log.csv").write_text("1,u1,5\n0,nobody,6\n1,,7\n")
    (tmp_path / "schema.yaml").write_text(json.dumps(SPEC))
    return tmp_path


def test_columns_of_the_log_and_of_a_row():
    spec = spec_of()
    assert spec.raw_columns == ("n", "age", "likes")
    assert spec.log_columns == ("n", "user")
    assert spec.side_tables["users"].table_columns == ("id", "age", "Red", "Blue")


def test_rows_are_joined_by_key(folder):
    spec = spec_of()
    tables = read_side_tables(spec, folder)
    assert tables is not None
    joined = tables.join({"n": cells(b"5", b"6", b"7", b"8"), "user": cells(b"u1", b"nobody", b"", b"u2")})
    assert list(joined) == ["n", "age", "likes"]
    assert joined["age"].tolist() == ["é".encode(), b"", b"", b"7"]
    assert joined["likes"].tolist() == [b"Blue", b"", b"", b"Red|Blue"]


def test_a_log_is_read_with_them(folder):
    spec = spec_of()
    tables = read_side_tables(spec, folder)
    (parsed,) = parse_log(str(folder / "log.csv"), spec, tables=tables)
    assert parsed.columns["age"].tolist() == ["é".encode(), b"", b""]
    assert parsed.columns["n"].tolist() == [b"5", b"6", b"7"]
    assert parsed.labels.tolist() == [1, 0, 1]
    # Columns that a join needs are never left to be cut by something faster.
    parser = LineParser(spec, tables=tables)
    rows = parser.parse([b"1,u2,5"], "log.csv", 1, leave_columns=True)
    assert rows.spans is None
    assert parser.cells_of(rows, 0) == {"n": b"5", "age": b"7", "likes": b"Red|Blue"}


def test_copies_there_and_back(folder, tmp_path_factory):
    spec = spec_of()
    tables = read_side_tables(spec, folder)
    assert tables is not None
    copy = tmp_path_factory.mktemp("copy")
    tables.save(copy)
    lines = (copy / "side/users.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == ['["id", "age", "likes"]', '["u1", "é", "Blue"]', '["u2", "7", "Red|Blue"]']
    again = SideTables.load(copy, spec)
    assert again is not None
    assert again.contents() == tables.contents()
    assert TableInfo.of(again)["users"].rows == 2
    resolve(spec, Analysis.empty()).save(copy)
    for schema in (copy, copy / "schema.yaml", folder / "schema.yaml"):
        beside = side_tables_beside(schema, spec)
        assert beside is not None
        assert beside.contents() == tables.contents()
    # Other files in another order hold the same table.
    (folder / "users.csv").unlink()
    (folder / "users-1.csv").write_text("id,age,Red,Blue\nu1,é,false,true\n")
    (folder / "users-2.csv").write_bytes(gzip.compress(b"Blue,Red,age,id\n1,1,7,u2\n"))
    assert read_side_tables(spec, folder).contents() == tables.contents()


def test_other_forms(folder):
    (folder / "users.latin").write_bytes("u1|Zürich\n".encode("latin-1"))
    form = {"kind": "delimited", "delimiter": "|", "header": False, "columns": ["id", "age"]}
    spec = spec_of(
        table={"input": "users.latin", "encoding": "latin-1", "format": form, "columns": ["age"]},
        fields=SPEC["fields"][:2],
    )
    assert read_side_tables(spec, folder).join({"n": cells(b""), "user": cells(b"u1")})["age"] == ["Zürich".encode()]
    (folder / "users.jsonl").write_text('{"id": 3, "age": 41, "Red": true, "Blue": false}\n')
    spec = spec_of(table={"input": str(folder / "users.jsonl"), "format": {"kind": "jsonl"}})
    joined = read_side_tables(spec, "elsewhere").join({"n": cells(b""), "user": cells(b"3")})
    assert (joined["age"][0], joined["likes"][0]) == (b"41", b"Red")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (TABLE + "u2,8,0,0,z\n", "users.csv, line 5: a second row with the key 'u2'"),
        (TABLE + ",8,0,0,z\n", "users.csv, line 5: the key is missing"),
        (TABLE + "u3,8,0,2,z\n", "users.csv, line 5: Blue: '2' is neither 0 nor 1"),
        (TABLE + "u3,8\n", "users.csv, line 5: column_count: 2 columns, 5 expected"),
        (TABLE.replace("age,", "Age,"), "users.csv: no column 'age'; columns there: id, Age"),
    ],
)
def test_a_table_that_is_wrong_is_named(folder, table, told):
    (folder / "users.csv").write_text(table)
    with pytest.raises(UserError) as caught:
        read_side_tables(spec_of(), folder)
    assert told in str(caught.value)


def test_a_table_that_is_not_there(folder, tmp_path_factory):
    (folder / "users.csv").unlink()
    with pytest.raises(UserError, match=r"side_tables\.users\.input: no file matches users\*\.csv"):
        read_side_tables(spec_of(), folder)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=r"side/users\.jsonl: no such file: the schema joins the side table 'users'"):
        SideTables.load(empty, spec_of())
    (empty / "side").mkdir()
    for content, told in (("[", "not a copy"), ('["id", "age"]\n', "must have the columns id, age, likes")):
        (empty / "side/users.jsonl").write_text(content)
        with pytest.raises(UserError, match=told):
            SideTables.load(empty, spec_of())


def test_a_header_that_has_the_column_too(folder):
    spec = spec_of(format={"kind": "delimited"})
    with pytest.raises(UserError, match=r"log\.csv: has a column 'age', and so has a side table"):
        LineParser(spec, b"label,user,n,age", source="log.csv")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"table": {"key": "who"}}, "side_tables.users.key: 'who': the log has no such column"),
        ({"table": {"key": {"log": "label", "table": "id"}}}, "side_tables.users.key: 'label' is the label's column"),
        ({"table": {"columns": ["n", "age"]}}, "side_tables.users.columns[0]: 'n': is a column of the log"),
        ({"table": {"columns": ["zip"]}}, "side_tables.users: no field reads any of its columns"),
        ({"table": {"colums": []}}, "side_tables.users.colums: unknown key (did you mean 'columns'?)"),
        ({"table": {"format": {"kind": "libfm"}}}, "side_tables.users.format.kind: 'libfm': must be one of"),
        (
            {"table": {"format": {"kind": "delimited", "header": False, "columns": ["id", "age", "Red"]}}},
            "side_tables.users.columns[1]: 'Blue': the table has no such column",
        ),
        ({"group": "age"}, "group: 'age': comes from a side table, but a group must be a column of the log"),
        ({"fields": SPEC["fields"][:1]}, "side_tables.users: no field reads"),
    ],
)
def test_what_is_wrong_in_a_schema_is_named(changes, told):
    with pytest.raises(UserError) as caught:
        spec_of(**changes)
    assert told in str(caught.value)
