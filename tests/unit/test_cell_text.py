"""The text of a cell: one table, and the same text of a typed value by every path."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.export.columns import column_forms
from afm_ctr.rawlog import LineParser, parse_log
from afm_ctr.schema import Analysis, FeatureSchema, resolve
from serving.cell_text import ColumnForm, NoCell, cell_text
from serving.errors import InvalidArgument
from serving.protos import wire_pb2 as wire
from serving.responses import _specs
from serving.rows import encode, split

WHEN = dt.datetime(2024, 1, 31, 23, 59, 8)
TOKYO = dt.timezone(dt.timedelta(hours=9))
HASH = {"kind": "hash", "buckets": 10}


class Color(enum.IntEnum):
    RED = 3


class Wordless:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, b""),
        (math.nan, b""),
        (np.float32("nan"), b""),
        (np.float64("nan"), b""),
        (np.datetime64("NaT"), b""),
        (np.timedelta64("NaT"), b""),
        (decimal.Decimal("nan"), b""),
        (np.ma.masked, b""),
        ("é", "é".encode()),
        (np.str_("x"), b"x"),
        (b"\xff", b"\xff"),
        (np.bytes_(b"a"), b"a"),
        (bytearray(b"a"), b"a"),
        (True, b"true"),
        (np.False_, b"false"),
        (2**53 + 1, b"9007199254740993"),
        (-(10**30), b"-1" + b"0" * 30),
        pytest.param(-(10**5000), b"-1" + b"0" * 5000, id="huge"),
        (np.int8(-5), b"-5"),
        (np.uint64(2**64 - 1), b"18446744073709551615"),
        (Color.RED, b"3"),
        (100.0, b"100.0"),
        (-0.0, b"-0.0"),
        (0.1, b"0.1"),
        (np.float32(0.1), b"0.1"),
        (np.float16(0.1), b"0.1"),
        (np.float32(1e6), b"1000000.0"),
        (np.float64(0.1), b"0.1"),
        (1e-7, b"1e-07"),
        (1e16, b"1e+16"),
        (math.inf, b"inf"),
        (np.float32("-inf"), b"-inf"),
        (decimal.Decimal("1.10"), b"1.10"),
        (decimal.Decimal("1E-9"), b"0.000000001"),
        (decimal.Decimal("1E+2"), b"100"),
        (WHEN.date(), b"2024-01-31"),
        (np.datetime64("2024-01-31"), b"2024-01-31"),
        (WHEN, b"2024-01-31T23:59:08"),
        (WHEN.replace(microsecond=500_000), b"2024-01-31T23:59:08.5"),
        (WHEN.replace(tzinfo=TOKYO), b"2024-01-31T14:59:08Z"),
        (np.datetime64("2024-01-31T23", "h"), b"2024-01-31T23:00:00"),
        (np.datetime64("2024-01-31T23:59:08.120", "ms"), b"2024-01-31T23:59:08.12"),
        (dt.time(1, 2, 3, 400_000), b"01:02:03.4"),
        (dt.timedelta(seconds=-1.5), b"-1.5"),
        (dt.timedelta(days=1), b"86400"),
        (np.timedelta64(90, "m"), b"5400"),
        (np.timedelta64(1, "ns"), b"0.000000001"),
        (uuid.UUID(int=5), b"00000000-0000-0000-0000-000000000005"),
        (np.array(2.5), b"2.5"),
        (["a", None, 1, 2.5, True], b"a||1|2.5|true"),
        (np.array([0.1, 2], np.float32), b"0.1|2.0"),
        ((), b""),
        (pa.scalar(0.1, pa.float32()), b"0.1"),
        (pa.scalar([0.1], pa.list_(pa.float32())), b"0.1"),
        (pa.scalar(None, pa.int64()), b""),
        (pa.scalar(123456789, pa.timestamp("ns", "UTC")), b"1970-01-01T00:00:00.123456789Z"),
        (pa.scalar(123456789, pa.time64("ns")), b"00:00:00.123456789"),
    ],
)
def test_the_table(value: Any, text: bytes) -> None:
    assert cell_text(value, [b"|"]) == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 1}, "an object"),
        ([[1]], "a list that holds a list"),
        (np.zeros((2, 2)), "a list that holds a list"),
        (1j, "1j is neither"),
        ({1}, "{1} is neither"),
        ("\ud800", "half a surrogate pair"),
        (dt.time(1, tzinfo=TOKYO), "with a zone"),
        (np.timedelta64(1, "M"), "no fixed length"),
        (["a|b"], "the list's element 'a|b' holds"),
        (dt.datetime(1, 1, 1, tzinfo=TOKYO), "outside the years"),
        (decimal.Decimal("1e999999999"), "a Decimal with more than 1,000,000 places"),
        (decimal.Decimal("1e-999999999"), "a Decimal with more than 1,000,000 places"),
        (Wordless(), "<Wordless> is neither"),
        ([Wordless()], "<Wordless> is neither"),
    ],
)
def test_what_is_no_cell(value: Any, said: str) -> None:
    with pytest.raises(NoCell, match=re.escape(said)):
        cell_text(value, [b"|"])
    with pytest.raises(NoCell, match=r"is neither .*: the column holds one value"):
        cell_text(["a"])


def test_pandas_values() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    stamp = pd.Timestamp("2024-01-31T23:59:08.123456789")
    assert [cell_text(value) for value in (pd.NA, pd.NaT, stamp, stamp.tz_localize(TOKYO))] == [
        b"",
        b"",
        b"2024-01-31T23:59:08.123456789",
        b"2024-01-31T14:59:08.123456789Z",
    ]
    assert cell_text(pd.Timedelta(1_500_000_001, "ns")) == b"1.500000001"


# Paths


def spec(kind: str) -> FeatureSchema:
    fields = [{"name": "x", "kind": "categorical", "encoding": HASH, "separator": "|", "max_values": 3}]
    return FeatureSchema.model_validate({"name": "t", "format": {"kind": kind}, "fields": fields})


JSON_PARSER = LineParser(spec("jsonl"))


def by_client(data: Any, form: ColumnForm | None = None) -> list[bytes]:
    form = form or ColumnForm(True, (b"|",))
    info = wire.TensorInfo(dtype=wire.DT_STRING)
    info.tensor_shape.dim.add(size=-1, name=form.to_name())
    specs = _specs({"x": info})
    assert specs["x"] == ("string", (-1,))
    return [cell for chunk in split(data, 100) for cell in encode(chunk, specs)["x"]]


def by_json(values: list[Any]) -> list[bytes]:
    parsed = JSON_PARSER.parse([json.dumps({"x": value}).encode() for value in values], "d", 1)
    assert not parsed.rejects
    return list(parsed.columns["x"])


def by_parquet(values: Any, folder: Path) -> list[bytes]:
    path = folder / "x.parquet"
    pq.write_table(pa.table({"x": values}), path)
    return [cell for rows in parse_log(str(path), spec("parquet")) for cell in rows.columns["x"]]


def of_type(values: Any) -> Any:
    return st.lists(st.none() | values, min_size=1, max_size=8)


NUMBERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_characters="|", codec="utf-8"), max_size=4)
JSON_VALUES = {
    "bool": (of_type(st.booleans()), pa.bool_()),
    "int": (of_type(NUMBERS), pa.int64()),
    "float": (of_type(st.floats()), pa.float64()),
    "text": (of_type(TEXTS), pa.string()),
    "ints": (of_type(st.lists(st.none() | NUMBERS, max_size=3)), pa.list_(pa.int64())),
    "floats": (of_type(st.lists(st.floats(), max_size=3)), pa.list_(pa.float64())),
    "texts": (of_type(st.lists(st.none() | TEXTS, max_size=3)), pa.large_list(pa.string())),
}


@pytest.mark.parametrize("name", JSON_VALUES)
def test_json_parquet_and_the_client_have_one_text(name: str, tmp_path: Path) -> None:
    strategy, kind = JSON_VALUES[name]

    @settings(max_examples=30, deadline=None)
    @given(strategy)
    def check(values: list[Any]) -> None:
        cells = [cell_text(value, [b"|"]) for value in values]
        assert by_json(values) == cells
        read_back = [json.loads(json.dumps({"x": value})) for value in values]
        assert by_client(read_back) == cells
        assert by_client({"x": values}) == cells
        table = pa.table({"x": pa.array(values, kind)})
        assert by_parquet(table["x"], tmp_path) == cells
        assert by_client(table) == cells

    check()


MOMENTS = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))
ARROW_VALUES = {
    "float32": (st.floats(width=32), pa.float32()),
    "float16": (st.floats(width=16).map(np.float16), pa.float16()),
    "uint64": (st.integers(0, 2**64 - 1), pa.uint64()),
    "decimal": (st.decimals(-1000, 1000, places=9), pa.decimal128(20, 9)),
    "date": (st.dates(dt.date(1, 1, 1)), pa.date32()),
    "date64": (st.dates(dt.date(1, 1, 1)), pa.date64()),
    "time_us": (st.times(), pa.time64("us")),
    "time_ns": (st.integers(0, 86_400 * 10**9 - 1), pa.time64("ns")),
    "moment_us": (MOMENTS, pa.timestamp("us")),
    "moment_ns": (st.integers(-(2**60), 2**60), pa.timestamp("ns")),
    "moment_zone": (MOMENTS.map(lambda at: at.replace(tzinfo=TOKYO)), pa.timestamp("us", "Asia/Tokyo")),
    "duration": (st.integers(-(10**15), 10**15), pa.duration("us")),
    "uuid": (st.uuids().map(lambda value: value.bytes), pa.uuid()),
    "bool8": (st.integers(0, 1), pa.bool8()),
    "words": (st.sampled_from(["a", "b"]), pa.dictionary(pa.int8(), pa.string())),
}


@pytest.mark.parametrize("name", ARROW_VALUES)
def test_the_fast_paths_of_parquet_are_the_function(name: str, tmp_path: Path) -> None:
    strategy, kind = ARROW_VALUES[name]

    @settings(max_examples=25, deadline=None)
    @given(of_type(strategy))
    def check(values: list[Any]) -> None:
        storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        array = pa.array(values, storage)
        array = pa.ExtensionArray.from_storage(kind, array) if storage is not kind else array
        cells = [cell_text(value) for value in array]
        assert by_parquet(array, tmp_path) == cells
        assert by_client(pa.table({"x": array})) == cells
        if name not in ("time_ns", "moment_ns", "float32", "float16"):  # Python has no such values
            assert [cell_text(value) for value in array.to_pylist()] == cells

    check()


def test_numpy_columns_are_their_values() -> None:
    for column in (
        np.array([1, 2**62]),
        np.array([0.1, 1e20], np.float32),
        np.array([True, False]),
        np.array(["a", "é"]),
        np.array(["2024-01-31T00:00:00.5"], "M8[ms]"),
        np.ma.masked_array([1, 2], [False, True]),
    ):
        assert by_client({"x": column}) == [cell_text(value) for value in column]


def test_a_data_frame_keeps_its_integers() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pd.DataFrame({"x": pd.array([2**60 + 1, None], "Int64")})
    assert by_client(frame) == [b"1152921504606846977", b""]
    assert by_client(frame.astype("category")) == [b"1152921504606846977", b""]
    assert by_client(pd.DataFrame({"x": pd.array([True, None], "boolean")})) == [b"true", b""]
    assert by_client(pd.DataFrame({"x": pd.array([0.1, None], "Float32")})) == [b"0.1", b""]
    assert by_client(pd.DataFrame({"x": np.array([0.1], np.float32)})) == [b"0.1"]
    zone = pd.Series(pd.to_datetime(["2024-01-31T23:59:08.5", None])).dt.tz_localize("Asia/Tokyo")
    assert by_client(pd.DataFrame({"x": zone})) == [b"2024-01-31T14:59:08.5Z", b""]


WORDS = ColumnForm(False, (b"|",))


@pytest.mark.parametrize("values", [[100.0], [None, 7.0], [[1, 2.0]], np.array([1.0]), np.array([3], np.float32)])
def test_a_float_in_place_of_an_id_is_refused(values: Any) -> None:
    for data in ({"x": values}, [{"x": value} for value in values]):
        with pytest.raises(InvalidArgument, match=r"row \d, column x: .*the log may say (\d+) or \1\.0; give"):
            by_client(data, WORDS)
    with pytest.raises(InvalidArgument, match="the log may say"):
        by_client(pa.table({"x": pa.array([5.0])}), WORDS)


def test_other_floats_and_texts_pass() -> None:
    assert by_client({"x": [1.5, math.nan, math.inf, "100.0", 100]}, WORDS) == [b"1.5", b"", b"inf", b"100.0", b"100"]


def test_a_list_is_joined_as_the_log_joins_it() -> None:
    assert by_client([{"x": ["a", "b"]}], ColumnForm(True, (b", ",))) == [b"a, b"]
    for values in (["a|b"], [["a|b", "c"]][0]):
        with pytest.raises(InvalidArgument, match="holds the separator of lists"):
            by_client([{"x": values}])
    with pytest.raises(InvalidArgument, match=r"is neither .*: the column holds one value"):
        by_client([{"x": ["a"]}], ColumnForm(True))


def test_what_a_model_says_of_its_columns() -> None:
    word = {"kind": "categorical", "encoding": {"kind": "vocabulary"}}
    fields = [
        {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}},
        {"name": "t", "kind": "time", "format": "epoch", "part": "hour"},
        {"name": "both", "kind": "numeric", "encoding": {"kind": "value"}},
        {"name": "word_of_both", "column": "both", **word},
        {"name": "hashed", "kind": "categorical", "encoding": HASH},
        {"name": "ids", "kind": "categorical", "encoding": {"kind": "ids", "size": 5}},
        {"name": "whole", **word},
        {"name": "floats", **word},
        {"name": "mixed", **word},
        {"name": "tags", **word, "separator": ",", "max_values": 2},
    ]
    counts = {
        "word_of_both": {b"1.0": 1},
        "whole": {b"5": 1, b"x": 2},
        "floats": {b"5.0": 1, b"2.5": 1},
        "mixed": {b"5.0": 1, b"5": 1},
        "tags": {b"a": 1},
    }
    for layout, lists, tags in (
        ({"kind": "delimited"}, (), (b",",)),
        ({"kind": "jsonl", "list_separator": ";"}, (b";",), (b";", b",")),
    ):
        content = {"name": "s", "format": layout, "fields": fields}
        forms = column_forms(resolve(FeatureSchema.model_validate(content), Analysis(counts, {})))
        assert {name for name, form in forms.items() if form.takes_floats} == {"n", "t", "both", "floats"}
        assert (forms["n"].separators, forms["tags"].separators) == (lists, tags)
        assert ColumnForm.from_name(forms["tags"].to_name()) == forms["tags"]
    for other in ("", "batch", "7", "{}", '{"floats": true, "lists": [1]}'):
        assert ColumnForm.from_name(other) is None


def test_the_client_needs_nothing_of_the_library() -> None:
    code = (
        "import sys, serving.client; heavy = {'afm_ctr', 'pyarrow', 'tensorflow', 'pandas'}; "
        "print([name for name in sys.modules if name.split('.')[0] in heavy])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
