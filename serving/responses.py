"""A server's responses as plain Python and NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving import tensors
from serving.cell_text import ColumnForm
from serving.protos import wire_pb2 as wire


class TensorSpec(NamedTuple):
    """One tensor of a signature. ``shape`` is None for an unknown rank; -1 is a size that is not fixed."""

    dtype: str
    shape: tuple[int, ...] | None


class ColumnSpec(TensorSpec):
    """A raw column whose form the model records.

    Attributes:
        form: the kind of values it holds.
    """

    form: ColumnForm


class Signature(NamedTuple):
    """Named inputs and outputs."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class Metadata(NamedTuple):
    """Number and signatures of one version of a model."""

    version: int
    signatures: dict[str, Signature]


class VersionStatus(NamedTuple):
    """Status of one version: ``state`` is START, LOADING, AVAILABLE, UNLOADING or END."""

    version: int
    state: str
    error_code: int
    error_message: str


class Outputs(dict[str, np.ndarray[Any, Any]]):
    """Arrays by output name; ``version`` is the version that answered."""

    def __init__(self, arrays: Mapping[str, np.ndarray[Any, Any]], version: int):
        super().__init__(arrays)
        self.version = version


class Scores(dict[str, np.ndarray[Any, Any]]):
    """Outputs of many rows by name; ``versions`` are those that answered: several if the version changed."""

    def __init__(self, arrays: Mapping[str, np.ndarray[Any, Any]], versions: Iterable[int]):
        super().__init__(arrays)
        self.versions = sorted(set(versions))


def join(parts: Sequence[Outputs], specs: Mapping[str, TensorSpec]) -> Scores:
    """Concatenate the outputs of batches; without batches, empty arrays by the signature's ``specs``."""
    if parts:
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Scores(arrays, [part.version for part in parts])
    arrays = {}
    for name, spec in specs.items():
        rest = [max(size, 0) for size in (spec.shape or (0,))[1:]]
        arrays[name] = np.zeros((0, *rest), tensors.numpy_type_of(spec.dtype))
    return Scores(arrays, [])


def read_prediction(response: wire.PredictResponse) -> Outputs:
    """Decode a Predict response."""
    arrays = {name: tensors.to_array(proto) for name, proto in response.outputs.items()}
    return Outputs(arrays, response.model_spec.version.value)


def read_status(response: wire.GetModelStatusResponse) -> list[VersionStatus]:
    """Decode a GetModelStatus response, sorted by version."""
    state_name = wire.ModelVersionStatus.State.Name
    return sorted(
        VersionStatus(item.version, state_name(item.state), item.status.error_code, item.status.error_message)
        for item in response.model_version_status
    )


def read_metadata(response: wire.GetModelMetadataResponse) -> Metadata:
    """Decode a GetModelMetadata response; the signatures are one packed message in it."""
    signatures = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    return Metadata(
        response.model_spec.version.value,
        {
            name: Signature(_specs(item.inputs), _specs(item.outputs))
            for name, item in sorted(signatures.signature_def.items())
            if item.method_name  # without one it is bookkeeping of the loader and cannot be called
        },
    )


def _specs(infos: Mapping[str, wire.TensorInfo]) -> dict[str, TensorSpec]:
    return {name: _spec(info) for name, info in sorted(infos.items())}


def _spec(info: wire.TensorInfo) -> TensorSpec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    form = ColumnForm.from_name(info.tensor_shape.dim[0].name) if shape else None
    if form is None:
        return TensorSpec(tensors.type_name(info.dtype), shape)
    spec = ColumnSpec(tensors.type_name(info.dtype), shape)
    spec.form = form
    return spec
