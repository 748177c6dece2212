"""Request message to response message, for both APIs."""

from __future__ import annotations

import grpc
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from serving import tensors
from serving.server.models import DEFAULT_SIGNATURE, Servable, check_inputs, check_outputs
from serving.server.request_errors import RequestError, invalid, not_found
from serving.server.versions import VersionWatcher

Watcher = VersionWatcher[Servable]


def predict(watcher: Watcher, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    """Answer a Predict request.

    Raises:
        RequestError: NOT_FOUND for a model or version, FAILED_PRECONDITION for a signature (as in the real server),
            INVALID_ARGUMENT for inputs and outputs, or the error of an op of the model.
    """
    spec = request.model_spec
    version, label = _version_of(spec)
    with watcher.use(spec.name, version, label) as servable:
        return predict_on(servable, request)


def predict_on(servable: Servable, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    """Answer a Predict request from one version; errors as in :func:`predict`."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signature(name)
    if signature is None and name in servable.signatures and not request.inputs:
        # The loader's bookkeeping entry has no outputs; the real server answers like this.
        raise RequestError(grpc.StatusCode.OUT_OF_RANGE, f"{name} has 0 outputs, tried to fetch output 0")
    if signature is None:
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    inputs = check_inputs(signature, request.inputs)
    outputs = check_outputs(signature, request.output_filter)
    response = predict_pb2.PredictResponse()
    _name(response.model_spec, servable, name)
    for alias, array in servable.run(name, inputs, outputs).items():
        tensors.to_proto(array, response.outputs[alias], compact=False)
    return response


def input_infos(watcher: Watcher, spec: model_pb2.ModelSpec) -> dict[str, meta_graph_pb2.TensorInfo]:
    """The inputs of the signature that a REST request names.

    Raises:
        RequestError: as in :func:`predict`, but INVALID_ARGUMENT for the signature, as in the real REST API.
    """
    version, label = _version_of(spec)
    with watcher.use(spec.name, version, label) as servable:
        signature = servable.signature(spec.signature_name)
    if signature is None:
        name = spec.signature_name or DEFAULT_SIGNATURE
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    return dict(signature.inputs)


def metadata(
    watcher: Watcher, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Answer GetModelMetadata: the signatures.

    Raises:
        RequestError: INVALID_ARGUMENT (no model, unknown field) or NOT_FOUND.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    version, label = _version_of(request.model_spec)
    with watcher.use(request.model_spec.name, version, label) as servable:
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _name(response.model_spec, servable)
    response.metadata["signature_def"].Pack(signatures)
    return response


def status(
    watcher: Watcher, request: get_model_status_pb2.GetModelStatusRequest
) -> get_model_status_pb2.GetModelStatusResponse:
    """Answer GetModelStatus: the state of all versions, or of the requested one. Labels are ignored.

    Raises:
        RequestError: INVALID_ARGUMENT (no model) or NOT_FOUND.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    name = request.model_spec.name
    version, _ = _version_of(request.model_spec)
    found = [item for item in watcher.states() if version in (None, item.version)] if name == watcher.name else []
    if not found and version is not None:
        raise not_found(f"Could not find version {version} of model {name}")
    if not found:
        raise not_found(f"Could not find any versions of model {name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for item in reversed(found):
        added = response.model_version_status.add(version=item.version, state=item.state)
        added.status.error_code = item.error_code
        added.status.error_message = item.error_message
    return response


def _version_of(spec: model_pb2.ModelSpec) -> tuple[int | None, str | None]:
    """Number and label of the requested version; at most one is set. A label may be empty."""
    choice = spec.WhichOneof("version_choice")
    return (
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


def _name(spec: model_pb2.ModelSpec, servable: Servable, signature: str = "") -> None:
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = signature
