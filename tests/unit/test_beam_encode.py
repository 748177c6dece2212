"""Lines cut by TensorFlow and lines cut by Python give the same ids."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr.rawlog import LineParser
from afm_ctr.schema import Analysis, FeatureSchema, resolve
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
    assert left_out.left_out == (not (quote and b'"' in b"".join(lines)))
    assert [reject.reason for reject in left_out.rejects] == [reject.reason for reject in whole.rejects]
    if len(whole):
        for one, other in zip(encoder()(left_out, parser), encoder()(whole, parser), strict=True):
            assert one.tolist() == other.tolist()
