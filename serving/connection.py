"""The calls themselves: one request, one answer, with grpcio, protobuf and numpy alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from serving import tensors
from serving.answers import Metadata, Outputs, VersionStatus, read_metadata, read_prediction, read_status
from serving.channel import open_channel
from serving.errors import DeadlineExceeded, InvalidArgument, NotFound, ServingError, Unavailable, from_rpc
from serving.protos import wire_pb2 as wire

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


class Pending:
    """An answer on its way; see :meth:`Connection.submit`."""

    def __init__(self, call: Any, connection: Connection):
        self._call = call
        self._connection = connection

    def result(self) -> Outputs:
        """Wait for the answer.

        Raises:
            ServingError: one of its kinds, by what the server said or did not say.
        """
        try:
            response = self._call.result()
        except grpc.RpcError as error:
            raise self._connection._typed(error) from None
        except grpc.FutureCancelledError:
            raise ServingError(f"the call to {self._connection.target} was cancelled", "CANCELLED") from None
        outputs = read_prediction(response)
        self._connection._answered_by(outputs.version)
        return outputs

    def cancel(self) -> None:
        """Give up the answer."""
        self._call.cancel()


class Connection:
    """Talks to one model of one server. Threads may share it; close it, or use it as a context manager.

    Args:
        target: host:port of the server's gRPC API, or any name that gRPC resolves, such as ``dns:///afm:8500``; or
            several host:port, as a list or with commas. Requests go round all the servers that answer.
        model_name: The model's name there.
        version: Ask this version alone; default: the one that the server holds for the latest.
        label: Ask the version of this label (TF Serving maps labels to versions); excludes ``version``.
        timeout: Seconds that each call may take, retries included.
        max_in_flight: Requests on their way at once in ``score`` and ``score_rows``.
        credentials: TLS credentials of gRPC, see :func:`serving.channel.tls_credentials`; default: plain.
        server_name: The name that the server's certificate holds, where it is not the target's.
        metadata: gRPC metadata that goes with every call, such as a token.
        wait_for_ready: While no server can be reached, calls wait until their deadline. By default they fail with
            Unavailable after five attempts, within two seconds or so.

    Raises:
        ValueError: both ``version`` and ``label``, a ``timeout`` or ``max_in_flight`` that is not positive, or a list
            of targets that are not host:port.
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
    ):
        if version is not None and label is not None:
            raise ValueError("give version or label, not both")
        if not timeout > 0 or max_in_flight < 1:
            raise ValueError(f"timeout={timeout} and max_in_flight={max_in_flight} must be positive")
        targets = [part.strip() for part in target.split(",")] if isinstance(target, str) else list(target)
        if isinstance(target, str) and target.startswith(("ipv4:", "ipv6:")):
            targets = [target]
        self.target = ",".join(targets)
        self.model_name = model_name
        self.version = version
        self.label = label
        self.timeout = timeout
        self.max_in_flight = max_in_flight
        self._secure = credentials is not None
        self._call_metadata = list(metadata) or None
        self._channel = open_channel(targets, credentials, server_name, wait_for_ready)
        self._predict = self._method(_PREDICT, wire.PredictResponse)
        self._get_metadata = self._method(_METADATA, wire.GetModelMetadataResponse)
        self._get_status = self._method(_STATUS, wire.GetModelStatusResponse)

    def build_request(
        self, inputs: Mapping[str, Any], signature: str = "raw", outputs: Sequence[str] = ()
    ) -> wire.PredictRequest:
        """The message that :meth:`predict` sends.

        Raises:
            InvalidArgument: an input that cannot be sent; the message names it.
        """
        request = wire.PredictRequest(model_spec=self._model_spec(signature), output_filter=outputs)
        for name, value in inputs.items():
            try:
                tensors.to_proto(value, request.inputs[name])
            except ValueError as error:
                raise InvalidArgument(f"input {name}: {error}") from None
        return request

    def submit(self, inputs: Mapping[str, Any], signature: str = "raw", outputs: Sequence[str] = ()) -> Pending:
        """Send a request and do not wait; arguments as in :meth:`predict`."""
        request = self.build_request(inputs, signature, outputs)
        return Pending(self._predict.future(request, timeout=self.timeout, metadata=self._call_metadata), self)

    def predict(self, inputs: Mapping[str, Any], signature: str = "raw", outputs: Sequence[str] = ()) -> Outputs:
        """Ask for the outputs of one batch.

        Args:
            inputs: Arrays by input name, first dimension B. Strings as object arrays (or lists) of bytes or text.
            signature: Which signature of the model.
            outputs: Only these outputs; default: all.

        Returns:
            Arrays by output name, first dimension B, and the version that answered.

        Raises:
            ServingError: Unavailable, DeadlineExceeded, InvalidArgument or NotFound, or itself for the rest.
        """
        return self.submit(inputs, signature, outputs).result()

    def status(self, timeout: float | None = None) -> list[VersionStatus]:
        """The model's versions as the server sees them, by number; only the client's own if it has one."""
        request = wire.GetModelStatusRequest(model_spec=self._model_spec())
        return read_status(self._wait(self._get_status, request, timeout))

    def metadata(self, timeout: float | None = None) -> Metadata:
        """Version and signatures of the model that would answer now."""
        request = wire.GetModelMetadataRequest(model_spec=self._model_spec(), metadata_field=["signature_def"])
        return read_metadata(self._wait(self._get_metadata, request, timeout))

    def wait_ready(self, timeout: float = 60.0) -> VersionStatus:
        """Wait until the model answers: by GetModelStatus, so that it also works where nothing else is allowed.

        Returns:
            The newest version that is available.

        Raises:
            Unavailable: not within ``timeout`` seconds; the message says what was seen last.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                versions = self.status(timeout=min(self.timeout, max(end - time.monotonic(), 0.01)))
                ready = [item for item in versions if item.state == "AVAILABLE"]
                if ready:
                    return ready[-1]
                seen = "; ".join(f"version {v.version} {v.state} {v.error_message}".strip() for v in versions)
            except (Unavailable, NotFound, DeadlineExceeded) as error:
                seen = str(error)
            if time.monotonic() + 0.3 >= end:  # too little for another call to say anything of use
                raise Unavailable(f"model {self.model_name} at {self.target} was not ready in {timeout:g} s: {seen}")
            time.sleep(0.1)

    def close(self) -> None:
        """Close the connection; calls on their way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _method(self, path: str, response: Any) -> Any:
        return self._channel.unary_unary(
            path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _model_spec(self, signature: str = "") -> wire.ModelSpec:
        spec = wire.ModelSpec(name=self.model_name, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        elif self.label is not None:
            spec.version_label = self.label
        return spec

    def _wait(self, method: Any, request: Any, timeout: float | None) -> Any:
        seconds = self.timeout if timeout is None else timeout
        try:
            return method(request, timeout=seconds, metadata=self._call_metadata)
        except grpc.RpcError as error:
            raise self._typed(error, seconds) from None

    def _typed(self, error: grpc.RpcError, timeout: float | None = None) -> ServingError:
        return from_rpc(error, self.target, self.timeout if timeout is None else timeout, self._secure)

    def _answered_by(self, version: int) -> None:
        """For those who want to know."""
