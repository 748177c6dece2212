"""Arrays to messages and back; and the client's messages are TensorFlow Serving's, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from serving import tensors
from serving.client import Client
from serving.protos import wire_pb2 as wire

REAL = {
    "TensorProto": tensor_pb2.TensorProto,
    "ModelSpec": model_pb2.ModelSpec,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "TensorInfo": meta_graph_pb2.TensorInfo,
    "SignatureDef": meta_graph_pb2.SignatureDef,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
    "ModelVersionStatus": get_model_status_pb2.ModelVersionStatus,
}

ARRAYS = [
    np.array([[1.5, -2.0, np.inf]], np.float32),
    np.array([1e300, np.nan]),
    np.array([[-1, 1 << 62]], np.int64),
    np.array([3, -4], np.int32),
    np.array([[True], [False]]),
    np.array([250, 3], np.uint8),
    np.array([-7], np.int8),
    np.array([-300], np.int16),
    np.array([65000], np.uint16),
    np.array([1 << 31], np.uint32),
    np.array([1 << 63], np.uint64),
    np.array([0.5, -2.0], np.float16),
    np.array([b"a\0", "é".encode(), b""], dtype=object),
    np.zeros((0, 3), np.float32),
    np.array(7, np.int64),
]


@pytest.mark.parametrize("name", REAL)
def test_every_field_has_the_number_and_type_of_the_real_message(name: str) -> None:
    ours, theirs = wire.DESCRIPTOR.message_types_by_name[name], REAL[name].DESCRIPTOR
    for field in ours.fields:
        real = theirs.fields_by_name[field.name]
        # An enum travels as an int32 does.
        types = {real.TYPE_ENUM: real.TYPE_INT32}
        assert field.number == real.number
        assert types.get(field.type, field.type) == types.get(real.type, real.type), field.name
        assert (field.is_repeated, field.is_packed) == (real.is_repeated, real.is_packed), field.name


def test_data_types_have_the_real_numbers() -> None:
    for name, number in wire.DataType.items():
        assert types_pb2.DataType.Value(name) == number


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
@pytest.mark.parametrize("compact", [True, False])
def test_tensorflow_reads_what_we_write_and_we_read_what_it_writes(array: np.ndarray, compact: bool) -> None:
    ours = wire.TensorProto()
    tensors.to_proto(array, ours, compact=compact)
    theirs = tensor_pb2.TensorProto.FromString(ours.SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(theirs), array)
    assert theirs.SerializeToString(deterministic=True) == ours.SerializeToString(deterministic=True)

    real = tf.make_tensor_proto(array)
    back = tensors.to_array(wire.TensorProto.FromString(real.SerializeToString()))
    np.testing.assert_array_equal(back, array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert tuple(dim.size for dim in ours.tensor_shape.dim) == array.shape


def test_predict_request_has_the_real_bytes() -> None:
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    request = Client("localhost:1", "m", version=3).build_request({"ids": ids, "s": ["a", b"\xff"]}, "raw", ["logit"])
    real = predict_pb2.PredictRequest(output_filter=["logit"])
    real.model_spec.name, real.model_spec.signature_name = "m", "raw"
    real.model_spec.version.value = 3
    real.inputs["ids"].CopyFrom(tf.make_tensor_proto(ids))
    real.inputs["s"].CopyFrom(tf.make_tensor_proto(np.array([b"a", b"\xff"], dtype=object)))
    assert request.SerializeToString(deterministic=True) == real.SerializeToString(deterministic=True)
    assert wire.PredictRequest.FromString(real.SerializeToString()) == request


def test_label_request_has_the_real_bytes() -> None:
    request = Client("localhost:1", "m", label="canary").build_request({}, "explain")
    real = predict_pb2.PredictRequest()
    real.model_spec.name, real.model_spec.version_label, real.model_spec.signature_name = "m", "canary", "explain"
    assert request.SerializeToString() == real.SerializeToString()


def test_answers_as_lists_are_what_clients_of_the_real_server_read() -> None:
    proto = tensor_pb2.TensorProto()
    tensors.to_proto(np.array([0.25, 0.5], np.float32), proto, compact=False)
    assert list(proto.float_val) == [0.25, 0.5]
    assert not proto.tensor_content


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=5), max_size=8))
def test_strings_survive_whatever_bytes_they_hold(cells: list[bytes]) -> None:
    proto = wire.TensorProto()
    tensors.to_proto(np.array([*cells, None], dtype=object)[:-1], proto)
    assert tensors.to_array(proto).tolist() == cells


def test_a_list_of_bytes_keeps_its_trailing_zeros() -> None:
    assert tensors.as_array([b"a\0\0", "b"]).tolist() == [b"a\0\0", b"b"]


def test_fewer_values_repeat_the_last_one() -> None:
    proto = wire.TensorProto(dtype=1, float_val=[1.0, 2.0])
    proto.tensor_shape.dim.add(size=4)
    assert tensors.to_array(proto).tolist() == [1.0, 2.0, 2.0, 2.0]
    assert tensors.to_array(wire.TensorProto(dtype=7)).tolist() == b""


def _proto(dtype: int, sizes: list[int], **values: Any) -> wire.TensorProto:
    proto = wire.TensorProto(dtype=dtype, **values)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (_proto(0, [1]), "type 0"),
        (_proto(1, [-1]), "not fixed"),
        (_proto(1, [3], tensor_content=b"\0" * 8), "8 bytes of float do not fill"),
        (_proto(1, [1], float_val=[1, 2]), "2 values"),
        (_proto(1, [1 << 40], float_val=[1]), "too many to repeat"),
    ],
)
def test_an_impossible_tensor_says_why(proto: wire.TensorProto, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tensors.to_array(proto)


@pytest.mark.parametrize("value", [[1, "a", None], np.array([1 + 2j])])
def test_what_cannot_be_sent_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"neither bytes nor text|cannot be sent"):
        tensors.as_array(value)
