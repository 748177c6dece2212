"""What a scoring client may count on: TF Serving's protos and its documented REST API, whoever serves.

Runs against the local server always, and against the real one where there is one: ``tensorflow_model_server`` on the
PATH, or ``TF_SERVING_TARGET=host:port`` (and ``TF_SERVING_REST=host:port``), which must serve the tiny model as
``afm``: ``python tests/tiny_model.py FOLDER 3`` writes it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from served import IDS, LIMIT, VALUES, Served, serve
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tiny_model import expected_logit

from serving.client import Client

GOOD = {"feature_ids": IDS, "feature_vals": VALUES}
Code = grpc.StatusCode


@pytest.fixture(scope="module", params=["local", "real"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(request.param, tmp_path_factory.mktemp("served")) as where:
        yield where


@pytest.fixture(scope="module")
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.target) as opened:
        yield opened


def predict(channel: grpc.Channel, spec: dict[str, Any], inputs: dict[str, Any], outputs: Any = ()) -> Any:
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = spec.get("name", "afm")
    request.model_spec.signature_name = spec.get("signature", "")
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value if isinstance(value, tensor_pb2.TensorProto) else proto(value))
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)


def proto(value: Any) -> Any:
    return tf.make_tensor_proto(value)


def logits(response: Any) -> np.ndarray:
    return tf.make_ndarray(response.outputs["logit"])


# ---- gRPC ----


@pytest.mark.parametrize("spec", [{}, {"signature": "serving_default"}, {"version": 3}, {"label": "stable"}])
def test_predict_by_latest_number_and_label(served: Served, channel: grpc.Channel, spec: dict[str, Any]) -> None:
    if "label" in spec and not served.ours:
        pytest.skip("the given server has labels of its own")
    response = predict(channel, spec, GOOD)
    np.testing.assert_allclose(logits(response), expected_logit(IDS, VALUES, 3), rtol=1e-6)
    assert set(response.outputs) == {"logit", "probability"}
    assert response.model_spec.name == "afm"
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "serving_default"


def test_every_signature_and_the_output_filter(channel: grpc.Channel) -> None:
    raw = predict(channel, {"signature": "raw"}, {"A": [b"x", b""], "B": [b"1.5", b"zz"]}, ["bad_cells", "logit"])
    assert set(raw.outputs) == {"bad_cells", "logit"}
    assert tf.make_ndarray(raw.outputs["bad_cells"]).tolist() == [0, 1]
    example = tf.train.Example()
    example.features.feature["feature_ids"].int64_list.value.extend([1, 9])
    example.features.feature["feature_vals"].float_list.value.extend([1, 1])
    parsed = predict(channel, {"signature": "examples"}, {"examples": [example.SerializeToString()]})
    np.testing.assert_allclose(logits(parsed), expected_logit(IDS[:1], VALUES[:1], 3), rtol=1e-6)
    explained = predict(channel, {"signature": "explain"}, GOOD)
    assert tf.make_ndarray(explained.outputs["attention"]).shape == (3, 1)
    none = predict(channel, {}, {name: array[:0] for name, array in GOOD.items()})
    assert logits(none).shape == (0,)


@pytest.mark.parametrize(
    ("spec", "inputs", "code", "says"),
    [
        ({"name": "other"}, GOOD, Code.NOT_FOUND, r"Servable not found for request: Latest\(other\)"),
        ({"version": 9}, GOOD, Code.NOT_FOUND, r"Servable not found for request: Specific\(afm, 9\)"),
        ({"label": "nope"}, GOOD, Code.INVALID_ARGUMENT, "Unrecognized servable version label: nope"),
        ({"name": ""}, GOOD, Code.INVALID_ARGUMENT, "no name specified"),
        ({"signature": "nope"}, GOOD, Code.FAILED_PRECONDITION, 'Serving signature key "nope" not found'),
        ({"label": ""}, GOOD, Code.INVALID_ARGUMENT, "Unrecognized servable version label"),
        ({"signature": "__saved_model_init_op"}, {}, Code.OUT_OF_RANGE, None),
        ({}, {"feature_ids": IDS}, Code.INVALID_ARGUMENT, r"feature_vals\(feed name: .*\) not found in request"),
        ({}, {"feature_ids": IDS, "vals": VALUES}, Code.INVALID_ARGUMENT, "not found in request"),
        ({}, {**GOOD, "more": IDS}, Code.INVALID_ARGUMENT, "Inputs contains invalid name"),
        (
            {},
            {**GOOD, "feature_ids": IDS.astype(np.int32)},
            Code.INVALID_ARGUMENT,
            r"Expects arg\[0\] to be int64 but int32 is provided",
        ),
        ({}, {**GOOD, "feature_vals": IDS}, Code.INVALID_ARGUMENT, "to be float but int64 is provided"),
        ({}, {**GOOD, "feature_ids": IDS[0]}, Code.INVALID_ARGUMENT, None),
        ({}, {**GOOD, "feature_vals": VALUES[:, :1, None]}, Code.INVALID_ARGUMENT, None),
        ({}, {**GOOD, "feature_vals": VALUES[:2]}, Code.INVALID_ARGUMENT, None),
        ({}, {**GOOD, "feature_ids": IDS + 10}, Code.INVALID_ARGUMENT, r"not in \[0, 10\)"),
        ({}, {**GOOD, "feature_ids": tensor_pb2.TensorProto()}, Code.INVALID_ARGUMENT, None),
        ({"signature": "examples"}, {"examples": [b"junk"]}, Code.INVALID_ARGUMENT, "xample"),
        ({"signature": "examples"}, {"examples": [b"\xff\xfe"]}, Code.INVALID_ARGUMENT, "xample"),
    ],
)
def test_a_mistake_has_its_status_code(
    channel: grpc.Channel, spec: dict[str, Any], inputs: dict[str, Any], code: Code, says: str | None
) -> None:
    with pytest.raises(grpc.RpcError, match=says) as caught:
        predict(channel, spec, inputs)
    assert caught.value.code() is code


def test_an_unknown_rank_is_not_looked_at(channel: grpc.Channel) -> None:
    ids = proto(IDS)
    ids.tensor_shape.unknown_rank = True
    response = predict(channel, {}, {**GOOD, "feature_ids": ids})
    np.testing.assert_allclose(logits(response), expected_logit(IDS, VALUES, 3), rtol=1e-6)


@pytest.mark.parametrize("outputs", [["nope"], ["logit", "logit"]])
def test_outputs_that_cannot_be_had(channel: grpc.Channel, outputs: list[str]) -> None:
    with pytest.raises(grpc.RpcError, match="output tensor alias") as caught:
        predict(channel, {}, GOOD, outputs)
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_a_message_over_the_limit(served: Served, channel: grpc.Channel) -> None:
    if not served.ours:
        pytest.skip("the given server has limits of its own")
    with pytest.raises(grpc.RpcError, match="larger than max") as caught:
        predict(channel, {"signature": "raw"}, {"A": [b"x" * LIMIT], "B": [b"1"]})
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED


def test_status(channel: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "afm"
    for version in (None, 3):
        if version is not None:
            request.model_spec.version.value = version
        (status,) = stub.GetModelStatus(request, timeout=30).model_version_status
        assert (status.version, status.state, status.status.error_code) == (3, status.AVAILABLE, 0)
    request.model_spec.version_label = "nobody"
    (status,) = stub.GetModelStatus(request, timeout=30).model_version_status
    assert status.version == 3, "a label is not looked at"
    request.model_spec.version.value = 9
    for name in ("afm", "other"):
        request.model_spec.name = name
        with pytest.raises(grpc.RpcError, match="Could not find") as caught:
            stub.GetModelStatus(request, timeout=30)
        assert caught.value.code() is Code.NOT_FOUND


def test_metadata(channel: grpc.Channel) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "afm"
    response = stub.GetModelMetadata(request, timeout=30)
    assert response.model_spec.version.value == 3
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    assert {"serving_default", "examples", "raw", "explain"} <= set(found.signature_def)
    ids = found.signature_def["serving_default"].inputs["feature_ids"]
    assert (ids.dtype, [dim.size for dim in ids.tensor_shape.dim]) == (tf.int64.as_datatype_enum, [-1, 2])
    for field in ([], ["other"]):
        wrong = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=request.model_spec, metadata_field=field)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModelMetadata(wrong, timeout=30)
        assert caught.value.code() is Code.INVALID_ARGUMENT


def test_the_project_s_own_client(served: Served) -> None:
    with Client(served.target, timeout=30) as client:
        assert client.wait_ready(30).version == 3
        scores = client.score({"feature_ids": IDS, "feature_vals": VALUES}, 2, "serving_default")
        assert scores.versions == [3]
        np.testing.assert_allclose(scores["logit"], expected_logit(IDS, VALUES, 3), rtol=1e-6)
        rows = [{"A": f"user{i}", "B": i} for i in range(50)]
        assert [row["logit"] for row in client.score_rows(rows, 7)] == client.score(rows)["logit"].tolist()
        assert client.explain(GOOD, ["A x B"]) == [[("A x B", 1.0)], [], [("A x B", 1.0)]]
        assert client.score([], signature="explain")["attention"].shape[0] == 0


# ---- REST ----

PATHS = ["/v1/models/afm", "/v1/models/afm/versions/3", "/v1/models/afm/labels/stable"]


@pytest.mark.parametrize("path", PATHS)
def test_rest_predict_in_both_forms(served: Served, path: str) -> None:
    if "labels" in path and not served.ours:
        pytest.skip("the given server has labels of its own")
    expected = expected_logit(IDS, VALUES, 3)
    instances = [{"feature_ids": i, "feature_vals": v} for i, v in zip(IDS.tolist(), VALUES.tolist(), strict=True)]
    status, by_row = served.http(f"{path}:predict", {"instances": instances})
    assert status == 200
    np.testing.assert_allclose([row["logit"] for row in by_row["predictions"]], expected, rtol=1e-6)
    inputs = {"feature_ids": IDS.tolist(), "feature_vals": VALUES.tolist()}
    status, by_column = served.http(f"{path}:predict", {"signature_name": "serving_default", "inputs": inputs})
    assert status == 200
    np.testing.assert_allclose(by_column["outputs"]["logit"], expected, rtol=1e-6)


def test_rest_bytes_lone_outputs_and_numbers_that_json_has_not(served: Served) -> None:
    encoded = {"b64": base64.b64encode(b"\xff").decode()}
    body = {"signature_name": "raw", "instances": [{"A": encoded, "B": "1"}, {"A": "é", "B": ""}]}
    status, answer = served.http("/v1/models/afm:predict", body)
    assert (status, [row["bad_cells"] for row in answer["predictions"]]) == (200, [0, 0])
    body = {"signature_name": "explain", "instances": [{"feature_ids": [1, 2], "feature_vals": [1, 1]}]}
    assert served.http("/v1/models/afm:predict", body) == (200, {"predictions": [[1.0]]})
    text = b'{"instances": [{"feature_ids": [1, 2], "feature_vals": [NaN, 1]}]}'
    status, answer = served.http("/v1/models/afm:predict", text)
    assert status == 200
    assert math.isnan(answer["predictions"][0]["logit"])


@pytest.mark.parametrize(
    "text",
    [
        b'{"instances": [ROW]} and more',
        b'{"instances": [ROW]}{"instances": 1}',
        b'{"instances": [ROW], "instances": 1}',
        b'{"instances": [{"feature_ids": [1, 0], "feature_vals": [1.0, Inf]}]}',
        b'{"instances": [{"feature_ids": [1, 0], "feature_vals": [1.0, 1e39]}]}',
        b'{"instances": [{"feature_ids": [1, 0], "feature_vals": [1.0, 16777217]}]}',
        b'{"signature_name": "raw", "instances": [{"A": "\xff", "B": "1"}]}',
        b'{"signature_name": "raw", "instances": [{"A": {"b64": "YWJj\\nZGVm\\n"}, "B": "1"}]}',
    ],
)
def test_json_that_the_server_takes_although_it_is_odd(served: Served, text: bytes) -> None:
    row = b'{"feature_ids": [1, 2], "feature_vals": [1.0, 1.0]}'
    status, answer = served.http("/v1/models/afm:predict", text.replace(b"ROW", row))
    assert status == 200, answer
    assert len(answer["predictions"]) == 1


def test_rest_status_and_metadata(served: Served) -> None:
    status, answer = served.http("/v1/models/afm")
    assert status == 200
    (version,) = answer["model_version_status"]
    assert (version["version"], version["state"], version["status"]["error_code"]) == ("3", "AVAILABLE", "OK")
    status, answer = served.http("/v1/models/afm/versions/3/metadata")
    assert status == 200
    assert answer["model_spec"]["version"] == "3"
    assert answer["metadata"]["signature_def"]["signature_def"]["raw"]["inputs"]["A"]["dtype"] == "DT_STRING"


@pytest.mark.parametrize(
    ("path", "body", "code", "says"),
    [
        ("/v1/models/other", None, 404, "Could not find any versions of model other"),
        ("/v1/models/afm/versions/9", None, 404, "Could not find version 9 of model afm"),
        ("/v1/models/other:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(other)"),
        ("/v1/models/afm/versions/9:predict", {"instances": [1]}, 404, "Specific(afm, 9)"),
        ("/v1/models/afm/labels/no:predict", {"instances": [1]}, 400, "Unrecognized servable version label: no"),
        ("/v1/models/afm:predict", {"signature_name": "no", "instances": [1]}, 400, '"no" not found'),
        ("/v1/models/afm:predict", b"{", 400, "JSON Parse error"),
        ("/v1/models/afm:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("/v1/models/afm:predict", {"instances": [], "inputs": {}}, 400, "only one of 'inputs' or 'instances'"),
        ("/v1/models/afm:predict", {"inputs": {"feature_ids": [[1, 2]]}}, 400, "Missing named input: feature_vals"),
        (
            "/v1/models/afm:predict",
            {"instances": [{"feature_ids": ["x", 1], "feature_vals": [1, 1]}]},
            400,
            "not of expected type: int64",
        ),
        ("/v1/models/afm:predict", {"inputs": {"feature_ids": [[1]], "feature_vals": [[1]]}}, 400, ""),
        (
            "/v1/models/afm:predict",
            {"inputs": {"feature_ids": [[1, 77]], "feature_vals": [[1, 1]]}},
            400,
            "77 is not",
        ),
        ("/v1/models/afm:predict", None, 400, "Malformed request: GET /v1/models/afm:predict"),
        ("/v1/models/afm", {}, 400, "Malformed request: POST /v1/models/afm"),
        ("/v1/models/afm:predict?a=b", {"instances": [1]}, 400, "Malformed request"),
        ("/v1/models/afm:classify", {}, 400, ""),
        ("/v1/models/afm?x=1", None, 404, ""),
        ("/v1/models", None, 400, "Missing model name in request."),
        ("/v1/models/afm:predict", b'{"instances": [1e400]}', 400, "JSON Parse error"),
        ("/v1/models/afm:predict", b'{"instances": ["\\ud800"]}', 400, "JSON Parse error"),
        ("/v1/models/afm:predict", '{"instances": [1]}'.encode("utf-16"), 400, "JSON Parse error"),
    ],
)
def test_rest_mistakes_have_their_status(served: Served, path: str, body: Any, code: int, says: str) -> None:
    status, answer = served.http(path, body)
    assert status == code
    assert list(answer) == ["error"]
    assert says in answer["error"]
