"""Lines cut by TensorFlow and lines cut by Python give the same ids."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.rawlog import LineParser, RowBatch
from afm_ctr.schema import Analysis, FeatureSchema, ParquetFormat, resolve
from beam_jobs.encode import Encoder

COLUMNS = ["z", "label", "a", "unused", "n"]
SCHEMA = FeatureSchema.model_validate(
    {
        "name": "t",
        "format": {"kind": "delimited", "delimiter": ";", "header": True},
        "label": {"column": "label", "negative": "*"},
        "fields": [
            {"name": "a", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 10**9}},
            {"name": "z", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 10**9}},
            {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}},
        ],
    }
)
CELL = st.text(alphabet=' \t,"#\0aé1.-', max_size=6).map(str.encode)


@cache
def encoder() -> Encoder:
    return Encoder(resolve(SCHEMA, Analysis.empty()))


@given(
    st.lists(st.lists(CELL, min_size=5, max_size=5), min_size=1, max_size=8), st.permutations(COLUMNS), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_tensorflow_cuts_plain_lines_as_python_does(rows: list[list[bytes]], order: list[str], quote: bool) -> None:
    spec = SCHEMA.model_copy(update={"format": SCHEMA.format.model_copy(update={"quote": quote})})
    # A few orders of columns are enough: each is a graph of its own.
    parser = LineParser(spec, ";".join(order if order[:2] == ["z", "n"] else COLUMNS).encode())
    lines = [b";".join(row) for row in rows] + [b"1;2;3", b""]
    left_out = parser.parse(lines, "f", 2, leave_columns=True)
    whole = parser.parse(lines, "f", 2)
    assert (left_out.plain is not None) == (not (quote and b'"' in b"".join(lines)))
    assert [reject.reason for reject in left_out.rejects] == [reject.reason for reject in whole.rejects]
    if len(whole):
        for one, other in zip(encoder()(left_out), encoder()(whole), strict=True):
            assert one.tolist() == other.tolist()


@given(st.lists(st.lists(CELL.map(bytes.decode), min_size=4, max_size=4), min_size=1, max_size=8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rows_of_arrow_are_cut_as_columns_are(rows: list[list[str]], separator: bool) -> None:
    cells = [[cell + "\x1f" * (separator and i == 0) for cell in row] for i, row in enumerate(rows)]
    spec = SCHEMA.model_copy(update={"format": ParquetFormat(kind="parquet")})
    table = pa.table({name: [row[i] for row in cells] for i, name in enumerate(["a", "z", "n", "label"])})
    parser = LineParser(spec, table.schema.serialize().to_pybytes())
    plain, whole = (parser.parse(RowBatch(table), "f", 1, leave_columns=leave) for leave in (True, False))
    assert (plain.plain is None) == separator and whole.plain is None
    assert plain.labels.tolist() == whole.labels.tolist() and plain.keys == whole.keys
    for one, other in zip(encoder()(plain), encoder()(whole), strict=True):
        assert one.tolist() == other.tolist()
    for row in range(len(rows)):
        assert parser.cells_of(plain, row) == parser.cells_of(whole, row)
    some = plain.take(np.array([len(rows) - 1]))
    assert encoder()(some).feature_ids.tolist() == encoder()(whole).feature_ids[-1:].tolist()
