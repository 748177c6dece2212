"""Requests that make no sense, by thousands: each is refused as the client's mistake, and the server stays well."""

from __future__ import annotations

import base64
import gc
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from damage import damaged
from served import tiny_server
from tensorflow_serving.apis import predict_pb2

from serving import tensors
from serving.server.app import LocalServer

# A mistake of the client's is never called INTERNAL or UNKNOWN, and never makes the server go away.
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "OUT_OF_RANGE"}
METHODS = [
    "PredictionService/Predict",
    "PredictionService/GetModelMetadata",
    "PredictionService/Classify",
    "ModelService/GetModelStatus",
    "ModelService/HandleReloadConfigRequest",
    "PredictionService/Nonsense",
]
NAMES = ["afm", "", "x", "serving_default", "raw", "explain", "examples", "feature_ids", "feature_vals", "A", "B"]
SIZES = [0, 1, 2, 3, 7, 1000, 1 << 24, 1 << 40, (1 << 63) - 1, -1, -5]
GOOD_EXAMPLE = (  # two ids and two values
    b"\n5\n\x15\n\x0bfeature_ids\x12\x06\x1a\x04\n\x02\x01\t"
    b"\n\x1c\n\x0cfeature_vals\x12\x0c\x12\n\n\x08\x00\x00\x80?\x00\x00\x80?"
)
PIECES: list[Any] = [
    None, True, 1, -1, 0.5, 1e308, 10**30, 1 << 64, -(1 << 80), float("nan"), float("-inf"), "x", "", "é", "\0",
    "\ud800", "\udfff", "a\ud83d", {"b64": "!"}, {"b64": "eA=="}, {"b64": "/////w=="}, {"b64": "eA\n=="}, [], {},
    [[]], [1, 2], [[1, 2]], ["a"], {"feature_ids": [1, 2], "feature_vals": [1, 1]}, {"A": "x", "B": "1"},
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with tiny_server(tmp_path_factory.mktemp("models")) as running:
        yield running


def good_request(rng: random.Random) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "afm"
    if rng.random() < 0.3:
        request.model_spec.signature_name = "examples"
        tensors.to_proto([GOOD_EXAMPLE, GOOD_EXAMPLE], request.inputs["examples"])
    elif rng.random() < 0.5:
        request.model_spec.signature_name = "raw"
        for name in ("A", "B"):
            tensors.to_proto([b"x", b"1"], request.inputs[name])
    else:
        tensors.to_proto(np.ones((2, 2), np.int64), request.inputs["feature_ids"])
        tensors.to_proto(np.ones((2, 2), np.float32), request.inputs["feature_vals"], compact=rng.random() < 0.5)
    return request


def odd_request(rng: random.Random) -> bytes:
    """A message that is well formed and makes no sense."""
    request = good_request(rng)
    spec = request.model_spec
    if rng.random() < 0.2:
        spec.name = rng.choice(NAMES)
    if rng.random() < 0.3:
        spec.signature_name = rng.choice(NAMES)
    match rng.randrange(8):
        case 0:
            spec.version.value = rng.choice(SIZES)
        case 1:
            spec.version_label = rng.choice(NAMES)
        case 2:
            request.output_filter.extend(rng.choices(NAMES, k=2))
    for _ in range(rng.randint(1, 3)):
        proto = request.inputs[rng.choice([*request.inputs, rng.choice(NAMES)])]
        match rng.randrange(7):
            case 6:
                proto.string_val[:] = [damaged(GOOD_EXAMPLE, rng), rng.randbytes(rng.randrange(9))]
            case 0:
                proto.dtype = rng.choice([0, 1, 2, 3, 7, 8, 9, 10, 14, 19, 20, 21, 22, 23, 101, 127])
            case 1:
                proto.tensor_shape.dim.add().size = rng.choice(SIZES)
            case 2:
                proto.tensor_content = rng.randbytes(rng.randrange(40))
            case 3:
                proto.tensor_shape.unknown_rank = True
            case 4 if proto.tensor_shape.dim:
                rng.choice(proto.tensor_shape.dim).size = rng.choice(SIZES)
            case _:
                proto.int64_val.append(rng.choice(SIZES))
    return request.SerializeToString()


def grpc_request(channel: grpc.Channel, rng: random.Random) -> None:
    kind, method = rng.randrange(3), METHODS[0] if rng.random() < 0.7 else rng.choice(METHODS)
    if kind == 0:
        data = odd_request(rng)
    else:
        data = damaged(good_request(rng).SerializeToString(), rng) if kind == 1 else rng.randbytes(rng.randrange(60))
    try:
        channel.unary_unary(f"/tensorflow.serving.{method}")(data, timeout=30)
    except grpc.RpcError as error:
        assert error.code().name in ALLOWED, (method, data, error.code(), error.details())


def odd_json(rng: random.Random, depth: int = 0) -> Any:
    if depth > 2 or rng.random() < 0.4:
        return rng.choice(PIECES)
    if rng.random() < 0.5:
        return [odd_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = [*NAMES, "instances", "inputs", "signature_name", "b64", "\udfff"]
    return {rng.choice(keys): odd_json(rng, depth + 1) for _ in range(rng.randrange(4))}


def rest_request(port: int, rng: random.Random) -> None:
    """Over a bare socket, so that what is no HTTP at all can be sent, too."""
    path = "/v1/models/afm:predict"
    body: bytes = json.dumps({rng.choice(["instances", "inputs"]): odd_json(rng), "x": 1}).encode()
    headers = ""
    match rng.randrange(13):
        case 8:  # no UTF-8, inside base64 and bare
            example = rng.choice([damaged(GOOD_EXAMPLE, rng), rng.randbytes(rng.randrange(9))])
            row = {"b64": base64.b64encode(example).decode()}
            body = json.dumps({"signature_name": "examples", "instances": [row]}).encode()
        case 9:
            odd = rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\udfff", b"\\u0000", b"\xff\xfe"])
            name = rng.choice([b"examples", b"raw", odd])
            row = b'{"A": "' + odd + b'", "B": "1"}' if rng.random() < 0.5 else b'"' + odd + b'"'
            body = b'{"signature_name": "' + name + b'", "instances": [' + row + b"]}"
        case 10:
            deep = rng.choice([5, 100, 900, 5000, 200_000])
            opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b"[[1],", b"]")])
            name = rng.choice([b"instances", b"inputs", b"x"])
            body = b'{"' + name + b'": ' + opened * deep + b"1" + closed * deep + b"}"
        case 11:
            number = rng.choice([b"1e400", b"9" * 400, b"1" * 20, b"0.1e-999", b"Inf", b"-Infinity", b"1e39"])
            body = b'{"instances": [{"feature_ids": [1, ' + number + b'], "feature_vals": [' + number + b", 1]}]}"
        case 0:
            body = damaged(b'{"instances": [{"feature_ids": [1, 2], "feature_vals": [1.0, 1.0]}]}', rng)
        case 1:
            body = json.dumps(odd_json(rng)).encode()
        case 2:
            part = rng.choice(["versions/3", "versions/99999999999999999999", "versions/x", "labels/y", "labels/%00"])
            path = f"/v1/models/{rng.choice(['afm', 'x', '%FF', 'a%2Fb'])}/{part}:{rng.choice(['predict', 'nope'])}"
        case 3:
            path = rng.choice(["/", "/v1", "/v1/models/afm/metadata", "*", "//", "/v1/models/:predict", "/v1/a b"])
        case 4:
            headers = rng.choice(["Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n", "X\r\n", ": y\r\n"])
        case 5:
            body = (b"[" * rng.choice([10, 5000])) if rng.random() < 0.5 else b'{"inputs": ' + b"9" * 5000 + b"}"
        case 6:
            row = {"A": rng.choice(PIECES), "B": rng.choice(["", "1", rng.choice(PIECES)])}
            body = json.dumps({"signature_name": "raw", "instances": [row, {"A": "x", "B": "1"}]}).encode()
        case 7:
            columns = {
                "feature_ids": [[1, rng.choice([1, 99, -1, 1 << 63])]],
                "feature_vals": [[0.5, rng.choice(PIECES)]],
            }
            body = json.dumps({"signature_name": rng.choice(NAMES), "inputs": columns}).encode()
    method = rng.choice(["POST"] * 8 + ["GET", "PUT", "DELETE", "BREW", "post"])
    length = rng.choice([len(body)] * 12 + [-1, 10**30, "x", "²"])
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    sent = head.encode("latin-1", "replace") + body
    if rng.random() < 0.1:
        sent = damaged(sent, rng) if rng.random() < 0.5 else rng.randbytes(50) + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while more := connection.recv(65536):
                answer += more
        except ConnectionResetError:
            pass  # it hung up with some of the garbage unread
    if answer.startswith(b"HTTP/1"):
        status = int(answer.split()[1])
        assert status < 500 or (status == 501 and b"itself" in answer), (sent, answer)


def bombard(server: LocalServer, count: int, seed: int, resident: Callable[[], float]) -> float:
    """Send so many requests; returns by how many MB the process grew over the last two thirds of them."""
    rng = random.Random(seed)
    before = 0.0
    assert server.rest_port is not None
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for number in range(count):
            if number == count // 3:
                before = resident()
            if number % 2:
                grpc_request(channel, rng)
            else:
                rest_request(server.rest_port, rng)
        growth = resident() - before
        good = predict_pb2.PredictResponse.FromString(
            channel.unary_unary(f"/tensorflow.serving.{METHODS[0]}")(
                good_request(rng).SerializeToString(), timeout=30
            )
        )
    assert good.model_spec.version.value == 3
    return growth


def resident_megabytes() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_500_requests_that_make_no_sense(server: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    assert bombard(server, 500, 1, resident_megabytes) < 40
    assert "Traceback" not in caplog.text


@pytest.mark.soak
def test_10000_requests_that_make_no_sense(server: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    assert bombard(server, 10_000, 2, resident_megabytes) < 40
    assert "Traceback" not in caplog.text
