"""A connection to a model server: Predict, GetModelMetadata and GetModelStatus calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import grpc
import numpy as np

from serving import tensors
from serving.calls import Call, Method, Servers
from serving.channel import open_channels, proxy_in_the_way, read_targets
from serving.errors import BadCells, DeadlineExceeded, InvalidArgument, NotFound, ServingError, Unavailable, from_rpc
from serving.protos import wire_pb2 as wire
from serving.responses import Metadata, Outputs, VersionStatus, read_metadata, read_prediction, read_status

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


class Pending:
    """The result of a request in flight; see :meth:`Connection.submit`."""

    def __init__(self, wait: Callable[[], Outputs], cancel: Callable[[], object]):
        self._wait = wait
        self._cancel = cancel

    def result(self) -> Outputs:
        """Wait for the answer; retries happen here.

        Raises:
            ServingError: the subclass that fits the failure.
        """
        return self._wait()

    def cancel(self) -> None:
        """Cancel the call."""
        self._cancel()


class Connection:
    """A connection to one model. Threads may share it; close it, or use it as a context manager.

    Args:
        target: host:port of the server's gRPC API, or any name that gRPC resolves, such as ``dns:///afm:8500``; or
            several, as a list or separated by commas. Requests are spread over all servers that can be reached.
        version: The version to call; default: the server's latest.
        label: The label of the version to call (TF Serving maps labels to versions); excludes ``version``.
        timeout: Seconds per call, retries included.
        max_in_flight: Concurrent requests in ``score`` and ``score_rows``.
        credentials: TLS credentials, see :func:`serving.channel.tls_credentials`; default: no TLS.
        server_name: The name in the server's certificate, if it is not the target's.
        metadata: gRPC metadata to send with every call, such as a token.
        wait_for_ready: While no server can be reached, calls wait until their deadline. By default they raise
            Unavailable after five attempts, within about two seconds. Calls to an overloaded server are always
            retried until the deadline, with growing pauses.
        allow_bad_cells: Return scores of rows with cells that the server could not read and treated as missing (the
            output ``bad_cells`` counts them). By default such rows raise BadCells.

    Raises:
        ValueError: both ``version`` and ``label`` are given, the model's name or version is invalid, ``timeout`` or
            ``max_in_flight`` is not positive, or a target is not host:port.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        model_name: str = "afm",
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        *,
        max_in_flight: int = 4,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        wait_for_ready: bool = False,
        allow_bad_cells: bool = False,
    ):
        if version is not None and label is not None:
            raise ValueError("give version or label, not both")
        if not timeout > 0 or max_in_flight < 1:
            raise ValueError(f"timeout={timeout} and max_in_flight={max_in_flight} must be positive")
        if not isinstance(model_name, str) or not model_name:
            raise ValueError(f"model_name must be the name of a model, got {model_name!r}")
        if version is not None and not isinstance(version, int):
            raise ValueError(f"version must be a whole number, got {version!r}")
        targets = read_targets(target)
        self.target = ",".join(targets)
        self.model_name = model_name
        self.version = version
        self.label = label
        self.timeout = timeout
        self.max_in_flight = max_in_flight
        self.wait_for_ready = wait_for_ready
        self.allow_bad_cells = allow_bad_cells
        self._secure = credentials is not None
        self._proxy = proxy_in_the_way(targets)
        self._call_metadata = list(metadata) or None
        self._servers = Servers(open_channels(targets, credentials, server_name))
        self._predict = self._servers.method(_PREDICT, wire.PredictResponse)
        self._get_metadata = self._servers.method(_METADATA, wire.GetModelMetadataResponse)
        self._get_status = self._servers.method(_STATUS, wire.GetModelStatusResponse)

    def build_request(
        self, inputs: Mapping[str, Any], signature: str = "raw", outputs: Sequence[str] = ()
    ) -> wire.PredictRequest:
        """The message that :meth:`predict` sends.

        Raises:
            InvalidArgument: an input that cannot be sent; the message names it.
        """
        if not isinstance(inputs, Mapping):
            raise InvalidArgument(f"inputs are arrays by name, {{name: array}}, not {type(inputs).__name__}")
        request = wire.PredictRequest(model_spec=self._model_spec(signature), output_filter=outputs)
        for name, value in inputs.items():
            try:
                tensors.to_proto(value, request.inputs[name])
            except ValueError as error:
                raise InvalidArgument(f"input {name}: {error}") from None
        return request

    def submit(self, inputs: Mapping[str, Any], signature: str = "raw", outputs: Sequence[str] = ()) -> Pending:
        """Send a request without waiting; arguments as in :meth:`predict`."""
        pending = self._send(inputs, signature, outputs)
        return Pending(lambda: self._checked(pending.result(), inputs, signature), pending.cancel)

    def predict(self, inputs: Mapping[str, Any], signature: str = "raw", outputs: Sequence[str] = ()) -> Outputs:
        """Compute the outputs of one batch.

        Args:
            inputs: Arrays by input name, first dimension B. Strings are object arrays (or lists) of bytes or str.
            signature: The model's signature to call.
            outputs: The outputs to return; default: all.

        Returns:
            Arrays by output name, first dimension B, and the version that answered.

        Raises:
            ServingError: Unavailable, DeadlineExceeded, InvalidArgument or NotFound; ServingError itself for other
                failures. BadCells if the output ``bad_cells`` is not 0 and ``allow_bad_cells`` is off.
        """
        return self.submit(inputs, signature, outputs).result()

    def status(self, timeout: float | None = None) -> list[VersionStatus]:
        """Status of the model's versions, by number; of a client with a version or label, that version's only.

        TensorFlow Serving ignores labels here, so GetModelMetadata resolves a label first.
        """
        end = time.monotonic() + (self.timeout if timeout is None else timeout)
        spec = self._model_spec()
        if self.label is not None:
            spec.version.value = self.metadata(timeout).version
        request = wire.GetModelStatusRequest(model_spec=spec)
        return read_status(self._ask(self._get_status, request, max(end - time.monotonic(), 0.01)))

    def metadata(self, timeout: float | None = None) -> Metadata:
        """Version and signatures of the model that answers now."""
        request = wire.GetModelMetadataRequest(model_spec=self._model_spec(), metadata_field=["signature_def"])
        return read_metadata(self._ask(self._get_metadata, request, timeout))

    def wait_ready(self, timeout: float = 60.0) -> VersionStatus:
        """Wait until the model is available, by GetModelStatus (for a label also GetModelMetadata).

        Returns:
            The newest version that is available.

        Raises:
            Unavailable: not within ``timeout`` seconds; the message gives the last state seen.
        """
        end = time.monotonic() + timeout
        not_yet = (Unavailable, NotFound, DeadlineExceeded, *([InvalidArgument] if self.label else []))
        while True:
            try:
                versions = self.status(timeout=min(self.timeout, max(end - time.monotonic(), 0.01)))
                ready = [item for item in versions if item.state == "AVAILABLE"]
                if ready:
                    return ready[-1]
                seen = "; ".join(f"version {v.version} {v.state} {v.error_message}".strip() for v in versions)
            except not_yet as error:  # a label that is not there yet is INVALID_ARGUMENT
                seen = str(error)
            if time.monotonic() + 0.3 >= end:  # too short for another call
                raise Unavailable(f"model {self.model_name} at {self.target} was not ready in {timeout:g} s: {seen}")
            time.sleep(0.1)

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._servers.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} has open connections: make one in each process instead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _model_spec(self, signature: str = "") -> wire.ModelSpec:
        spec = wire.ModelSpec(name=self.model_name, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        elif self.label is not None:
            spec.version_label = self.label
        return spec

    def _send(self, inputs: Mapping[str, Any], signature: str, outputs: Sequence[str]) -> Pending:
        """:meth:`submit` without the check of ``bad_cells``."""
        call = self._call(self._predict, self.build_request(inputs, signature, outputs), self.timeout)

        def wait() -> Outputs:
            outputs = read_prediction(self._result(call))
            self._answered_by(outputs.version)
            return outputs

        return Pending(wait, call.cancel)

    def _ask(self, method: Method, request: Any, timeout: float | None) -> Any:
        return self._result(self._call(method, request, self.timeout if timeout is None else timeout))

    def _call(self, method: Method, request: Any, timeout: float) -> Call:
        return Call(method, request, timeout, self._call_metadata, patient=self.wait_for_ready)

    def _result(self, call: Call) -> Any:
        try:
            return call.result()
        except grpc.RpcError as error:
            raise from_rpc(error, self.target, call.timeout, self._secure, self._proxy) from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self.target} did not answer within {call.timeout:g} s") from None
        except grpc.FutureCancelledError:
            raise ServingError(f"the call to {self.target} was cancelled", "CANCELLED") from None

    def _checked(self, outputs: Outputs, inputs: Mapping[str, Any], signature: str, start: int = 0) -> Outputs:
        """``outputs`` of rows from ``start``. Raises BadCells if some cells were not read."""
        bad = outputs.get("bad_cells")
        if self.allow_bad_cells or bad is None or not bad.any():
            return outputs
        first, *others = np.flatnonzero(bad).tolist()
        count = int(bad[first])
        more = f" and {len(others)} more rows" if others else ""
        columns = self._bad_columns({name: np.asarray(inputs[name])[first] for name in inputs}, signature, count)
        named = f", column {', '.join(columns)}" if columns else ""
        raise BadCells(
            f"row {start + first}{named}{more}: {count} of its cells cannot be read (an id that the model does"
            " not have, no finite number, no Example) and would be taken for missing; correct the row, or allow it"
            " with allow_bad_cells=True",
            [start + row for row in (first, *others)],
            outputs,
            columns,
        )

    def _bad_columns(self, row: Mapping[str, Any], signature: str, count: int) -> list[str]:
        """The text columns that hold a row's bad cells: scores the row once more with each column left empty, and
        returns those that leave fewer bad cells; none if that call fails."""
        texts = [name for name, cell in row.items() if isinstance(cell, (str, bytes)) and cell]
        if not texts:
            return []
        rows = {name: np.stack([cell] * len(texts)) for name, cell in row.items() if name not in texts}
        for name in texts:
            rows[name] = tensors.objects([b"" if name == empty else row[name] for empty in texts])
        try:
            bad = self._send(rows, signature, ["bad_cells"]).result()["bad_cells"]
        except (ServingError, LookupError):
            return []
        return [name for name, cells in zip(texts, bad.tolist(), strict=True) if cells < count]

    def _answered_by(self, version: int) -> None:
        """Hook for subclasses: called with the version of each answer."""
