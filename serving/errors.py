"""What can go wrong between the client and a server, each with one clear line."""

from __future__ import annotations

import grpc


class ServingError(Exception):
    """A call to the server failed. ``code`` is gRPC's name of the reason."""

    code = "UNKNOWN"

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class Unavailable(ServingError):
    """Nobody answers at the target (after retries), or the server is going down."""

    code = "UNAVAILABLE"


class InsecureConnection(Unavailable):
    """Somebody is there, but TLS does not come about: a certificate was not accepted, or one side speaks no TLS."""


class DeadlineExceeded(ServingError):
    """The server did not answer in time; whether it worked on the request is not known."""

    code = "DEADLINE_EXCEEDED"


class InvalidArgument(ServingError):
    """The request does not fit the model: a missing input, a wrong type or shape, an unknown column."""

    code = "INVALID_ARGUMENT"


class FailedPrecondition(InvalidArgument):
    """The model cannot be asked like that: TF Serving's answer to a signature that it does not have."""

    code = "FAILED_PRECONDITION"


class NotFound(ServingError):
    """The server has no such model, or not this version of it."""

    code = "NOT_FOUND"


_CLASSES = {
    kind.code: kind for kind in (Unavailable, DeadlineExceeded, InvalidArgument, FailedPrecondition, NotFound)
}


def from_rpc(error: grpc.RpcError, target: str, timeout: float, secure: bool = False) -> ServingError:
    """Translate gRPC's exception.

    Args:
        error: What the call raised.
        target: host:port, for the message.
        timeout: Seconds that the call had, for the message.
        secure: Whether the client speaks TLS.

    Returns:
        The typed error; its text is one line.
    """
    status = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = error.details() if isinstance(error, grpc.Call) else str(error)
    line = " ".join((details or "").split())
    code = status.name
    if status is grpc.StatusCode.UNAVAILABLE and "handshake failed" in line:
        return InsecureConnection(f"{target}: no TLS connection: {_handshake(line)}")
    if status is grpc.StatusCode.UNAVAILABLE and ("Socket closed" in line or "reset" in line):
        hint = "does it want another client certificate?" if secure else "does it want TLS?"
        line = f"{target} closed the connection: is the server going down, or {hint} ({line})"
    elif status is grpc.StatusCode.UNAVAILABLE:
        line = f"{target} does not answer: is a model server running there? ({line})"
    elif status is grpc.StatusCode.DEADLINE_EXCEEDED:
        line = f"{target} did not answer within {timeout:g} s"
    elif status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        line = f"{target}: {line}; send smaller batches"
    else:
        line = f"{target}: {line or code}"
    kind = _CLASSES.get(code)
    return kind(line) if kind else ServingError(f"{line} [{code}]", code)


def _handshake(line: str) -> str:
    """The point of OpenSSL's long line."""
    reason = line.rpartition("OPENSSL_internal:")[2].removesuffix(")").removesuffix(": OK")
    if reason.startswith("WRONG_VERSION_NUMBER"):
        return "the server does not speak TLS"
    return f"the server's certificate was not accepted: {reason}" if "CERTIFICATE" in reason else reason
