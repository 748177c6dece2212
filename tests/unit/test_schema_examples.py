"""The example schemas on the first lines of the data that they are for."""

from __future__ import annotations

import csv
import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from reference_transform import transform_row

from afm_ctr.analysis import Analysis, Analyzer, spec_needs_analysis
from afm_ctr.features import FeatureTransform
from afm_ctr.rawlog.side import read_side_tables
from afm_ctr.schema import LIBFM_COLUMN, DelimitedFormat, FeatureSchema, resolve

DATA = {
    "criteo": "criteo/criteo_120k.tsv.gz",
    "avazu": "avazu/avazu_9999.csv.gz",
    "movielens-100k": "movielens-100k/u.data",
    "telco": "telco/WA_Fn-UseC_-Telco-Customer-Churn.csv",
    "frappe": "frappe/frappe.train.libfm.gz",
}
# slots, pairs, and what the label's texts are
EXPECTED = {
    "criteo": (39, 741, {"0", "1"}),
    "avazu": (24, 276, {"0", "1"}),
    "movielens-100k": (14, 91, {"1", "2", "3", "4", "5"}),
    "telco": (19, 171, {"Yes", "No"}),
    "frappe": (10, 45, {"-1", "1"}),
}


@pytest.fixture(params=sorted(DATA))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def spec(root: Path, name: str) -> FeatureSchema:
    return FeatureSchema.load(root / "examples" / name / "schema.yaml")


def test_loads(spec: FeatureSchema, name: str):
    assert spec.name == name
    assert spec_needs_analysis(spec) is (name in ("movielens-100k", "telco"))


def lines_of(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(newline="") as stream:
        yield from (line.rstrip("\r\n") for line in stream)


def columns_of(spec: FeatureSchema, lines: Iterator[str]) -> dict[str, np.ndarray]:
    """A plain reading of the log, by the standard library."""
    if not isinstance(spec.format, DelimitedFormat):
        pairs = [line.split(" ", 1) for line in lines]
        return {
            name: np.array([p[i].encode() for p in pairs], object) for i, name in enumerate(("label", LIBFM_COLUMN))
        }
    quoting = csv.QUOTE_MINIMAL if spec.format.quote else csv.QUOTE_NONE
    table = list(csv.reader(lines, delimiter=spec.format.delimiter, quoting=quoting))
    names = table.pop(0) if spec.format.header else list(spec.format.names)
    return {name: np.array([row[i].encode() for row in table], object) for i, name in enumerate(names)}


def test_reads_the_real_data(spec: FeatureSchema, name: str, root: Path, shared_data: Path):
    path = shared_data / DATA[name]
    if not path.exists():
        pytest.skip(f"{DATA[name]} is not among the real data sets here")
    columns = columns_of(spec, itertools.islice(lines_of(path), 1001))
    tables = read_side_tables(spec, root / "examples" / name)
    raw = tables.join(columns) if tables else {column: columns[column] for column in spec.raw_columns}
    analyzer = Analyzer(spec, 0)
    analyzer.add(raw, 0)
    schema = resolve(spec, Analysis.merge([analyzer.partial()]))
    encoded = FeatureTransform(schema)({column: tf.constant(texts) for column, texts in raw.items()})
    slots, pairs, labels = EXPECTED[name]

    assert schema.num_slots == slots == encoded.feature_ids.shape[1]
    assert len(schema.pairs) == pairs
    assert spec.label is not None
    assert spec.label.negative is not None
    assert {text.decode() for text in columns[spec.label.column]} <= labels
    assert labels == {*spec.label.positive, *spec.label.negative}
    assert not encoded.bad.numpy().any()
    ids = encoded.feature_ids.numpy()
    assert ids.max() < schema.feature_size
    # No cell is without an id: these schemas give missing cells one, or have none; but films have few genres.
    genres = np.array([slot.field == "genres" for slot in schema.slots])
    assert ids[:, ~genres].min() > 0
    assert not genres.any() or (0 < (ids[:, genres] == 0).mean() < 1 and ids[:, genres][:, 0].min() > 0)
    for row in range(0, len(ids), 50):
        cells = {column: texts[row] for column, texts in raw.items()}
        expected_ids, expected_vals, _ = transform_row(schema, cells)
        assert ids[row].tolist() == expected_ids
        np.testing.assert_array_max_ulp(encoded.feature_vals[row].numpy(), np.array(expected_vals, np.float32), 1)


def test_frappe_covers_its_ids(root: Path):
    spec = FeatureSchema.load(root / "examples" / "frappe" / "schema.yaml")
    assert resolve(spec, Analysis.empty()).feature_size == 5382 + 1


def test_blank_charges_are_nothing_paid(root: Path, shared_data: Path):
    spec = FeatureSchema.load(root / "examples" / "telco" / "schema.yaml")
    columns = columns_of(spec, lines_of(shared_data / DATA["telco"]))
    raw = {column: columns[column] for column in spec.raw_columns}
    analyzer = Analyzer(spec, 0)
    analyzer.add(raw, 0)
    schema = resolve(spec, Analysis.merge([analyzer.partial()]))
    blank = np.flatnonzero(raw["TotalCharges"] == b" ")
    assert len(blank) == 11
    encoded = FeatureTransform(schema)({column: tf.constant(texts[blank]) for column, texts in raw.items()})
    slot = next(slot.index for slot in schema.slots if slot.field == "TotalCharges")
    known = schema.statistics["TotalCharges"]
    np.testing.assert_allclose(encoded.feature_vals.numpy()[:, slot], -known.mean / known.std, rtol=1e-6)
    assert not encoded.bad.numpy().any()
