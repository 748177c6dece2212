"""The same rows by way of Beam and in memory: the same ids, and in the same order the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afm_ctr.frames import FrameData, from_pandas
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.schema import FeatureSchema
from beam_jobs import PrepareOptions, prepare

pandas = pytest.importorskip("pandas", reason="pandas is not installed")

SPEC = {
    "name": "shop",
    "format": {"kind": "parquet"},
    "label": {"column": "clicked"},
    "fields": [
        {"name": "user", "kind": "categorical", "encoding": {"kind": "vocabulary", "min_count": 2, "oov": 2}},
        {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}},
        {
            "name": "price_bucket",
            "column": "price",
            "kind": "numeric",
            "encoding": {"kind": "buckets", "quantiles": 8},
        },
        {"name": "new", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 7}},
        {"name": "hour", "column": "at", "kind": "time", "format": "iso", "part": "hour"},
    ],
}
ROWS = 300


def test_ids_values_and_weights_are_those_of_beam(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "user": rng.zipf(1.6, ROWS) % 50,
            "price": np.where(rng.random(ROWS) < 0.2, np.nan, rng.lognormal(size=ROWS)),
            "new": pandas.array(rng.choice([True, False, None], ROWS), dtype="boolean"),
            "at": pandas.to_datetime("2026-01-01") + pandas.to_timedelta(rng.integers(0, 10**6, ROWS), unit="s"),
            "clicked": rng.integers(0, 2, ROWS),
        }
    )
    spec = FeatureSchema.model_validate(SPEC)
    frame.to_parquet(tmp_path / "log.parquet")
    inputs = [str(tmp_path / "log.parquet")]
    prepare(PrepareOptions(schema=spec, inputs=inputs, output=str(tmp_path / "data")))
    reader = Reader(tmp_path / "data", "train", 60, shuffle=False)
    data = from_pandas(frame, spec)
    assert data.schema.id == reader.schema.id and len(data) == reader.rows == ROWS

    batches = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in reader.dataset(0)]
    order = [int(key.rpartition(b"#")[2]) - 1 for batch in batches for key in batch["key"]]
    ordered = data.take(order)
    for name, mine in (("feature_ids", ordered.feature_ids), ("feature_vals", ordered.feature_vals)):
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), mine)
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), ordered.labels)

    assert data.model("fm").bias.numpy() == ordered.model("fm").bias.numpy()
    by_beam, in_memory = (trained(data, source) for source in (reader.dataset(0), ordered))
    for one, other in zip(by_beam.get_weights(), in_memory.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def trained(data: FrameData, source: object) -> CTRModel:
    model = data.model("afm", factors=4, attention=3)
    model.compile("adagrad")
    model.fit(source, batch_size=60 if isinstance(source, FrameData) else None, shuffle=False, verbose=0)
    return model
