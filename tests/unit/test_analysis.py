"""The analysis pass: what is counted, and that order never matters."""

from __future__ import annotations

import math
import pickle
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_beam_encode import NUMBER, NUMBERS

from afm_ctr import analysis, native
from afm_ctr.analysis import Analysis, Analyzer, ChunkAnalysis, spec_needs_analysis
from afm_ctr.errors import UserError
from afm_ctr.features import FeatureTransform
from afm_ctr.features.cell_ops import is_one_of, parse_numbers
from afm_ctr.native.plain import PREPARING
from afm_ctr.schema import FeatureSchema, analysis_results, resolve

SPEC = FeatureSchema.model_validate(
    yaml.safe_load("""
name: s
format: {kind: delimited}
spaces: {word: {kind: vocabulary}}
fields:
  - {name: a, kind: categorical, space: word}
  - {name: b, kind: categorical, space: word, separator: "|", max_values: 2}
  - {name: v, column: n, kind: numeric, encoding: {kind: value, log: true, standardise: true}}
  - {name: q, column: n, kind: numeric, encoding: {kind: buckets, quantiles: 4}}
  - {name: i, kind: categorical, encoding: {kind: ids, size: 9}, separator: ",", max_values: 2}
""")
)
CELL = st.text(alphabet=" |,\n\v19x-", max_size=8).map(str.encode)


def rows(**columns: list[bytes]) -> dict[str, np.ndarray]:
    size = len(next(iter(columns.values())))
    return {name: np.array(columns.get(name, [b""] * size), object) for name in SPEC.raw_columns}


def analysed(*batches: dict[str, np.ndarray], chunk: int = 0) -> ChunkAnalysis:
    analyzer = Analyzer(SPEC, chunk)
    first = 0
    for batch in batches:
        analyzer.add(batch, first)
        first += len(batch["a"])
    return analyzer.partial()


def test_a_constant_column_is_not_blown_up():
    column = {"name": "v", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}}
    spec = FeatureSchema.model_validate({"name": "s", "format": {"kind": "delimited"}, "fields": [column]})
    for text, count in [(b"0.1", 3), (b"1700000000.1", 1000)]:  # the rounded means are not quite these numbers
        analyzer = Analyzer(spec, 0)
        analyzer.add({"v": np.array([text] * count, object)}, 0)
        assert resolve(spec, Analysis.merge([analyzer.partial()])).statistics["v"].std == 1.0


def test_counts():
    found = Analysis.merge([analysed(rows(a=[b"x", b"", b"y", b"x"], b=[b"x||y|z", b"", b"|", b"w"]))])
    assert found.counts == {"word": {b"x": 3, b"y": 2, b"w": 1}}  # z is beyond max_values


@pytest.mark.parametrize("form", ["native", "python"])
@given(cells=st.lists(st.tuples(CELL, NUMBER), min_size=1, max_size=20))
@example(cells=[(b"", number.encode()) for number in NUMBERS])
@example(
    cells=[(cell, b"") for cell in (b"1, 2,3", b",,8", b"9", b"1,9", b"1,2,9", b"x", b"1" * 19, b"+1", b" \v3\f")]
)
@settings(max_examples=15, deadline=None)
def test_cells_are_read_as_the_transform_reads_them(cells: list[tuple[bytes, bytes]], form: str):
    if form == "native" and not native.prepares():
        pytest.skip("the library that prepares rows is not built")
    more = {"missing_values": ["-1", "1 "], "spaces": {"word": {"kind": "vocabulary"}}}
    spec = FeatureSchema.model_validate(SPEC.model_dump(exclude_none=True) | more)
    columns = {"a": [cell for cell, _ in cells], "n": [number for _, number in cells]}
    texts = {name: np.array(columns.get(name, columns["a"]), object) for name in spec.raw_columns}
    analyzer = Analyzer(spec, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREPARING, form)
        analyzer.add(texts, 0)
    found = analyzer.partial()
    numbers = parse_numbers(tf.where(is_one_of(texts["n"], (b"-1", b"1 ")), "", texts["n"]))
    encoded = FeatureTransform(resolve(spec, Analysis.merge([found])))(texts)
    kept = ~(numbers.bad.numpy() | encoded.bad.numpy()[:, 4])
    assert found.numbers["q"].sample.tolist() == numbers.values.numpy()[kept & numbers.ok.numpy()].tolist()
    own = [cell for cell, good in zip(columns["a"], kept, strict=True) if good and cell not in (b"-1", b"1 ")]
    pieces = [piece for cell in own for piece in [p for p in cell.split(b"|") if p not in (b"", b"-1", b"1 ")][:2]]
    expected = Counter(cell for cell in [*own, *pieces] if cell and b"\n" not in cell and b"\r" not in cell)
    assert found.counts == {"word": expected}


