"""What a checkpoint says, for a comparison with what was exported from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from afm_ctr.export.float16 import halve_vectors
from afm_ctr.features import FeatureTransform
from afm_ctr.models import CTRModel
from afm_ctr.records import serialize_examples
from afm_ctr.sample_rows import load_samples, made_up_rows
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.model_io import Which, open_run

_RANDOM_ROWS = 256
_MADE_UP_ROWS = 32

Arrays = dict[str, np.ndarray]


class Expected(NamedTuple):
    """Requests, and the outputs by name that the checkpoint has for each."""

    schema_id: str
    requests: list[tuple[str, Arrays]]
    answers: list[Arrays]
    described: str


def from_run(model_dir: str | Path, which: Which, halved: bool) -> Expected:
    """Ask a checkpoint for scores, without anything of the export.

    Rows are those kept with the run, some made up from the schema, and 256 of random ids with random values.

    Args:
        model_dir: what ``train`` wrote.
        which: the checkpoint.
        halved: compare with vectors rounded to half precision.

    Raises:
        UserError: no such run or checkpoint.
    """
    model, schema, *_ = open_run(model_dir, which)
    if halved:
        halve_vectors(model)
    rows = [*load_samples(model_dir, schema.raw_columns), *made_up_rows(schema, _MADE_UP_ROWS)]
    raw = {name: np.array([row[name] for row in rows], object) for name in schema.raw_columns}
    encoded = FeatureTransform(schema)({name: tf.constant(cells) for name, cells in raw.items()})
    by_raw = _answer(model, encoded.feature_ids.numpy(), encoded.feature_vals.numpy())
    by_raw["bad_cells"] = encoded.bad.numpy().sum(axis=1)
    ids, vals = _random_rows(schema)
    by_ids = {**_answer(model, ids, vals), "bad_cells": np.zeros(len(ids), np.int32)}
    examples = np.array(serialize_examples(ids, vals, None, None, None, [b""] * len(ids)), object)
    encoded_inputs = {"feature_ids": ids, "feature_vals": vals}
    requests: list[tuple[str, Arrays]] = [
        ("raw", raw),
        ("serving_default", encoded_inputs),
        ("examples", {"examples": examples}),
    ]
    answers = [by_raw, by_ids, by_ids]
    attention = model.attention({name: tf.constant(array) for name, array in encoded_inputs.items()})
    if attention is not None:
        requests.append(("explain", encoded_inputs))
        answers.append({"attention": attention.numpy(), "bad_cells": by_ids["bad_cells"]})
    half = "; vectors rounded to half precision in both" if halved else ""
    return Expected(schema.id, requests, answers, f"{len(rows)} raw and {len(ids)} random rows{half}")


def _answer(model: CTRModel, ids: np.ndarray, vals: np.ndarray) -> Arrays:
    batch = {"feature_ids": tf.constant(ids), "feature_vals": tf.constant(vals)}
    logit = model(batch, training=False, corrected=True)
    return {"logit": logit.numpy(), model.output_name: model.predictions(logit).numpy()}


def _random_rows(schema: ResolvedSchema) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (_RANDOM_ROWS, schema.num_slots)
    ids = rng.integers(0, schema.feature_size, shape, np.int64)
    ids[rng.random(shape) < 0.1] = 0
    return ids, rng.normal(1.0, 0.5, shape).astype(np.float32)
