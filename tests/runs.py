"""Runs with weights that are not trained but far from zero, for tests of what comes after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from afm_ctr import optimizers
from afm_ctr.models import CTRModel
from afm_ctr.schema import Analysis, FeatureSchema, NumberFacts, ResolvedSchema, resolve
from afm_ctr.training import TrainConfig, build_model
from afm_ctr.training.checkpoint import Position
from afm_ctr.training.checkpoint_manager import CheckpointManager
from afm_ctr.training.run_dir import RunDir
from afm_ctr.training.snapshot import Snapshot

EVERY_KIND: dict[str, Any] = {
    "name": "every kind of field",
    "format": {
        "kind": "delimited",
        "columns": [
            "clicked",
            {"name": "Age", "header": "age in years"},
            "site",
            "tags",
            "user",
            "price",
            "hour",
            "at",
        ],
    },
    "label": {"column": "clicked"},
    "spaces": {"word": {"kind": "vocabulary", "min_count": 1, "oov": 2, "capacity": 24}},
    "fields": [
        {"name": "Age", "kind": "numeric", "encoding": {"kind": "value", "log": True, "standardise": True}},
        {"name": "site", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 50}, "missing": "own"},
        {"name": "tags", "kind": "categorical", "space": "word", "separator": "|", "max_values": 3},
        {"name": "user", "kind": "categorical", "encoding": {"kind": "ids", "size": 20}},
        {"name": "price", "kind": "numeric", "encoding": {"kind": "buckets", "boundaries": [0.5, 1.5, 10.0]}},
        {"name": "hour", "kind": "categorical", "space": "word"},
        {"name": "pair", "kind": "cross", "columns": ["site", "hour"], "space": "word", "missing": "own"},
        {"name": "weekday", "column": "at", "kind": "time", "format": "iso", "part": "weekday"},
    ],
}


def every_kind(**changes: Any) -> ResolvedSchema:
    """A schema with fields of every kind; ``changes`` replace keys of the specification."""
    words = {b"news": 5, b"sport": 4, b"caf\xc3\xa9": 3, b"h1": 2, b"h2": 1, b"a.com\x1fh1": 1}
    facts = Analysis({"word": words}, {"Age": NumberFacts(10, 3.0, 0.5, np.linspace(1.0, 60.0, 10))})
    return resolve(FeatureSchema.model_validate({**EVERY_KIND, **changes}), facts)


def raw_rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Raw columns of :func:`every_kind`, string [count]: known and unknown words, empty cells, cells that are bad."""
    rng = np.random.default_rng(seed)
    choices = {
        "Age": [b"3", b"41.5", b"", b"0", b"old", b"1e400"],
        "site": [b"a.com", b"b.org", b"", b"\xe2\x82\xac.eu"],
        "tags": [b"news|sport", b"", b"caf\xc3\xa9", b"nobody|news|h1|h2", b"|"],
        "user": [b"0", b"7", b"19", b"20", b"-1", b""],
        "price": [b"0.49", b"0.5", b"9", b"11", b"", b"cheap"],
        "hour": [b"h1", b"h2", b"h9", b""],
        "at": [b"2024-02-29T12:00", b"2024-03-01 23:30-01:00", b"", b"2023-02-29"],
    }
    return {
        name: np.array([cells[i] for i in rng.integers(0, len(cells), count)], object)
        for name, cells in choices.items()
    }


def write_run(
    folder: Path,
    schema: ResolvedSchema,
    options: dict[str, Any] | None = None,
    seed: int = 1,
    scale: float = 0.5,
    **config: Any,
) -> CTRModel:
    """A run's folder as ``train`` leaves it, with one checkpoint. Returns the model whose weights it holds.

    ``scale`` is the standard deviation of the weights.
    """
    model_options = options or {"name": "afm", "factors": 4, "attention": 3, "scale_by_pairs": True}
    config_ = TrainConfig.model_validate({"model": model_options, "validation": None, **config})
    model = build_model(schema, config_)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        values = rng.normal(0, scale, variable.shape).astype(np.float32)
        if any(variable is column for column in model.table.columns.values()):
            values[0] = 0  # the row of absent slots
        variable.assign(values)
    optimizer = optimizers.build("sgd")
    model.compile(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    RunDir(folder).record(config_, schema, {"data": "nowhere"}, ["afm-ctr", "train"])
    manager = CheckpointManager(folder / "checkpoints")
    manager.save(Snapshot.take(model, Position(1, 0, 1), schema_id=schema.id, state={"data_id": "none"}), best=None)
    return model
