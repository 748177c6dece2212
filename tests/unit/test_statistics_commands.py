"""Statistics in the manifest, and the commands that show them: tables, JSON, plots, drift, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from afm_ctr.cli import commands  # noqa: F401  (registers the sub-commands)
from afm_ctr.cli.app import app
from afm_ctr.errors import UserError
from afm_ctr.records import Manifest
from afm_ctr.records.manifest import MANIFEST_NAME
from afm_ctr.schema import FeatureSchema
from afm_ctr.statistics import DataStatistics
from beam_jobs import PrepareOptions, prepare

SPEC = {
    "name": "t",
    "format": {"kind": "delimited", "header": False, "columns": ["click", "price", "site", "note"]},
    "label": {"column": "click"},
    "fields": [
        {"name": "price", "kind": "numeric", "encoding": {"kind": "buckets", "quantiles": 3}},
        {"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}, "missing": "own"},
        {"name": "note", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 1000}},
    ],
}


def prepared(folder: Path, name: str, shift: float = 0.0, **options: Any) -> Path:
    rows = [
        f"{int(i % 4 == 0)},{'x' if i % 50 == 3 else i % 37 + shift},{f's{i % 3}' if i % 5 else ''},[i]$n{i}"
        for i in range(600)
    ]
    (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    out = folder / name
    inputs, schema = [str(folder / f"{name}.csv")], FeatureSchema.model_validate(SPEC)
    prepare(
        PrepareOptions(schema=schema, inputs=inputs, output=str(out), **{"max_reject_share": 1, "seed": 3} | options)
    )
    return out


def statistics_of(folder: Path) -> DataStatistics:
    found = Manifest.load(folder).statistics
    assert found is not None
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data"), "now")


def test_the_manifest_has_the_train_rows(data, tmp_path):
    found = statistics_of(data)
    assert (found.split, found.rows, found.sampled) == ("train", 588, 588)  # 12 of 600 have no price
    price, site, note = found.fields
    numbers = np.sort([i % 37 for i in range(600) if i % 50 != 3])
    assert (price.quantiles[0], price.quantiles[50], price.quantiles[-1]) == (0, numbers[587 * 50 // 100], 36)
    gone = [i for i in range(600) if i % 5 == 0 and i % 50 != 3]
    assert (site.missing, site.missing_positives) == (len(gone), sum(i % 4 == 0 for i in gone))
    assert {top.value for top in site.top} == {"s0", "s1", "s2"} and (site.distinct, site.exact) == (3, True)
    assert note.distinct == note.count == 588 and not note.complete
    assert found.positives == sum(i % 4 == 0 and i % 50 != 3 for i in range(600))


def test_chunks_do_not_matter_and_other_splits_do_not_count(data, tmp_path):
    whole = statistics_of(data)
    assert statistics_of(prepared(tmp_path, "cut", chunk_bytes=3000)) == whole
    half = statistics_of(prepared(tmp_path, "half", split="tail:0.5", max_reject_share=1))
    assert half.rows == 294 and half.fields[1].distinct == 3


def stats(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["stats", *map(str, arguments)])


def plain(text: str) -> str:
    """Without the breaks of lines that depend on how long the path of a test is."""
    return " ".join(text.split())


def test_the_table_and_json(data):
    result = stats(data)
    assert result.exit_code == 0 and "588 rows, 150 positive" in plain(result.stdout)
    assert "vocabulary" in result.stdout and "20.41%" in result.stdout
    found = json.loads(stats(data, "--json").stdout.splitlines()[-1])
    assert DataStatistics.model_validate(found["statistics"]) == statistics_of(data)
    assert (
        json.loads(stats(data / MANIFEST_NAME, "--json").stdout.splitlines()[-1])["statistics"] == found["statistics"]
    )


def test_the_data_set_is_named_once_in_either_way(data):
    assert stats("--data", data).stdout == stats(data).stdout
    for arguments in ((), (data, "--data", data)):
        assert "name one data set, as in afm-ctr stats --data" in str(stats(*arguments).exception)


def test_drift_and_the_page(data, tmp_path):
    moved = prepared(tmp_path, "moved", shift=20.0)
    result = stats(moved, "--baseline", data / MANIFEST_NAME, "--output", tmp_path / "page", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["flagged"] == ["price"] and found["drift"]["fields"][0]["name"] == "price"
    assert "large change" in plain(result.stdout) and "1 of 3 fields flagged" in plain(result.stdout)
    page = Path(found["plots"])
    text = page.read_text(encoding="utf-8")
    assert page.name == "statistics.html" and "default-src 'none'" in text
    assert text.count("<img") == 3 and text.count('<figure class="small">') == 3
    same = json.loads(stats(data, "--baseline", data, "--json").stdout.splitlines()[-1])
    assert same["flagged"] == [] and all(field["psi"] == 0 for field in same["drift"]["fields"])


def test_mistakes(data, tmp_path):
    assert "not a prepared data set" in str(stats(tmp_path).exception)
    manifest = Manifest.load(data).model_copy(update={"statistics": None})
    manifest.save(tmp_path)
    assert isinstance(stats(tmp_path).exception, UserError)
    assert "prepare the data again" in str(stats(data, "--baseline", tmp_path).exception)
    (tmp_path / "file").write_text("")
    assert "cannot write statistics.html in the folder" in str(
        stats(data, "--output", tmp_path / "file" / "page").exception
    )


def infer(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["infer-schema", *map(str, arguments)])


def test_infer_schema(data, tmp_path):
    log = data.parent / "now.csv"
    printed = infer("--input", log)
    assert printed.exit_code == 0 and printed.stdout.startswith("# A first schema")
    written = infer("--input", log, "--output", tmp_path / "s.yaml", "--name", "mine", "--json")
    assert written.exit_code == 0 and "left out" in written.stdout
    found = json.loads(written.stdout.splitlines()[-1])
    schema = FeatureSchema.load(tmp_path / "s.yaml")
    assert schema.name == "mine" == found["schema"]["name"] and schema.key == "c4"
    again = infer("--input", log, "--output", tmp_path / "s.yaml")
    assert isinstance(again.exception, UserError) and "--overwrite" in str(again.exception)
    assert infer("--input", log, "--output", tmp_path / "s.yaml", "--overwrite").exit_code == 0
    assert "not both" in str(infer("--input", log, "--label", "c1", "--no-label").exception)