def test_values_with_line_breaks_are_left_out():
    found = Analysis.merge([analysed(rows(a=[b"x\r", b"x\ny", b" x"]))])
    assert found.counts == {"word": {b" x": 1}}


def test_numbers():
    found = Analysis.merge([analysed(rows(n=[b"0", b" 3 ", b"", b"-1e1"]), rows(n=[b"8"]))])
    logs = np.array([0, math.log(4), -math.log(11), math.log(9)])
    assert found.numbers["v"].count == 4
    assert found.numbers["v"].mean == pytest.approx(logs.mean(), rel=1e-14)
    assert found.numbers["v"].std == pytest.approx(logs.std(), rel=1e-14)
    assert found.numbers["q"].sample.tolist() == [-10.0, 0.0, 3.0, 8.0]
    assert resolve(SPEC, found).statistics["q"].boundaries == (0.0, 3.0, 8.0)


def test_rows_that_will_be_rejected_do_not_count():
    batch = rows(a=[b"good", b"bad1", b"bad2", b"bad3", b"fine"], n=[b"1", b"x", b"2", b"3", b"4"])
    batch["i"] = np.array([b"8", b"1", b"9", b"1,x", b"1,2,x"], object)
    found = Analysis.merge([analysed(batch)])
    assert found.counts["word"] == {b"good": 1, b"fine": 1}
    assert found.numbers["q"].sample.tolist() == [1.0, 4.0]


def chunk_of(number: int, size: int, step: int) -> ChunkAnalysis:
    rng = np.random.default_rng(number)
    batch = rows(
        a=[b"w%d" % w for w in rng.zipf(1.5, size)],
        b=[b"w%d|v%d" % tuple(w) for w in rng.integers(0, 9, (size, 2))],
        n=[b"%.4f" % x for x in rng.lognormal(3, 2, size)],
    )
    return analysed(*({k: v[i : i + step] for k, v in batch.items()} for i in range(0, size, step)), chunk=number)


@pytest.mark.parametrize("limit", [10**5, 500])
def test_order_and_grouping_never_matter(monkeypatch, limit):
    monkeypatch.setattr(analysis_results, "SAMPLE_LIMIT", limit)
    parts = (chunk_of(number, 120, 120) for number in range(8))  # taken one by one, never all at once
    others = [chunk_of(number, 120, 77) for number in np.random.default_rng(0).permutation(8).tolist()]
    once = resolve(SPEC, Analysis.merge(parts))
    again = resolve(SPEC, Analysis.merge([ChunkAnalysis.join(others[:4]), ChunkAnalysis.join(others[4:])]))
    assert once.id == again.id
    assert once.statistics == again.statistics


def test_chunks_of_any_size_give_the_same_schema():
    """As they differ between a frame in memory, a log of one's own pipeline and the chunks of a file."""
    numbers = np.random.default_rng(5).lognormal(3, 2, 300)
    batch = rows(n=[b"%.9f" % x for x in numbers])
    ids = set()
    for size in (300, 299, 77, 13):
        pieces = [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, 300, size)]
        ids.add(resolve(SPEC, Analysis.merge(analysed(p, chunk=number) for number, p in enumerate(pieces))).id)
    assert len(ids) == 1


