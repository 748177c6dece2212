"""Warm-up requests: a server that replays them has traced and allocated everything before its first caller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from afm_ctr.errors import UserError
from afm_ctr.features import FeatureTransform
from afm_ctr.records import serialize_examples
from afm_ctr.records.example import varint
from afm_ctr.sample_rows import load_samples, made_up_rows
from afm_ctr.schema import ResolvedSchema
from serving.protos import wire_pb2
from serving.tensors import objects, to_proto

# Field numbers of tensorflow_serving/apis/prediction_log.proto with wire type 2: PredictionLog.predict_log is 6,
# PredictLog.request is 1.
_PREDICT_LOG, _REQUEST = 0x32, 0x0A


@dataclass(frozen=True)
class Warmup:
    """The same rows in every form."""

    raw: dict[str, np.ndarray]
    feature_ids: np.ndarray
    feature_vals: np.ndarray
    examples: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.feature_ids)


def warmup_rows(schema: ResolvedSchema, model_dir: Path, source: Literal["made-up", "log"]) -> Warmup:
    """Rows made up from the schema, or raw rows of the log kept with the run, and their transformed ids and values.

    Raises:
        UserError: rows of the log are requested, and the run has none.
    """
    rows = made_up_rows(schema) if source == "made-up" else load_samples(model_dir, schema.raw_columns)
    if not rows:
        raise UserError(
            f"export: --warmup log: {model_dir} holds no rows of the log (prepare --sample-rows keeps some); "
            "take --warmup made-up"
        )
    raw = {name: objects([row[name] for row in rows]) for name in schema.raw_columns}
    encoded = FeatureTransform(schema)({name: tf.constant(cells) for name, cells in raw.items()})
    ids, vals = encoded.feature_ids.numpy(), encoded.feature_vals.numpy()
    keys = [b"warmup#%d" % number for number in range(len(rows))]
    return Warmup(raw, ids, vals, objects(serialize_examples(ids, vals, None, None, None, keys)))


def write_warmup(path: Path, warmup: Warmup, model_name: str, explain: bool) -> None:
    """A TFRecord file of ``PredictionLog`` messages: for every signature one row, then all rows at once.

    Source: TensorFlow Serving, "SavedModel Warmup".
    """
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in _requests(warmup, model_name, explain):
            writer.write(_nested(_PREDICT_LOG, _nested(_REQUEST, request.SerializeToString(deterministic=True))))


def read_warmup(path: Path) -> list[wire_pb2.PredictRequest]:
    """The requests of such a file. Raises ValueError for a record that is not a ``PredictionLog`` of Predict."""
    requests = []
    for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
        try:
            request = _inside(_REQUEST, _inside(_PREDICT_LOG, record))
            requests.append(wire_pb2.PredictRequest.FromString(request))
        except (IndexError, DecodeError) as error:
            raise ValueError(f"record {number} is not a PredictionLog of a Predict request") from error
    return requests


def _inside(tag: int, message: bytes) -> bytes:
    """The field at the start of a message, which must be ``tag``."""
    if message[0] != tag:
        raise IndexError(tag)
    length = place = 0
    while True:
        place += 1
        length |= (message[place] & 0x7F) << (7 * (place - 1))
        if not message[place] & 0x80:
            return message[place + 1 : place + 1 + length]


def _requests(warmup: Warmup, model_name: str, explain: bool) -> Iterator[wire_pb2.PredictRequest]:
    encoded = {"feature_ids": warmup.feature_ids, "feature_vals": warmup.feature_vals}
    inputs = {"serving_default": encoded, "examples": {"examples": warmup.examples}, "raw": warmup.raw}
    if explain:
        inputs["explain"] = encoded
    for signature, tensors in inputs.items():
        for rows in sorted({1, warmup.rows}):
            request = wire_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, tensor in tensors.items():
                to_proto(tensor[:rows], request.inputs[name])
            yield request


def _nested(tag: int, message: bytes) -> bytes:
    return bytes([tag]) + varint(len(message)) + message
