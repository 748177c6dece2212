"""The gRPC API: PredictionService and ModelService with TensorFlow Serving's messages, and the health service."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serving.server import handlers
from serving.server.request_errors import RequestError, invalid

log = logging.getLogger("serving.server")

_LONGEST = 2000  # bytes: a longer message may exceed the client's limit for headers, and hide the error

_ADVICE = (
    "is not part of this local server: run TensorFlow Serving itself on the same folder (deploy/docker-compose.yml)"
)


class Health:
    """The standard health service, under the real server's names: SERVING once a version is loaded."""

    _NAMES = ("", "PredictionService", "ModelService")

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self.set(False)

    def set(self, serving: bool) -> None:
        """Set the state and notify watchers."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._NAMES:
            self._servicer.set(name, state)

    def add_to(self, server: grpc.Server) -> None:
        """Register the service."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)


def add_services(server: grpc.Server, watcher: handlers.Watcher) -> None:
    """Register PredictionService and ModelService."""
    methods_of = {
        "PredictionService": {
            "Predict": _method(predict_pb2.PredictRequest, lambda request: handlers.predict(watcher, request)),
            "GetModelMetadata": _method(
                get_model_metadata_pb2.GetModelMetadataRequest, lambda request: handlers.metadata(watcher, request)
            ),
            **{name: _refused(name) for name in ("Classify", "Regress", "MultiInference")},
        },
        "ModelService": {
            "GetModelStatus": _method(
                get_model_status_pb2.GetModelStatusRequest, lambda request: handlers.status(watcher, request)
            ),
            "HandleReloadConfigRequest": _refused("HandleReloadConfigRequest"),
        },
    }
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", methods)
            for service, methods in methods_of.items()
        )
    )


def _method(kind: Any, answer: Callable[[Any], Any]) -> grpc.RpcMethodHandler:
    """A method that decodes the bytes itself: for malformed messages gRPC would answer INTERNAL."""

    def handle(data: bytes, context: grpc.ServicerContext) -> Any:
        try:
            try:
                request = kind.FromString(data)
            except DecodeError as error:
                raise invalid(f"the request is not a {kind.DESCRIPTOR.full_name}: {error}") from None
            return answer(request)
        except RequestError as error:
            context.abort(error.code, _short(str(error)))
        except Exception as error:
            log.exception("a request failed")
            context.abort(grpc.StatusCode.INTERNAL, _short(f"{type(error).__name__}: {error}"))

    return grpc.unary_unary_rpc_method_handler(
        handle, response_serializer=lambda response: response.SerializeToString()
    )


def _refused(name: str) -> grpc.RpcMethodHandler:
    def handle(data: bytes, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} {_ADVICE}")

    return grpc.unary_unary_rpc_method_handler(handle)


def _short(text: str) -> str:
    return text.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore")
