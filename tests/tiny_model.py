"""A SavedModel with the four signatures of an export, small enough to load in a tenth of a second."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

IDS = 10
WEIGHTS = np.linspace(-1.0, 1.0, IDS, dtype=np.float32)


class TinyModel(tf.Module):
    """logit = bias + sum of weights[id] * value over two slots; the bias tells versions apart."""

    def __init__(self, bias: float):
        super().__init__()
        self.weights = tf.Variable(WEIGHTS)
        self.bias = tf.Variable(np.float32(bias))

    def score(self, ids: tf.Tensor, values: tf.Tensor) -> dict[str, tf.Tensor]:
        logit = self.bias + tf.reduce_sum(tf.gather(self.weights, ids) * values, axis=1)
        return {"logit": logit, "probability": tf.sigmoid(logit)}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int64), tf.TensorSpec([None, 2], tf.float32)])
    def default(self, feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.score(feature_ids, feature_vals)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(
            examples,
            {
                "feature_ids": tf.io.FixedLenFeature([2], tf.int64),
                "feature_vals": tf.io.FixedLenFeature([2], tf.float32),
            },
        )
        return self.score(parsed["feature_ids"], parsed["feature_vals"])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "A"), tf.TensorSpec([None], tf.string, "B")])
    def raw(self, A: tf.Tensor, B: tf.Tensor) -> dict[str, tf.Tensor]:
        """A is hashed to an id, B is a number; B empty or not a number counts as 0."""
        bad = tf.logical_not(tf.strings.regex_full_match(B, r"-?[0-9]*\.?[0-9]*"))
        empty = tf.logical_or(bad, tf.equal(tf.strings.length(B), 0))
        number = tf.strings.to_number(tf.where(empty, tf.fill(tf.shape(B), "0"), B))
        ids = tf.stack([1 + tf.strings.to_hash_bucket_fast(A, IDS - 1), tf.ones_like(number, tf.int64)], axis=1)
        values = tf.stack([tf.cast(tf.strings.length(A) > 0, tf.float32), number], axis=1)
        return {**self.score(ids, values), "bad_cells": tf.cast(bad, tf.int32)}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int64), tf.TensorSpec([None, 2], tf.float32)])
    def explain(self, feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> dict[str, tf.Tensor]:
        present = tf.reduce_all(feature_ids > 0, axis=1, keepdims=True)
        return {"attention": tf.cast(present, tf.float32) + 0.0 * feature_vals[:, :1]}


def export(base: Path, version: int, bias: float | None = None, warm_up: tuple[bytes, ...] = ()) -> Path:
    """Write a version folder, complete from the moment that it can be seen.

    Args:
        base: Folder of the versions.
        version: Its number, and the bias unless that is given.
        bias: The logit of a row without weights.
        warm_up: Serialized PredictionLogs.
    """
    model = TinyModel(version if bias is None else bias)
    aside = base / f"writing-{version}"
    signatures = {
        "serving_default": model.default,
        "examples": model.examples,
        "raw": model.raw,
        "explain": model.explain,
    }
    tf.saved_model.save(model, str(aside), signatures=signatures)
    if warm_up:
        (aside / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(aside / "assets.extra" / "tf_serving_warmup_requests")) as writer:
            for record in warm_up:
                writer.write(record)
    return aside.rename(base / str(version))


def expected_logit(ids: np.ndarray, values: np.ndarray, bias: float) -> np.ndarray:
    """The model in NumPy."""
    return bias + (WEIGHTS[ids] * values).sum(axis=1)


if __name__ == "__main__":
    export(Path(sys.argv[1]), int(sys.argv[2]))
