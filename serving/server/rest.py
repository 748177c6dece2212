"""The REST API: routes and answers."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving.server import handlers
from serving.server.http_server import error_body
from serving.server.json_text import parse_json
from serving.server.request_errors import RequestError, from_number, invalid
from serving.server.rest_json import JsonRequest, format_answer, read_request

# As in the real server, a query string is part of the path: only names can contain it.
_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)")
_STATUS = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?P<metadata>/(?i:metadata))?")
_API = re.compile(r"/v1/", re.IGNORECASE)

_ADVICE = "run TensorFlow Serving itself on the same folder (deploy/docker-compose.yml)"


class RestApi:
    """Answers HTTP requests as documented for TensorFlow Serving's REST API."""

    def __init__(self, watcher: handlers.Watcher):
        self._watcher = watcher

    def __call__(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """HTTP method, request target and body to HTTP status and JSON body."""
        path = re.sub(r"^https?://[^/]*", "", target, flags=re.IGNORECASE)  # proxies send the absolute form
        try:
            return 200, self._route(method, path, body)
        except RequestError as error:
            return error.http_status, error_body(str(error))

    def _route(self, method: str, path: str, body: bytes) -> bytes:
        if not _API.match(path):
            raise from_number(5, f"nothing here: {path}; the API begins with /v1/models/")
        if method == "POST" and (found := _PREDICT.fullmatch(path)):
            if found["method"] != "predict":
                _check_examples(body)
                raise from_number(12, f"{found['method']} is not part of this local server: {_ADVICE}")
            return self._predict(_spec(found), body)
        if method == "GET" and (found := _STATUS.fullmatch(path)):
            if not found["name"]:
                raise invalid("Missing model name in request.")
            # The real server knows "metadata" in lower case only; other spellings get the status.
            return self._metadata(_spec(found)) if found["metadata"] == "/metadata" else self._status(_spec(found))
        raise invalid(f"Malformed request: {method} {path}")

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        request = JsonRequest(body)
        spec.signature_name = request.signature_name
        message = read_request(request, handlers.input_infos(self._watcher, spec))
        message.model_spec.CopyFrom(spec)
        return format_answer(handlers.predict(self._watcher, message), by_row=request.by_row)

    def _status(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        return _json(_as_dict(handlers.status(self._watcher, request)))

    def _metadata(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = handlers.metadata(self._watcher, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return _json(
            {"model_spec": _as_dict(response.model_spec), "metadata": {"signature_def": _as_dict(signatures)}}
        )


def _check_examples(body: bytes) -> None:
    """Check that a body is one for classify or regress: ``{"examples": [{...}]}``."""
    document = parse_json(body)
    examples = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(examples, list) or not examples or not all(isinstance(item, dict) for item in examples):
        raise invalid("Request must have 'examples' as a list of objects")


def _spec(found: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(found["name"]))
    if found["version"] is not None:
        if len(found["version"]) > 19 or int(found["version"]) >= 1 << 63:
            raise invalid(f"Failed to convert version: {found['version'][:30]} to numeric.")
        spec.version.value = int(found["version"])
    elif found["label"] is not None:
        spec.version_label = unquote(found["label"])
    return spec


def _as_dict(message: Any) -> Any:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
