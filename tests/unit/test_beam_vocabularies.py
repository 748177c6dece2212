"""Counts that are filed in parts and merged part by part give the vocabularies that counting in one place gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_ctr.schema import FeatureSchema, ResolvedSchema, VocabularySpace
from beam_jobs import PrepareOptions, prepare, vocabularies
from beam_jobs.passes import Passes
from beam_jobs.vocabularies import Merging, packed, parts_for


def space(**content: Any) -> VocabularySpace:
    return VocabularySpace.model_validate({"kind": "vocabulary", **content})


def zipf(rows: int, seed: int) -> list[bytes]:
    return [b"v%d" % i for i in np.random.default_rng(seed).zipf(1.3, rows)]


@pytest.mark.parametrize("parts", [1, 7])
def test_merged_parts_hold_what_a_vocabulary_may_take(tmp_path: Path, parts: int) -> None:
    chunks = [Counter(zipf(400, seed)) for seed in range(20)]
    paths = []
    for number, counts in enumerate(chunks):
        paths.append(str(tmp_path / str(number)))
        Path(paths[-1]).write_bytes(packed({"a": counts, "b": {b"": 1}, "c": counts}, parts))
    merging = Merging(paths, {"a": space(min_count=3), "b": space(min_count=2), "c": space(top=50)})
    found = [merging.merge(part) for part in range(parts)]
    whole = sum(chunks, Counter[bytes]())
    frequent = {value: count for value, count in whole.items() if count >= 3}
    together = {value: count for part in found for value, count in part["a"].items()}
    assert together == frequent and sum(len(part["a"]) for part in found) == len(frequent) > 50
    kept = {value: count for part in found for value, count in part["c"].items()}
    top = sorted(whole.items(), key=lambda entry: (-entry[1], entry[0]))[:50]
    assert kept.items() >= dict(top).items() and all(len(part["c"]) <= 50 for part in found)
    assert sum(count for part in found for count in part["b"].values()) == 20
    if parts > 1:
        assert max(len(part["a"]) for part in found) < len(frequent) / 2


def test_the_number_of_parts_grows_with_the_input() -> None:
    assert [parts_for(size) for size in (0, 1 << 20, 1 << 30, 1 << 50)] == [1, 1, 17, 256]


def test_a_pass_of_its_own_merges_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    stages: list[str] = []
    run = Passes.run

    def noted(self: Passes, stage: str, *rest: Any, **more: Any) -> Any:
        stages.append(stage)
        return run(self, stage, *rest, **more)

    monkeypatch.setattr(Passes, "run", noted)
    found = []
    for little, part_bytes in ((1 << 24, 1 << 26), (0, 2000)):
        monkeypatch.setattr(vocabularies, "_LITTLE", little)
        monkeypatch.setattr(vocabularies, "_PART_BYTES", part_bytes)
        out = tmp_path / str(little)
        summary = prepare(
            PrepareOptions(schema=spec, inputs=[str(tmp_path / "log.csv")], output=str(out), chunk_bytes=4000)
        )
        assert summary.metrics["analysed_rows"] == summary.metrics["rows"] == 3000 == summary.metrics["lines"]
        found.append((ResolvedSchema.load(out).vocabularies["site"], summary.schema_id))
    assert found[0] == found[1]
    expected = [value for value, count in Counter(cells).items() if count >= 2]
    assert sorted(found[0][0]) == sorted(expected)
    assert stages == ["count", "analyse", "convert", "count", "analyse", "vocabularies", "convert"]
