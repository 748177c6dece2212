"""One version of a model: loaded in its own session, as in TF Serving, and run by signature."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from afm_ctr.io.inputs import open_input
from serving import tensors
from serving.server.flags import ServerFlags
from serving.server.request_errors import RequestError, from_number, invalid

DEFAULT_SIGNATURE = "serving_default"
_WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"

Arrays = dict[str, np.ndarray[Any, Any]]


class Servable:
    """A loaded version.

    It runs in a session of its own, as in the real server: closing the session frees the memory at once, and
    requests from several threads run in it concurrently.

    Args:
        flags: Session parallelism.

    Raises:
        RequestError: the folder cannot be loaded; code and message are TensorFlow's.
    """

    def __init__(self, name: str, version: int, folder: Path, flags: ServerFlags):
        self.name = name
        self.version = version
        self.folder = folder
        self._callables: dict[tuple[str, tuple[str, ...]], Callable[..., list[np.ndarray[Any, Any]]]] = {}
        self._lock = threading.Lock()
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=flags.tensorflow_intra_op_parallelism,
            inter_op_parallelism_threads=flags.tensorflow_inter_op_parallelism,
        )
        if tf.config.get_visible_devices("GPU"):  # by default a session takes every GPU and all its memory
            config.gpu_options.allow_growth = True
            config.gpu_options.visible_device_list = "0"
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            self.signatures = _read_signatures(folder)
            with self._session.graph.as_default():
                tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
        except Exception as error:  # a broken folder fails in many ways
            self._session.close()
            raise _as_fault(error, f"{folder}: ") from error

    def signature(self, name: str) -> meta_graph_pb2.SignatureDef | None:
        """A callable signature by name; the empty name is ``serving_default``."""
        found = self.signatures.get(name or DEFAULT_SIGNATURE)
        return found if found is not None and found.method_name else None

    def run(self, signature_name: str, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str]) -> Arrays:
        """Run a signature.

        Args:
            inputs: One array per input, of the right type.

        Raises:
            RequestError: an op failed; code and message are the op's.
        """
        call = self._callable(signature_name, tuple(outputs))
        try:
            values = call(*(inputs[name] for name in sorted(inputs)))
        except Exception as error:
            raise _as_fault(error) from error
        return dict(zip(outputs, values, strict=True))

    def close(self) -> None:
        """Free the model. No request may be in flight."""
        self._callables.clear()
        self._session.close()

    def _callable(self, name: str, outputs: tuple[str, ...]) -> Callable[..., list[np.ndarray[Any, Any]]]:
        with self._lock:
            found = self._callables.get((name, outputs))
            if found is None:
                signature = self.signatures[name]
                found = self._session.make_callable(
                    [signature.outputs[output].name for output in outputs],
                    feed_list=[signature.inputs[alias].name for alias in sorted(signature.inputs)],
                )
                self._callables[name, outputs] = found
            return found


def warm_up(servable: Servable, predict: Callable[[Servable, predict_pb2.PredictRequest], object]) -> int:
    """Replay the version's warm-up requests and return their number.

    Raises:
        RequestError: a request fails, or the file cannot be read; the version must not be served.
    """
    path = servable.folder / _WARMUP
    if not path.exists():
        return 0
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            if not log.HasField("predict_log"):
                raise invalid(f"only Predict requests can warm up, not {log.WhichOneof('log_type')}")
            predict(servable, log.predict_log.request)
            count += 1
    except Exception as error:
        raise _as_fault(error, f"{path}: record {count}: ") from error
    return count


def check_inputs(signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, Any]) -> Arrays:
    """Decode a request's tensors and check them against the signature.

    Returns:
        Arrays by name.

    Raises:
        RequestError: INVALID_ARGUMENT, with the real server's message if it has one.
    """
    arrays = {}
    for name, info in sorted(signature.inputs.items()):
        if name not in inputs:
            raise invalid(
                f"Signature input alias: {name}(feed name: {info.name}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {_set(inputs)}, or default input alias set: "
            )
        try:
            arrays[name] = tensors.to_array(inputs[name])
        except ValueError as error:
            raise invalid(f"tensor parsing error: {name}: {error}") from None
    if len(inputs) > len(arrays):
        used, sent = ",".join(sorted(arrays)), ",".join(sorted(inputs))
        raise invalid(f"Inputs contains invalid name. Used request inputs: {used}, request input: {sent}")
    for number, (name, info) in enumerate(sorted(signature.inputs.items())):
        if inputs[name].dtype != info.dtype:
            expected, found = tensors.type_name(info.dtype), tensors.type_name(inputs[name].dtype)
            raise invalid(f"Expects arg[{number}] to be {expected} but {found} is provided ({name})")
        _check_shape(name, info.tensor_shape, arrays[name].shape)
    return arrays


def _check_shape(name: str, wanted: Any, shape: Sequence[int]) -> None:
    if wanted.unknown_rank:
        return
    sizes = [dim.size for dim in wanted.dim]
    fits = len(sizes) == len(shape) and all(size in (-1, found) for size, found in zip(sizes, shape, strict=True))
    if not fits:
        expected, found = tensors.format_shape(sizes), tensors.format_shape(shape)
        raise invalid(f"input {name} has shape {found}, but the signature expects {expected} (-1: any size)")


def check_outputs(signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]) -> list[str]:
    """The outputs to compute: the requested ones, or all.

    Raises:
        RequestError: INVALID_ARGUMENT for an unknown or repeated name.
    """
    chosen: list[str] = []
    for name in output_filter:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if name in chosen:
            raise invalid(f"duplicate output tensor alias: {name}")
        chosen.append(name)
    return chosen or sorted(signature.outputs)


def _set(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _read_signatures(folder: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    with open_input(folder / "saved_model.pb") as stream:  # refuses pipes and devices, which would block the watcher
        model = saved_model_pb2.SavedModel.FromString(stream.read())
    for graph in model.meta_graphs:
        if set(graph.meta_info_def.tags) == {tf.saved_model.SERVING}:
            return dict(graph.signature_def)
    raise from_number(5, "no meta graph with the tag 'serve'")


def _as_fault(error: Exception, where: str = "") -> RequestError:
    if isinstance(error, RequestError):
        return RequestError(error.code, f"{where}{error}")
    if isinstance(error, tf.errors.OpError):
        message = error.message.removeprefix("Graph execution error:").partition("Original stack trace")[0].strip()
        return from_number(error.error_code, f"{where}{message}")
    if isinstance(error, UnicodeDecodeError):  # from an op's message that quotes bytes of the request
        return invalid(f"{where}{bytes(error.object).decode('utf-8', 'replace')}")
    if isinstance(error, FileNotFoundError):
        return from_number(5, f"{where}{error.filename or error} is missing")
    return from_number(2, f"{where}{type(error).__name__}: {error}")
