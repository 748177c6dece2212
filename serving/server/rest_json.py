"""JSON to tensors and back, by the rules of TF Serving's REST API.

Row form: ``{"instances": [...]}``, one value or object per row. Column form: ``{"inputs": ...}``, whole tensors.
Bytes are ``{"b64": "..."}``. NaN, Infinity and -Infinity are allowed both ways, although they are not JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving import tensors
from serving.server.json_text import parse_json
from serving.server.request_errors import RequestError, from_number, invalid

Infos = Mapping[str, meta_graph_pb2.TensorInfo]

_SHOWN = 200


class JsonRequest:
    """The body of a predict request.

    Raises:
        RequestError: not JSON, not an object, or not one of the two forms.
    """

    def __init__(self, body: bytes):
        document = parse_json(body)
        if not isinstance(document, dict):
            raise invalid(f"JSON Value: {_show(document)} Is not object")
        self.signature_name: str = document.get("signature_name", "")
        if not isinstance(self.signature_name, str) or not _is_unicode(self.signature_name):
            raise invalid(
                f"JSON Value: {_show(document)} not formatted correctly. 'signature_name' key must be a string value."
            )
        self._document = document

    @property
    def by_row(self) -> bool:
        """Whether the request is in row form; not yet validated."""
        return "instances" in self._document

    def content(self) -> Any:
        """The value of ``instances`` or ``inputs``. Raises RequestError: both or neither is given, or no rows."""
        document = self._document
        if "instances" in document and "inputs" in document:
            raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
        if "inputs" in document:
            return document["inputs"]
        if "instances" not in document:
            raise invalid("Missing 'inputs' or 'instances' key")
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(f"JSON Value: {_show(document)} Expecting 'instances' to be an list/array")
        if not instances:
            raise invalid(f"JSON Value: {_show(document)} No values in 'instances' array")
        return instances


def read_request(request: JsonRequest, infos: Infos) -> predict_pb2.PredictRequest:
    """The request as a message, without its model_spec.

    Args:
        infos: The signature's inputs, with the type of each.

    Raises:
        RequestError: INVALID_ARGUMENT; the message names the row and the input.
    """
    if not infos:
        raise invalid(f"Failed to get input map for signature: {request.signature_name or 'DEFAULT'}")
    content = request.content()
    arrays = _from_rows(content, infos) if request.by_row else _from_columns(content, infos)
    message = predict_pb2.PredictRequest()
    for name, array in arrays.items():
        tensors.to_proto(array, message.inputs[name])
    return message


def format_answer(response: predict_pb2.PredictResponse, *, by_row: bool) -> bytes:
    """The response as JSON, in the form of its request.

    Raises:
        RequestError: row form, but the outputs have no common first dimension.
    """
    arrays = {name: tensors.to_array(proto) for name, proto in sorted(response.outputs.items())}
    if not arrays:
        raise invalid("Cannot convert empty tensor map to JSON")
    if by_row:
        _check_rows(arrays)
    lists = {name: _to_lists(name, array) for name, array in arrays.items()}
    if len(lists) == 1:
        (answer,) = lists.values()
    elif by_row:
        answer = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    else:
        answer = lists
    return json.dumps({"predictions" if by_row else "outputs": answer}, ensure_ascii=False).encode()


def _from_rows(instances: list[Any], infos: Infos) -> dict[str, np.ndarray[Any, Any]]:
    named = _is_named(instances[0])
    if not named and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    if not named:
        for number, item in enumerate(instances):
            if _is_named(item):
                raise invalid(f"Expecting value/list but got object at item {number} of input list")
        (name,) = infos
        return {name: _rows_to_array(instances, infos[name])}
    for number, item in enumerate(instances):
        if not _is_named(item):
            raise invalid(f"Expecting object but got list at item {number} of input list")
        unknown = next((key for key in item if key not in infos), None)
        if unknown is not None:
            raise invalid(
                f"Failed to process element: {number} key: {unknown} of 'instances' list. Error: INVALID_ARGUMENT: "
                f"JSON object: does not have named input: {unknown}"
            )
        if item.keys() != infos.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {_show(item)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )
    return {
        name: _rows_to_array([item[name] for item in instances], info, f" key: {name}")
        for name, info in infos.items()
    }


def _rows_to_array(rows: list[Any], info: Any, key: str = "") -> np.ndarray[Any, Any]:
    try:
        return _to_array(rows, info.dtype)
    except RequestError as fault:
        raise _blame(rows, info, key) or fault from None


def _blame(rows: list[Any], info: Any, key: str) -> RequestError | None:
    """The error for the first row that does not fit the column; slow, so only used once the whole was refused."""
    first: tuple[int, ...] | None = None
    for number, row in enumerate(rows):
        where = f"Failed to process element: {number}{key} of 'instances' list. Error: INVALID_ARGUMENT:"
        try:
            shape = _to_array(row, info.dtype).shape
        except RequestError as error:
            return invalid(f"{where} {error}")
        first = shape if first is None else first
        if math.prod(shape) != math.prod(first):
            raise invalid(f"{where} Expecting tensor size: {math.prod(first)} but got: {math.prod(shape)}")
        if shape != first:
            expected, found = tensors.format_shape(first), tensors.format_shape(shape)
            return invalid(f"{where} Expecting shape {expected} but got: {found}")
    return None


def _from_columns(inputs: Any, infos: Infos) -> dict[str, np.ndarray[Any, Any]]:
    if not _is_named(inputs):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        (name,) = infos
        return {name: _to_array(inputs, infos[name].dtype)}
    arrays = {}
    for name, info in infos.items():
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        try:
            arrays[name] = _to_array(inputs[name], info.dtype)
        except RequestError as error:
            raise invalid(f"input {name}: {error}") from None
    return arrays


def _to_array(value: Any, dtype: int) -> np.ndarray[Any, Any]:
    shape, flat = _flatten(value)
    wanted = tensors.type_name(dtype)
    target = tensors.numpy_type(dtype)
    if target is None:
        raise from_number(12, f"Conversion of JSON Value: {_show(value)} to type: {wanted}")
    if wanted == "string":
        return tensors.objects([_string(item) for item in flat]).reshape(shape)
    allowed: set[type] = {bool} if wanted == "bool" else {int, float} if target.kind == "f" else {int}
    if not set(map(type, flat)) <= allowed:
        wrong = next(item for item in flat if type(item) not in allowed)
        raise _type_error(wrong, wanted)
    if target.kind == "f":
        return _floats(flat, target, wanted).reshape(shape)
    try:
        return np.array(flat, dtype=target).reshape(shape)
    except OverflowError:
        limits = np.iinfo(target)
        raise _type_error(next(item for item in flat if not limits.min <= item <= limits.max), wanted) from None


def _floats(flat: Sequence[float], target: np.dtype[Any], wanted: str) -> np.ndarray[Any, Any]:
    try:
        with np.errstate(over="ignore"):  # values out of range become infinite, as in the real server
            return np.array(flat, dtype=np.float64).astype(target)
    except OverflowError:
        raise _type_error(max(flat, key=abs), wanted) from None


def _flatten(value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and values of a nested list; the first element of each level sets its length and depth."""
    shape: list[int] = []
    flat = [value]
    while flat and isinstance(flat[0], list):
        size = len(flat[0])
        for item in flat:
            if not isinstance(item, list):
                raise invalid(
                    f"JSON Value: {_show(item)} found at incorrect level: {len(shape) + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape) + 2}"
                )
            if len(item) != size:
                raise invalid(
                    f"Encountered list at unexpected size: {len(item)} at level: {len(shape)} expected size: {size}"
                )
        shape.append(size)
        flat = list(chain.from_iterable(flat))
    if any(isinstance(item, list) for item in flat):
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return tuple(shape), flat


