"""Statistics of fields: against counting by hand, whatever the division of the rows; and drift."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from afm_ctr import statistics
from afm_ctr.features import FeatureTransform
from afm_ctr.rawlog.spans import CellSpans
from afm_ctr.schema import Analysis, FeatureSchema, NumberFacts, ResolvedSchema, resolve
from afm_ctr.statistics import distinct, drift

WORDS = [b"w%d" % i for i in range(400)]


@pytest.fixture(scope="module")
def schema() -> ResolvedSchema:
    spec = {
        "name": "s",
        "format": {"kind": "delimited"},
        "label": {"column": "y"},
        "spaces": {"word": {"kind": "hash", "buckets": 5000}},
        "fields": [
            {"name": "a", "kind": "categorical", "space": "word", "missing": "own"},
            {"name": "b", "kind": "categorical", "space": "word"},
            {"name": "m", "kind": "categorical", "encoding": {"kind": "vocabulary", "min_count": 2}, "separator": "|",
             "max_values": 2},
            {"name": "i", "kind": "categorical", "encoding": {"kind": "ids", "size": 10}},
            {"name": "n", "kind": "numeric", "encoding": {"kind": "buckets", "quantiles": 4}},
            {"name": "v", "column": "n", "kind": "numeric", "encoding": {"kind": "value"}, "missing": {"value": 0}},
            {"name": "h", "column": "t", "kind": "time", "format": "epoch", "part": "hour"},
            {"name": "x", "kind": "cross", "columns": ["a", "i"], "encoding": {"kind": "hash", "buckets": 100_000}},
        ],
    }  # fmt: skip
    counts = {"m": {word: 2 for word in WORDS[:3]}}
    return resolve(FeatureSchema.model_validate(spec), Analysis(counts, {"n": NumberFacts(4, 0, 1, np.arange(4.0))}))


@pytest.fixture(scope="module")
def rows(schema: ResolvedSchema) -> dict[str, np.ndarray]:
    """900 rows with about a tenth of every column missing."""
    rng = np.random.default_rng(3)
    count = 900

    def column(cells: list[bytes]) -> np.ndarray:
        texts = np.array([b"" if rng.random() < 0.1 else cell for cell in cells], object)
        return texts

    def word() -> bytes:
        return WORDS[min(rng.geometric(0.01), 399)]

    raw = {
        "a": column([word() for _ in range(count)]),
        "b": column([word() for _ in range(count)]),
        "m": column([b"|".join(WORDS[k] for k in rng.integers(0, 5, rng.integers(1, 4))) for _ in range(count)]),
        "i": column([b" %d" % k for k in rng.integers(0, 10, count)]),
        "n": column([b"%d.5" % k for k in rng.integers(-50, 50, count)]),
        "t": column([b"%d" % (k * 3600) for k in rng.integers(0, 7, count)]),
    }
    labels = (rng.random(count) < 0.3).astype(np.float32)
    return {**raw, "labels": labels, "ids": FeatureTransform(schema)(raw).feature_ids.numpy()}


def gathered(
    schema: ResolvedSchema, rows: dict[str, np.ndarray], cuts: list[int], sample: int
) -> statistics.DataStatistics:
    count = len(rows["labels"])
    bounds = [0, *cuts, count]
    parts = []
    for start, end in itertools.pairwise(bounds):
        collector = statistics.Collector(schema, count, sample)
        for at in range(start, end, 64):
            mine = np.arange(at, min(at + 64, end))
            collector.add(rows["ids"][mine], rows["labels"][mine])
            some = mine[collector.sampled(mine)]
            cells = {name: rows[name][some] for name in schema.raw_columns}
            collector.add_sample(some, cells, rows["ids"][some], rows["labels"][some])
        parts.append(collector.partial())
    return merged(schema, *parts)


def merged(schema: ResolvedSchema, *parts: statistics.PartialStatistics) -> statistics.DataStatistics:
    whole = statistics.PartialStatistics.empty(len(schema.spec.fields))
    for part in parts:
        whole.add(statistics.PartialStatistics.from_bytes(part.to_bytes()))
    return whole.finish(schema, "train")


def test_against_counting_by_hand(schema, rows):
    found = gathered(schema, rows, [100, 500], 10_000)
    assert (found.rows, found.sampled) == (900, 900)
    assert found.positives == found.sampled_positives == int(rows["labels"].sum())
    for name in "ab":
        counts = Counter(cell for cell in rows[name].tolist() if cell)
        field = found.field(name)
        assert field.missing == sum(not cell for cell in rows[name]) and field.count == 900 - field.missing
        assert field.missing_positives == sum(y > 0 for c, y in zip(rows[name], rows["labels"], strict=True) if not c)
        assert (field.exact, field.distinct, field.complete) == (True, len(counts), False)
        assert len(field.top) == statistics.TOP_VALUES
        for value, count, positives in field.top:
            assert count == counts[value.encode()] >= field.top[-1].rows
            mine = [y for cell, y in zip(rows[name], rows["labels"], strict=True) if cell == value.encode()]
            assert positives == sum(mine)
    assert {top.value for top in found.field("i").top} == set("0123456789")  # stripped, as the transform does
    pieces = Counter(p for cell in rows["m"] for p in set([p for p in cell.split(b"|") if p][:2]))
    assert {top.value.encode(): top.rows for top in found.field("m").top} == pieces
    assert {top.value for top in found.field("h").top} == set("0123456")
    crossed = Counter(b"\x1f".join(pair) for pair in zip(rows["a"], rows["i"], strict=True) if all(pair))
    assert found.field("x").distinct == len({(a, i.strip()) for a, i in (c.split(b"\x1f") for c in crossed)})
    assert found.field("x").missing == 900 - sum(crossed.values())


def test_numbers(schema, rows):
    found = gathered(schema, rows, [], 10_000)
    numbers = np.sort([float(cell) for cell in rows["n"] if cell])
    for name in "nv":
        field = found.field(name)
        assert field.missing == 900 - len(numbers)  # of v from the sample, which is all rows here
        assert field.distinct == len(set(numbers))
        assert (field.quantiles[0], field.quantiles[-1]) == (numbers[0], numbers[-1])
        assert field.quantiles == [numbers[j * (len(numbers) - 1) // 100] for j in range(101)]
    assert found.field("a").quantiles == []


def test_cells_in_one_text_are_sampled_like_columns(schema, rows):
    columns = {name: rows[name] for name in schema.raw_columns}
    spans = CellSpans.of({"unused": [b"x"] * 900, **columns})
    found = []
    for whole in (columns, spans):
        collector = statistics.Collector(schema, 900)
        cells = whole.texts(collector.sample_columns) if whole is spans else columns
        collector.add(rows["ids"], rows["labels"])
        collector.add_sample(np.arange(900), cells, rows["ids"], rows["labels"])
        found.append(merged(schema, collector.partial()))
    assert found[0] == found[1] == gathered(schema, rows, [], 10_000)


@pytest.mark.parametrize("cells", [[b"0", b"-0"], [b"-0", b"0"], [b"-0.0"]])
def test_a_quantile_is_never_minus_zero(cells):
    spec = {"name": "s", "format": {"kind": "delimited"}, "fields": [
        {"name": "n", "kind": "numeric", "encoding": {"kind": "value"}}]}  # fmt: skip
    number = resolve(FeatureSchema.model_validate(spec), Analysis.empty())
    collector = statistics.Collector(number, len(cells))
    ids, labels = np.ones((len(cells), 1), np.int64), np.zeros(len(cells))
    collector.add(ids, labels)
    collector.add_sample(np.arange(len(cells)), {"n": np.array(cells, object)}, ids, labels)
    assert str(merged(number, collector.partial()).field("n").quantiles) == str([0.0] * 101)


@pytest.mark.parametrize("sample", [10_000, 300])
def test_the_division_of_the_rows_does_not_matter(schema, rows, sample):
    whole = gathered(schema, rows, [], sample)
    assert whole == gathered(schema, rows, [1, 7, 450, 899], sample)
    assert statistics.DataStatistics.model_validate_json(whole.model_dump_json()) == whole


def test_a_sample_of_wide_rows_is_bounded_however_they_are_divided(schema, rows, monkeypatch):
    everything = gathered(schema, rows, [], 10_000)
    monkeypatch.setattr("afm_ctr.statistics.row_sample.MOST_BYTES", 4000)
    whole = gathered(schema, rows, [], 10_000)
    assert 100 < whole.sampled < 500 and whole.rows == 900  # rows of 5 to 30 bytes
    assert whole.field("a").missing == everything.field("a").missing
    assert whole.field("n").distinct == pytest.approx(everything.field("n").distinct, rel=0.2)
    for cuts in ([450], [1, 7, 450, 899], list(range(30, 900, 30))):
        assert gathered(schema, rows, cuts, 10_000) == whole
    monkeypatch.setattr("afm_ctr.statistics.row_sample.MOST_BYTES", 1)
    assert gathered(schema, rows, [1, 450], 10_000).sampled == 1


def test_a_sample_estimates_what_it_does_not_count(schema, rows):
    whole, part = gathered(schema, rows, [], 10_000), gathered(schema, rows, [], 300)
    assert 200 < part.sampled < 400
    for name in "abmix":
        mine, true = part.field(name), whole.field(name)
        assert (mine.count, mine.missing, mine.missing_positives) == (
            true.count,
            true.missing,
            true.missing_positives,
        )
        assert not true.exact or mine.distinct == pytest.approx(true.distinct, rel=0.08)
    assert part.field("v").missing == pytest.approx(whole.field("v").missing, abs=50)
    assert (part.field("i").exact, part.field("a").exact) == (True, False)


def test_no_rows_and_no_labels(schema, rows):
    empty = merged(schema, statistics.Collector(schema, 0).partial())
    assert (empty.rows, empty.sampled, empty.field("n").quantiles, empty.field("a").missing_share) == (0, 0, [], 0)
    unlabelled = gathered(schema, {**rows, "labels": np.full(900, np.nan, np.float32)}, [], 300)
    assert unlabelled.positives is None and unlabelled.sampled_positives == 0


def test_long_and_odd_values():
    spec = {"name": "s", "format": {"kind": "delimited"}, "fields": [
        {"name": "a", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 10}}]}  # fmt: skip
    small = resolve(FeatureSchema.model_validate(spec), Analysis.empty())
    collector = statistics.Collector(small, 2)
    ids = np.array([[1], [2]])
    collector.add(ids, np.zeros(2))
    collector.add_sample(np.arange(2), {"a": np.array(["ä".encode() * 1000, b"\0\n"], object)}, ids, np.zeros(2))
    found = merged(small, collector.partial())
    assert [top.value for top in found.field("a").top] == ["\0\n", "ä" * 48 + "…"]


@pytest.mark.parametrize("true", [0, 5, 1000, 50_000])
def test_distinct_by_hashes(true):
    parts = [distinct.least_hashes(np.arange(start, true, 2)) for start in range(2)]
    joined = distinct.join_hashes(*parts)
    assert joined.tolist() == distinct.least_hashes(np.arange(true)).tolist()
    found = distinct.count_by_hashes(joined)
    assert found == pytest.approx(true, rel=0.0 if true < distinct.KEPT else 0.1)


def test_distinct_behind_buckets_and_by_sample():
    rng = np.random.default_rng(0)
    used = len(set(rng.integers(0, 1000, 1500).tolist()))
    assert distinct.count_behind_buckets(used, 1000) == pytest.approx(1500, rel=0.2)
    assert np.isfinite(distinct.count_behind_buckets(1000, 1000))
    assert distinct.count_by_sample([1, 1, 2, 9], 0.25) == 2 * 2 + 2  # sqrt(4) for each seen once


def shifted(schema, rows, **columns) -> statistics.DataStatistics:
    raw = {name: columns.get(name, rows[name]) for name in schema.raw_columns}
    return gathered(
        schema,
        {**raw, "labels": rows["labels"], "ids": FeatureTransform(schema)(raw).feature_ids.numpy()},
        [],
        10_000,
    )


def test_no_drift_between_halves(schema, rows):
    halves = [{name: cells[start::2] for name, cells in rows.items()} for start in range(2)]
    found = drift(*(gathered(schema, half, [], 10_000) for half in halves))
    assert found.flagged == ()
    same = gathered(schema, rows, [], 10_000)
    assert all(field.psi == 0 for field in drift(same, same).fields)


def test_drift_is_found_and_flagged_first(schema, rows):
    before = gathered(schema, rows, [], 10_000)
    emptied = np.where(np.arange(900) % 3 == 0, b"", rows["b"]).astype(object)
    moved = np.array([b"%g" % (float(cell) + 30) if cell else b"" for cell in rows["n"]], object)
    new = np.where(np.arange(900) % 9 == 0, b"60", rows["m"]).astype(object)
    found = drift(shifted(schema, rows, b=emptied, n=moved, m=new), before)
    flags = {field.name: field.flags for field in found.flagged}
    assert set(flags) == {"b", "n", "v", "m"}
    assert flags["n"] == flags["v"] == ("large change",)
    assert "more missing" in flags["b"] and "new values" in flags["m"]
    assert {field.name for field in found.fields[:4]} == set(flags)
    new_share = next(field.new_share for field in found.fields if field.name == "m")
    assert new_share == pytest.approx(100 / 900)


def test_the_index_by_hand():
    def one(counts: dict[str, int], rows: int) -> statistics.DataStatistics:
        top = [statistics.TopValue(value, n, 0) for value, n in counts.items()]
        present = sum(counts.values())
        field = statistics.FieldStatistics(
            name="f", kind="categorical", encoding="hash", count=present, missing=rows - present, distinct=len(top),
            exact=True, values=present, top=top, complete=True,
        )  # fmt: skip
        return statistics.DataStatistics(
            split="train", rows=rows, positives=0, sampled=rows, sampled_positives=0, fields=[field]
        )

    (found,) = drift(one({"a": 60, "b": 20}, 100), one({"a": 30, "b": 60}, 100)).fields
    # Buckets a, b, all others and missing; half a row is added to each.
    p = np.array([60.5, 20.5, 0.5, 20.5]) / 102
    q = np.array([30.5, 60.5, 0.5, 10.5]) / 102
    assert found.psi == pytest.approx(float(((p - q) * np.log(p / q)).sum()), rel=1e-12)
    assert found.buckets == 4 and found.flags == ("large change", "more missing")
    assert found.missing_now == pytest.approx(0.2)


def test_fields_that_are_in_one_only(schema, rows):
    now = gathered(schema, rows, [], 10_000)
    fewer = now.model_copy(update={"fields": now.fields[1:]})
    assert [(f.name, f.flags) for f in drift(fewer, now).flagged] == [("a", ("not there now",))]
    assert [(f.name, f.flags) for f in drift(now, fewer).flagged] == [("a", ("not in the baseline",))]