def test_a_sample_stands_for_all(monkeypatch):
    monkeypatch.setattr(analysis_results, "SAMPLE_LIMIT", 2000)
    parts = [chunk_of(number, 2000, 2000) for number in range(5)]
    assert all(len(part.numbers["q"].sample) == 2000 for part in parts)
    found = Analysis.merge(parts).numbers["q"]
    assert len(found.sample) == 2000
    assert found.count == 10000
    # The median of a lognormal(3, 2) is e³; a sample of 2,000 has it within about 2·1.25/√2000 on the log scale.
    assert math.log(np.median(found.sample)) == pytest.approx(3, abs=0.2)


def test_parts_travel():
    part = chunk_of(0, 100, 100)
    copy = pickle.loads(pickle.dumps(part))
    assert resolve(SPEC, Analysis.merge([copy])).id == resolve(SPEC, Analysis.merge([part])).id


def test_an_empty_train_split_still_resolves():
    schema = resolve(SPEC, Analysis.merge([Analyzer(SPEC, 0).partial()]))
    assert schema.vocabularies == {"word": ()}
    assert (schema.statistics["v"].mean, schema.statistics["v"].std) == (0.0, 1.0)
    assert schema.statistics["q"].boundaries == ()


def test_a_column_that_never_varies():
    schema = resolve(SPEC, Analysis.merge([analysed(rows(n=[b"5", b"5"]))]))
    assert schema.statistics["v"].std == 1.0


def test_numbers_too_large_to_standardise():
    spec = SPEC.model_dump(mode="json")
    spec["fields"][2]["encoding"]["log"] = False
    spec = FeatureSchema.model_validate(spec)
    analyzer = Analyzer(spec, 0)
    analyzer.add(rows(n=[b"1e308", b"-1e308", b"1e308"]), 0)
    with pytest.raises(UserError, match="field 'v': its numbers are too large to standardise"):
        resolve(spec, Analysis.merge([analyzer.partial()]))


@pytest.mark.parametrize(
    ("encoding", "number", "std", "fits"),
    [
        ({}, 3.4e38, 1.0, True),
        ({}, 1e300, 1.0, False),
        ({}, -1e39, 1.0, False),
        ({"log": True}, 1e300, 1.0, True),
        ({"standardise": True}, 1e300, 1e290, True),
        ({"standardise": True}, 3e38, 1e-3, False),
    ],
)
def test_the_number_for_missing_cells_is_one_that_a_slot_can_hold(encoding, number, std, fits):
    field = {"name": "v", "kind": "numeric", "encoding": {"kind": "value", **encoding}, "missing": {"value": number}}
    spec = FeatureSchema.model_validate({"name": "s", "format": {"kind": "delimited"}, "fields": [field]})
    found = Analysis(numbers={"v": analysis_results.NumberFacts(4, 0.0, std)})
    if fits:
        resolve(spec, found)
    else:
        with pytest.raises(UserError, match=r"field 'v': missing: \S+ the slot's value overflows float32; give a"):
            resolve(spec, found)


def test_who_needs_analysis():
    assert spec_needs_analysis(SPEC)
    hashed = {"name": "h", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 3}}
    square = {"name": "x", "kind": "numeric", "encoding": {"kind": "buckets", "log_square": True}}
    for field, needed in ((hashed, False), (square, False)):
        spec = FeatureSchema.model_validate({"name": "s", "format": {"kind": "delimited"}, "fields": [field]})
        assert spec_needs_analysis(spec) is needed
        assert resolve(spec, Analysis.empty()).feature_size > 1
    assert analysis.SAMPLE_LIMIT == 100_000
