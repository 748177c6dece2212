"""Exceptions of the client; the message of each is one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from serving.responses import Outputs


class ServingError(Exception):
    """A call to the server failed. ``code`` is the name of the gRPC status."""

    code = "UNKNOWN"

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class Unavailable(ServingError):
    """No server answers at the target (after retries), or it is shutting down."""

    code = "UNAVAILABLE"


class InsecureConnection(Unavailable):
    """The TLS handshake failed: a certificate was not accepted, or one side does not speak TLS."""


class Overloaded(Unavailable):
    """The server refused the call until its deadline because of overload. ``code`` is the server's status."""


class DeadlineExceeded(ServingError):
    """The server did not answer in time; it may or may not have processed the request."""

    code = "DEADLINE_EXCEEDED"


class InvalidArgument(ServingError):
    """The request does not match the model: a missing input, a wrong type or shape, an unknown column."""

    code = "INVALID_ARGUMENT"


class BadCells(InvalidArgument):
    """The server scored the rows, but could not read some of their cells and treated them as missing.

    Attributes:
        rows: Numbers of the rows with such cells, from 0.
        outputs: The server's answer for all rows of the request.
        columns: The raw columns that it could not read in the first of these rows.
    """

    def __init__(self, message: str, rows: list[int], outputs: Outputs, columns: list[str]):
        super().__init__(message)
        self.rows = rows
        self.outputs = outputs
        self.columns = columns


class FailedPrecondition(InvalidArgument):
    """TF Serving's answer to a signature that the model does not have."""

    code = "FAILED_PRECONDITION"


class NotFound(ServingError):
    """The server has no such model, or not this version of it."""

    code = "NOT_FOUND"


_CLASSES = {
    kind.code: kind for kind in (Unavailable, DeadlineExceeded, InvalidArgument, FailedPrecondition, NotFound)
}


def is_overload(error: grpc.RpcError) -> bool:
    """Whether the server refused a call because its threads or its batch queue are full."""
    code, line = _said(error)
    exhausted = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "Threadpool Exhausted" in line
    return exhausted or (code is grpc.StatusCode.UNAVAILABLE and "batch scheduling queue" in line)


def from_rpc(
    error: grpc.RpcError, target: str, timeout: float, secure: bool = False, proxy: str = ""
) -> ServingError:
    """Translate a gRPC exception.

    Args:
        proxy: The environment variable that sets a proxy, for the message.
    """
    status, line = _said(error)
    code = status.name
    if is_overload(error):
        return Overloaded(
            f"{target} is overloaded and refused the call for {timeout:g} s: send less at once, or add replicas or "
            f"threads (--grpc_max_threads) ({line})",
            code,
        )
    via = f"; calls go through a proxy, by {proxy}: for a direct connection add the host to no_proxy" if proxy else ""
    if status is grpc.StatusCode.UNAVAILABLE and "Hostname Verification" in line:
        return InsecureConnection(f"{target}: the server's certificate was not accepted: it is for another name{via}")
    if status is grpc.StatusCode.UNAVAILABLE and "handshake failed" in line:
        return InsecureConnection(f"{target}: no TLS connection: {_handshake(line)}{via}")
    if status is grpc.StatusCode.UNAVAILABLE and ("Socket closed" in line or "reset" in line):
        hint = "does it want another client certificate?" if secure else "does it want TLS?"
        line = f"{target} closed the connection: is the server going down, or {hint} ({line}){via}"
    elif status is grpc.StatusCode.UNAVAILABLE:
        line = f"{target} does not answer: is a model server running there? ({line}){via}"
    elif status is grpc.StatusCode.DEADLINE_EXCEEDED:
        line = f"{target} did not answer within {timeout:g} s{via}"
    elif status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        line = f"{target}: {line}; send smaller batches"
    else:
        line = f"{target}: {line or code}"
    kind = _CLASSES.get(code)
    return kind(line) if kind else ServingError(f"{line} [{code}]", code)


def _said(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Status and details, the details on one line."""
    known = isinstance(error, grpc.Call)
    text = error.details() if known else str(error)
    return error.code() if known else grpc.StatusCode.UNKNOWN, " ".join((text or "").split())


def _handshake(line: str) -> str:
    """The reason in OpenSSL's long line."""
    reason = line.rpartition("OPENSSL_internal:")[2].removesuffix(")").removesuffix(": OK")
    if reason.startswith("WRONG_VERSION_NUMBER"):
        return "the server does not speak TLS"
    return f"the server's certificate was not accepted: {reason}" if "CERTIFICATE" in reason else reason