def _string(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")  # restores bytes that are not UTF-8
    if not isinstance(value, dict):
        raise _type_error(value, "string")
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_show(value)} not formatted correctly for base64 data")
    try:
        text = re.sub(r"\s", "", value["b64"], flags=re.ASCII).rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)  # padding is optional
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _to_lists(name: str, array: np.ndarray[Any, Any]) -> Any:
    if array.dtype == object:
        flat: list[Any] = [_text(name, item) for item in array.reshape(-1)]
    elif array.dtype.kind == "f" and array.dtype.itemsize < 8:
        # The shortest decimal that reads back as the same float: 0.2, not 0.20000000298.
        flat = [float(text) for text in array.reshape(-1).astype(str)]
    else:
        return array.tolist()
    return tensors.objects(flat).reshape(array.shape).tolist()


def _text(name: str, item: bytes) -> Any:
    if name.endswith("_bytes"):
        return {"b64": base64.b64encode(item).decode("ascii")}
    return item.decode("utf-8", "replace")


def _check_rows(arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    rows: int | None = None
    for name, array in arrays.items():
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (None, len(array)):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}")
        rows = len(array)


def _is_unicode(text: str) -> bool:
    """Whether the text has a UTF-8 form: JSON may contain half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _type_error(value: Any, wanted: str) -> RequestError:
    kinds = {dict: "Object", list: "Array", str: "String", bool: str(value), type(None): "Null"}
    return invalid(
        f"JSON Value: {_show(value)} Type: {kinds.get(type(value), 'Number')} is not of expected type: {wanted}"
    )


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "(nested too deeply)"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
