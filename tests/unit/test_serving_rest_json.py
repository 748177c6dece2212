"""JSON to tensors and back by TF Serving's REST rules."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving import tensors
from serving.server.request_errors import RequestError
from serving.server.rest_json import JsonRequest, format_answer, read_request

NUMBERS = {name: number for number in range(24) if (name := tensors.type_name(number))}


def infos(**types: str) -> dict[str, meta_graph_pb2.TensorInfo]:
    return {name: meta_graph_pb2.TensorInfo(dtype=NUMBERS[kind]) for name, kind in types.items()}


def read(body: Any, **types: str) -> dict[str, np.ndarray]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    message = read_request(JsonRequest(raw), infos(**types))
    return {name: tensors.to_array(proto) for name, proto in message.inputs.items()}


def refuse(body: Any, **types: str) -> str:
    with pytest.raises(RequestError) as caught:
        read(body, **types)
    assert caught.value.http_status in (400, 501)
    return str(caught.value)


def test_row_form_with_one_input_takes_bare_values() -> None:
    assert read({"instances": [[1, 2], [3, 4]]}, x="int64")["x"].tolist() == [[1, 2], [3, 4]]
    assert read({"instances": [{"x": 1.5}, {"x": 2}]}, x="float")["x"].tolist() == [1.5, 2.0]


def test_row_form_with_several_inputs_takes_objects() -> None:
    arrays = read({"instances": [{"s": "é", "v": [1]}, {"s": {"b64": "/wA="}, "v": [2]}]}, s="string", v="double")
    assert arrays["s"].tolist() == ["é".encode(), b"\xff\0"]
    assert arrays["v"].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**60 + 1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize(
    "body", [{"instances": [[0]]}, {"instances": [{"x": 0}]}, {"inputs": [0]}, {"inputs": {"x": [0]}}]
)
def test_whole_numbers_that_no_float_holds_pass_unchanged(value: int, body: dict[str, Any]) -> None:
    found = read(json.dumps(body).replace("0", str(value)).encode(), x="int64")["x"]
    assert found.dtype == np.int64 and found.reshape(-1).tolist() == [value]
    response = predict_pb2.PredictResponse()
    tensors.to_proto(np.array([value], np.int64), response.outputs["y"])
    assert json.loads(format_answer(response, by_row=True)) == {"predictions": [value]}


def test_column_form() -> None:
    arrays = read({"inputs": {"s": ["a", "b"], "v": [[1], [2]]}}, s="string", v="int32")
    assert arrays["s"].tolist() == [b"a", b"b"]
    assert arrays["v"].dtype == np.int32
    assert read({"inputs": ["a"]}, s="string")["s"].tolist() == [b"a"]
    assert read({"inputs": {"b64": "YQ"}}, s="string")["s"].tolist() == b"a"  # padding may be left out
    assert read({"inputs": []}, s="string")["s"].shape == (0,)


def test_values_that_json_itself_has_not() -> None:
    array = read(b'{"instances": [NaN, Infinity, -Infinity]}', x="float")["x"]
    np.testing.assert_array_equal(array, np.array([np.nan, np.inf, -np.inf], np.float32))


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (1.5, "int64", "JSON Value: 1.5 Type: Number is not of expected type: int64"),
        ("1", "int64", 'JSON Value: "1" Type: String is not of expected type: int64'),
        (True, "int64", "Type: True is not of expected type: int64"),
        (1, "string", "Type: Number is not of expected type: string"),
        (None, "float", "Type: Null is not of expected type: float"),
        (1, "bool", "not of expected type: bool"),
        (300, "uint8", "JSON Value: 300 Type: Number is not of expected type: uint8"),
        (1 << 63, "int64", "is not of expected type: int64"),
        (10**400, "float", "Number too big to be stored in double"),
        (1 << 64, "uint64", "is not of expected type: uint64"),
        ("Zürich", "float", "JSON Value: .Zürich. Type: String is not of expected type: float"),
        ({"b64": "%%"}, "string", "Unable to base64 decode"),
        ({"b64": 1}, "string", "not formatted correctly for base64|Expecting|must be equal|keys"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(value: Any, kind: str, says: str) -> None:

    assert re.search(says, refuse({"inputs": {"x": [value]}}, x=kind))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "The document is empty"),
        (b"{", "JSON Parse error"),
        (b"\xff", "JSON Parse error"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [1], "inputs": [1]}, "only one of 'inputs' or 'instances'"),
        ({"instances": {}}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"signature_name": 1, "instances": [1]}, "'signature_name' key must be a string value"),
        ({"instances": [1]}, "instances is a plain list, but expecting list of objects"),
        ({"inputs": [1]}, "inputs is a plain value/list, but expecting an object"),
        ({"inputs": {"a": ["x"]}}, "Missing named input: b in 'inputs' object"),
        ({"instances": [{"a": "x"}]}, "keys must be equal to: a,b"),
        (
            {"instances": [{"a": "x", "b": 1, "c": 2}]},
            "element: 0 key: c .*: .*not have named input: c",
        ),
        ({"instances": [{"a": "x", "b": 1}, [1]]}, "Expecting object but got list at item 1"),
        (
            {"instances": [{"a": "x", "b": 1}, {"a": "x", "b": "y"}]},
            "Failed to process element: 1 key: b of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"y\"",
        ),
        (
            {"instances": [{"a": "x", "b": [1]}, {"a": "x", "b": [1, 2]}]},
            r"element: 1 key: b .* Expecting tensor size: 1 but got: 2",
        ),
        (
            {"instances": [{"a": "x", "b": [1]}, {"a": "x", "b": [[1]]}]},
            r"element: 1 key: b .* Expecting shape \[1\] but got: \[1,1\]",
        ),
        ({"inputs": {"a": ["x"], "b": [1, [2]]}}, "unexpected level"),
        ({"inputs": {"a": ["x"], "b": [[1], [2, 3]]}}, "unexpected size: 2 at level: 1 expected size: 1"),
        ({"inputs": {"a": ["x"], "b": [[1], 2]}}, "incorrect level"),
    ],
)
def test_a_body_that_is_wrong_says_how(body: Any, says: str) -> None:

    assert re.search(says, refuse(body, a="string", b="int64"))


def test_numbers_and_strings_as_the_real_server_reads_them() -> None:
    assert read({"inputs": [(1 << 24) + 1, 1e39, -1e39]}, x="float")["x"].tolist() == [2.0**24, np.inf, -np.inf]
    assert read({"inputs": [(1 << 53) + 1, -(1 << 63), (1 << 63) - 1]}, x="int64")["x"].tolist() == [
        (1 << 53) + 1,
        -(1 << 63),
        (1 << 63) - 1,
    ]
    assert read({"inputs": [(1 << 64) - 1]}, x="uint64")["x"].tolist() == [(1 << 64) - 1]
    assert read(b'{"inputs": [Inf, -Inf, NaN]}', x="double")["x"].tolist()[:2] == [np.inf, -np.inf]
    assert read(b'{"inputs": ["Inf", "a\\"Inf"], "x": Inf}', s="string")["s"].tolist() == [b"Inf", b'a"Inf']
    assert read({"inputs": [{"b64": "YWJj\nZGVm\r\n"}]}, s="string")["s"].tolist() == [b"abcdef"]
    assert read(b'{"inputs": ["\xff\xc3"]}', s="string")["s"].tolist() == [b"\xff\xc3"]
    assert read(b'{"inputs": ["\\ud83d\\ude00"]}', s="string")["s"].tolist() == ["\U0001f600".encode()]
    assert read(b'{"inputs": [1], "inputs": [2]}', x="int64")["x"].tolist() == [1]
    assert read(b'{"inputs": [1]}} {', x="int64")["x"].tolist() == [1]


@pytest.mark.parametrize(
    "text",
    [
        rb'"\ud800"',
        rb'"\udc00"',
        rb'"\ud800\ud800"',
        rb'"\ud800x\udc00"',
        rb'"\ud800 \n"',
        rb'"\ud800\u0041"',
        rb'"\ud83d\ude00\ude00"',
        b"1e400",
        b"-1e400",
        b"9" * 5000,
        '{"inputs": [1]}'.encode("utf-16"),
        b"\xef\xbb\xbf[1]",
        b"Infx",
    ],
)
def test_text_that_the_real_server_does_not_parse(text: bytes) -> None:
    assert "JSON Parse error" in refuse(b'{"inputs": [' + text + b"]}", x="string")


def answer(by_row: bool, **arrays: np.ndarray) -> Any:
    response = predict_pb2.PredictResponse()
    for name, array in arrays.items():
        tensors.to_proto(array, response.outputs[name], compact=False)
    return json.loads(format_answer(response, by_row=by_row))


def test_answers_take_the_form_of_the_request() -> None:
    p, n = np.array([0.25, 0.5], np.float32), np.array([[1], [2]], np.int32)
    assert answer(True, p=p, n=n) == {"predictions": [{"n": [1], "p": 0.25}, {"n": [2], "p": 0.5}]}
    assert answer(False, p=p, n=n) == {"outputs": {"n": [[1], [2]], "p": [0.25, 0.5]}}
    assert answer(True, p=p) == {"predictions": [0.25, 0.5]}
    assert answer(False, p=p) == {"outputs": [0.25, 0.5]}


def test_floats_are_as_short_as_they_can_be_and_read_back_the_same() -> None:
    values = np.array([0.2, 1 / 3, 1e-30, 3.0], np.float32)
    found = answer(False, p=values)["outputs"]
    assert found[0] == 0.2
    np.testing.assert_array_equal(np.array(found, np.float32), values)


def test_bytes_in_answers() -> None:
    cells = np.array([b"a\xff"], dtype=object)
    assert answer(True, image_bytes=cells) == {"predictions": [{"b64": "Yf8="}]}
    assert answer(True, text=np.array(["é".encode()], dtype=object)) == {"predictions": ["é"]}


def test_rows_need_a_common_first_dimension() -> None:
    with pytest.raises(RequestError, match="inconsistent batch size: 1 expecting: 2"):
        answer(True, a=np.zeros(2), b=np.zeros(1))
    with pytest.raises(RequestError, match="no shape information"):
        answer(True, a=np.float64(1))
