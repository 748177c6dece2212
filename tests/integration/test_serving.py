"""The local server from outside: gRPC, REST and health on one tiny model."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from served import IDS, VALUES, tiny_server
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tiny_model import expected_logit

from serving.client import Client
from serving.errors import FailedPrecondition, InvalidArgument, NotFound, ServingError
from serving.server.app import LocalServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with tiny_server(tmp_path_factory.mktemp("models")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.grpc_port}", timeout=20, allow_bad_cells=True) as one:
        yield one


def http(server: LocalServer, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest_port}{path}", data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# ---- gRPC ----


def test_every_signature_answers(client: Client) -> None:
    expected = expected_logit(IDS, VALUES, 3)
    packed = client.predict({"feature_ids": IDS, "feature_vals": VALUES}, "serving_default")
    np.testing.assert_allclose(packed["logit"], expected, rtol=1e-6)
    np.testing.assert_allclose(packed["probability"], 1 / (1 + np.exp(-expected)), rtol=1e-6)
    assert packed.version == 3

    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "feature_ids": tf.train.Feature(int64_list=tf.train.Int64List(value=ids)),
                    "feature_vals": tf.train.Feature(float_list=tf.train.FloatList(value=values)),
                }
            )
        ).SerializeToString()
        for ids, values in zip(IDS, VALUES, strict=True)
    ]
    np.testing.assert_array_equal(client.predict({"examples": examples}, "examples")["logit"], packed["logit"])

    raw = client.predict({"A": ["x", "", b"\xff"], "B": ["1.5", "zz", ""]})
    assert raw["bad_cells"].tolist() == [0, 1, 0]
    assert client.predict({"feature_ids": IDS, "feature_vals": VALUES}, "explain")["attention"].shape == (3, 1)


def test_empty_and_large_batches(client: Client) -> None:
    none = client.predict({"feature_ids": IDS[:0], "feature_vals": VALUES[:0]}, "serving_default")
    assert none["logit"].shape == (0,)
    assert client.predict({"A": np.zeros(0, object), "B": np.zeros(0, object)})["bad_cells"].shape == (0,)
    ids, values = np.tile(IDS, (100_000, 1)), np.tile(VALUES, (100_000, 1))
    many = client.predict({"feature_ids": ids, "feature_vals": values}, "serving_default")
    np.testing.assert_allclose(many["logit"], expected_logit(ids, values, 3), rtol=1e-6)


def test_rows_of_dicts(client: Client) -> None:
    rows = [{"A": f"user{i}", "B": i} for i in range(100)]
    scored = list(client.score_rows(rows, batch_size=7))
    whole = client.predict({name: [str(row[name]) for row in rows] for name in ("A", "B")})
    assert [row["logit"] for row in scored] == whole["logit"].tolist()


def test_output_filter(client: Client) -> None:
    outputs = client.predict({"A": ["x"], "B": ["1"]}, outputs=["logit"])
    assert list(outputs) == ["logit"]
    for names, says in ((["nope"], "output tensor alias not found in signature: nope"), (["logit"] * 2, "duplicate")):
        with pytest.raises(InvalidArgument, match=says):
            client.predict({"A": ["x"], "B": ["1"]}, outputs=names)


@pytest.mark.parametrize(
    ("inputs", "signature", "kind", "says"),
    [
        ({"A": ["x"], "B": ["1"]}, "nope", FailedPrecondition, 'Serving signature key "nope" not found'),
        ({"A": ["x"]}, "raw", InvalidArgument, r"input alias: B\(feed name: .*\) not found in request.*\{A\}"),
        (
            {"A": ["x"], "B": ["1"], "C": ["1"]},
            "raw",
            InvalidArgument,
            "Used request inputs: A,B, request input: A,B,C",
        ),
        ({"A": ["x"], "C": ["1"]}, "raw", InvalidArgument, r"input alias: B\(feed name.*request \{A,C\}"),
        ({"A": [1], "B": ["1"]}, "raw", InvalidArgument, r"Expects arg\[0\] to be string but int64 is provided"),
        ({"A": [["x"]], "B": ["1"]}, "raw", InvalidArgument, r"A has shape \[1,1\].*\[-1\]"),
        ({"feature_ids": IDS, "feature_vals": VALUES[:, :1]}, "", InvalidArgument, r"\[3,1\].*\[-1,2\]"),
        ({"feature_ids": IDS + 10, "feature_vals": VALUES}, "", InvalidArgument, r"= 11 is not in \[0, 10\)"),
        ({"feature_ids": IDS, "feature_vals": VALUES[:2]}, "", InvalidArgument, "ncompatible shapes"),
        ({"examples": [b"junk"]}, "examples", InvalidArgument, "xample"),
        ({"examples": [b"\xff\xfe\xff"]}, "examples", InvalidArgument, "xample"),
    ],
)
def test_a_request_that_does_not_fit_is_the_client_s_mistake(
    client: Client, inputs: dict[str, Any], signature: str, kind: type[ServingError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        client.predict(inputs, signature)


def test_models_and_versions_that_are_not_there(client: Client) -> None:
    with Client(client.target, "other") as other, Client(client.target, version=9) as ninth:
        for wrong, predict_says, status_says in (
            (other, r"Servable not found for request: Latest\(other\)", "Could not find any versions of model other"),
            (ninth, r"Servable not found for request: Specific\(afm, 9\)", "Could not find version 9 of model afm"),
        ):
            with pytest.raises(NotFound, match=predict_says):
                wrong.predict({})
            with pytest.raises(NotFound, match=predict_says):
                wrong.metadata()
            with pytest.raises(NotFound, match=status_says):
                wrong.status()
    with Client(client.target, version=3) as third:
        assert third.predict({"A": ["x"], "B": ["1"]}).version == 3
    with Client(client.target, label="canary") as label, pytest.raises(InvalidArgument, match="label: canary"):
        label.predict({})


def test_status_and_metadata(client: Client) -> None:
    assert [(v.version, v.state, v.error_code) for v in client.status()] == [(3, "AVAILABLE", 0)]
    found = client.metadata()
    assert found.version == 3
    assert set(found.signatures) == {"serving_default", "examples", "raw", "explain"}
    assert found.signatures["serving_default"].inputs["feature_ids"] == ("int64", (-1, 2))


def test_the_real_messages_and_stubs_work_unchanged(server: LocalServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "afm"
        request.inputs["feature_ids"].CopyFrom(tf.make_tensor_proto(IDS))
        request.inputs["feature_vals"].CopyFrom(tf.make_tensor_proto(VALUES))
        response = stub.Predict(request, timeout=20)
        # The real server answers with lists; many clients read them as they are.
        np.testing.assert_allclose(response.outputs["logit"].float_val, expected_logit(IDS, VALUES, 3), rtol=1e-6)
        assert (response.model_spec.name, response.model_spec.signature_name) == ("afm", "serving_default")

        for wrong, says in (
            (get_model_metadata_pb2.GetModelMetadataRequest(), "Missing ModelSpec"),
            (get_model_metadata_pb2.GetModelMetadataRequest(model_spec=request.model_spec), "at least one"),
            (
                get_model_metadata_pb2.GetModelMetadataRequest(model_spec=request.model_spec, metadata_field=["x"]),
                "Metadata field x is not supported",
            ),
        ):
            with pytest.raises(grpc.RpcError, match=says) as caught:
                stub.GetModelMetadata(wrong, timeout=20)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError, match="no name specified"):
            stub.Predict(predict_pb2.PredictRequest(), timeout=20)
        with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
            model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(
                get_model_status_pb2.GetModelStatusRequest(), timeout=20
            )
        with pytest.raises(grpc.RpcError, match="TensorFlow Serving itself") as caught:
            stub.Classify(classification_pb2.ClassificationRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_service(server: LocalServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", "PredictionService", "ModelService"):
            assert check(health_pb2.HealthCheckRequest(service=name), timeout=20).status == 1
        with pytest.raises(grpc.RpcError):
            check(health_pb2.HealthCheckRequest(service="afm"), timeout=20)


def test_many_clients_at_once_get_their_own_answers(server: LocalServer) -> None:
    def work(number: int) -> bool:
        ids = np.full((4, 2), number % 10, np.int64)
        values = np.ones((4, 2), np.float32)
        with Client(f"127.0.0.1:{server.grpc_port}", timeout=20) as own:
            answers = [own.predict({"feature_ids": ids, "feature_vals": values}, "") for _ in range(15)]
        body = {"inputs": {"feature_ids": ids.tolist(), "feature_vals": values.tolist()}}
        status, rest = http(server, "/v1/models/afm:predict", body)
        expected = expected_logit(ids, values, 3)
        return status == 200 and all(
            np.allclose(x, expected) for x in (rest["outputs"]["logit"], answers[0]["logit"])
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


# ---- REST ----


def test_rest_row_and_column_form_agree_with_grpc(server: LocalServer, client: Client) -> None:
    cells = {"A": ["x", "é", ""], "B": ["1.5", "zz", ""]}
    expected = client.predict(cells)
    rows = [
        {"A": {"b64": base64.b64encode(a.encode()).decode()}, "B": b} for a, b in zip(*cells.values(), strict=True)
    ]
    for path in ("/v1/models/afm:predict", "/v1/models/afm/versions/3:predict"):
        status, by_row = http(server, path, {"signature_name": "raw", "instances": rows})
        assert status == 200
        assert [row["bad_cells"] for row in by_row["predictions"]] == [0, 1, 0]
        logits = np.array([row["logit"] for row in by_row["predictions"]], np.float32)
        np.testing.assert_array_equal(logits, expected["logit"])
    status, by_column = http(server, "/v1/models/afm:predict", {"signature_name": "raw", "inputs": cells})
    assert status == 200
    np.testing.assert_array_equal(np.array(by_column["outputs"]["logit"], np.float32), expected["logit"])


def test_rest_single_input_single_output_nan_and_empty(server: LocalServer) -> None:
    body = b'{"instances": [{"feature_ids": [1, 2], "feature_vals": [NaN, Infinity]}]}'
    status, answer = http(server, "/v1/models/afm:predict", body)
    assert status == 200
    assert np.isnan(answer["predictions"][0]["logit"])
    status, answer = http(server, "/v1/models/afm:predict", {"signature_name": "raw", "inputs": {"A": [], "B": []}})
    assert (status, answer["outputs"]["logit"]) == (200, [])
    status, answer = http(
        server,
        "/v1/models/afm:predict",
        {"signature_name": "explain", "instances": [{"feature_ids": [1, 2], "feature_vals": [1, 1]}]},
    )
    assert (status, answer) == (200, {"predictions": [[1.0]]})


def test_rest_status_and_metadata(server: LocalServer) -> None:
    ok = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    # A label is not looked at, and METADATA is not metadata, as in the real server.
    for path in ("", "/versions/3", "/labels/nobody", "/METADATA"):
        path = f"/v1/models/afm{path}"
        assert http(server, path) == (200, {"model_version_status": [ok]})
    status, answer = http(server, "/v1/models/afm/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "afm", "signature_name": "", "version": "3"}
    raw = answer["metadata"]["signature_def"]["signature_def"]["raw"]
    assert raw["inputs"]["A"]["dtype"] == "DT_STRING"
    assert raw["inputs"]["A"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert raw["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("path", "body", "code", "says"),
    [
        ("/v1/models/afm/versions/9/metadata", None, 404, "Servable not found for request: Specific(afm, 9)"),
        ("/v1/models/afm/versions/99999999999999999999:predict", {}, 400, "Failed to convert version"),
        ("/v1/models/afm/labels/canary:predict", {"instances": [1]}, 400, "label: canary"),
        (
            "/v1/models/afm:predict",
            {"signature_name": "no", "instances": [1]},
            400,
            '"no" not found in signature def',
        ),
        ("/v1/models/afm:predict", {"inputs": {"feature_ids": [[1]]}}, 400, "Missing named input: feature_vals"),
        ("/v1/models/afm:predict", {"inputs": {"feature_ids": [[1]], "feature_vals": [[1]]}}, 400, "has shape [1,1]"),
        (
            "/v1/models/afm:predict",
            {"inputs": {"feature_ids": [[1, 77]], "feature_vals": [[1, 1]]}},
            400,
            "77 is not in [0, 10)",
        ),
        ("/v1/models/afm:classify", {"examples": [{"A": "x"}]}, 501, "TensorFlow Serving itself"),
        ("/v1/models/afm:classify", {}, 400, "'examples'"),
        ("/v1/models/afm:regress", b"{", 400, "JSON Parse error"),
        ("/V1/models/afm:predict", {"instances": [1]}, 400, "Malformed request"),
        ("/v1/models/afm:PREDICT", {"instances": [1]}, 400, "Malformed request"),
        ("/v1/models/afm?x=1", None, 404, "Could not find any versions of model afm?x=1"),
        ("//v1/models/afm", None, 404, ""),
        ("/v2", None, 404, ""),
        (
            "/v1/models/afm:predict",
            {"signature_name": "raw", "instances": [{"A": "x", "B": "1", "z": 1}]},
            400,
            "Error: INVALID_ARGUMENT: JSON object: does not have named input: z",
        ),
        ("/v1/models/afm:predict", "[" * 100_000, 400, "Is not object"),
        ("/v1/models/afm:predict", b"[" * 100_000, 400, "nested too deeply"),
        ("/v1/models/afm:predict", {"signature_name": "examples", "instances": ["\x00\u00ff"]}, 400, "xample"),
        ("/v1/models/afm:predict", {"signature_name": "examples", "instances": [{"b64": "/////w=="}]}, 400, "xample"),
        ("/elsewhere", None, 404, "/v1/models/"),
    ],
)
def test_rest_errors(server: LocalServer, path: str, body: Any, code: int, says: str) -> None:
    """More of them, that any server must answer alike, are in test_conformance.py."""
    status, answer = http(server, path, body)
    assert status == code
    assert list(answer) == ["error"]
    assert says in answer["error"]


def test_other_methods_are_malformed(server: LocalServer) -> None:
    assert http(server, "/v1/models/afm", method="DELETE") == (
        400,
        {"error": "Malformed request: DELETE /v1/models/afm"},
    )


def test_the_health_check_of_docker_compose_finds_the_model(server: LocalServer, root: Path) -> None:
    service = yaml.safe_load((root / "deploy" / "docker-compose.yml").read_text())["services"]["serving"]
    command = [part.replace("/8501", f"/{server.rest_port}") for part in service["healthcheck"]["test"][1:]]
    assert subprocess.run(command, timeout=20, check=False).returncode == 0
    absent = [part.replace("models/afm", "models/other") for part in command]
    assert subprocess.run(absent, timeout=20, check=False).returncode != 0
