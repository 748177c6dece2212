"""Counts that are filed in parts and merged part by part give the vocabularies that counting in one place gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from afm_ctr.schema import FeatureSchema, ResolvedSchema, VocabularySpace
from beam_jobs import PrepareOptions, files, prepare, vocabularies
from beam_jobs.results import Analysed, AnalysedChunks
from beam_jobs.runners import Engine
from beam_jobs.vocabularies import Merge, Place, ValueCounts, Vocabularies, parts_for, together


def space(**content: Any) -> VocabularySpace:
    return VocabularySpace.model_validate({"kind": "vocabulary", **content})


def zipf(rows: int, seed: int) -> list[bytes]:
    return [b"v%d" % i for i in np.random.default_rng(seed).zipf(1.3, rows)]


@pytest.mark.parametrize("parts", [1, 7])
def test_merged_parts_hold_what_a_vocabulary_may_take(tmp_path: Path, parts: int) -> None:
    chunks = [Counter(zipf(400, seed)) for seed in range(20)]
    findings = []
    for number, counts in enumerate(chunks):
        path = str(tmp_path / str(number))
        blocks = ValueCounts.from_counts({"a": counts, "b": {b"": 1}, "c": counts}).divided(parts)
        files.write(path, files.joined([block.to_bytes() for block in blocks]))
        findings.append(AnalysedChunks([Analysed(number, 400, 0, {}, path, parts)], []))
    spaces = {"a": space(min_count=3), "b": space(min_count=2), "c": space(top=50)}
    whole = sum(chunks, Counter[bytes]())
    frequent = {value: count for value, count in whole.items() if count >= 3}
    top = sorted(whole.items(), key=lambda entry: (-entry[1], entry[0]))[:50]

    def check(packed: list[tuple[int, bytes]]) -> None:
        found = [(part, ValueCounts.from_bytes(counts)) for part, counts in packed]
        assert sorted(part for part, _ in found) == list(range(parts))
        merged = [{name: dict(zip(*pairs, strict=True)) for name, pairs in part.of.items()} for _, part in found]
        assert together(part for _, part in found)["a"] == frequent
        assert sum(len(part["a"]) for part in merged) == len(frequent) > 50
        assert together(part for _, part in found)["c"].items() >= dict(top).items()
        assert all(len(part["c"]) <= 50 for part in merged)
        assert sum(count for part in merged for count in part["b"].values()) == 20
        if parts > 1:
            assert max(len(part["a"]) for part in merged) < len(frequent) / 2

    with Engine().pipeline() as pipeline:
        assert_that(pipeline | beam.Create(findings) | Vocabularies(spaces), check)


@given(groups=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=4), least=st.integers(1, 3))
def test_any_grouping_gives_the_same_counts(groups: list[list[int]], least: int) -> None:
    blocks = [Counter(zipf(30, seed)) for seed in range(6)]

    def held_counts(place: Place) -> ValueCounts:
        return ValueCounts.from_counts({"a": blocks[place[1]]})

    merge = Merge({"a": space(min_count=least)})
    held = []
    for group in groups:
        accumulator = merge.create_accumulator()
        for block in group:
            accumulator = merge.add_input(accumulator, ("", block))
        held.append(accumulator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabularies, "counts_at", held_counts)
        found = merge.extract_output(merge.merge_accumulators(held))
    whole = sum((blocks[block] for group in groups for block in group), Counter[bytes]())
    assert together([ValueCounts.from_bytes(found)])["a"] == {
        value: count for value, count in whole.items() if count >= least
    }


def test_the_number_of_parts_grows_with_the_input() -> None:
    assert [parts_for(size) for size in (0, 1 << 20, 1 << 30, 1 << 50)] == [1, 1, 17, 256]


def test_the_number_of_parts_changes_no_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = zipf(3000, 1)
    (tmp_path / "log.csv").write_bytes(b"".join(b"%d,%s\n" % (i % 2, cell) for i, cell in enumerate(cells)))
    spec = FeatureSchema.model_validate(
        {
            "name": "t",
            "format": {"kind": "delimited", "header": False, "columns": ["click", "site"]},
            "label": {"column": "click"},
            "fields": [{"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary", "min_count": 2}}],
        }
    )
    found = []
    for part_bytes in (1 << 26, 2000):
        monkeypatch.setattr(vocabularies, "_PART_BYTES", part_bytes)
        out = tmp_path / str(part_bytes)
        summary = prepare(
            PrepareOptions(schema=spec, inputs=[str(tmp_path / "log.csv")], output=str(out), chunk_bytes=4000)
        )
        assert summary.metrics["analysed_rows"] == summary.metrics["rows"] == 3000 == summary.metrics["lines"]
        found.append((ResolvedSchema.load(out).vocabularies["site"], summary.schema_id))
    assert found[0] == found[1]
    expected = [value for value, count in Counter(cells).items() if count >= 2]
    assert sorted(found[0][0]) == sorted(expected)
