"""Calls to one of several servers, with retries within the deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import grpc

from serving.errors import is_overload

_ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0

# (request, seconds, gRPC metadata) to a future
Method = Callable[[Any, float, Any], Any]


class Servers:
    """Channels to several servers, used round-robin; unreachable servers are skipped while others are reachable.

    Args:
        channels: One or more; closed with this object.
    """

    def __init__(self, channels: Sequence[grpc.Channel]):
        self._channels = channels
        self._turns = count()
        self._failing = [False] * len(channels)
        self._closed = False
        if len(channels) > 1:
            for number, channel in enumerate(channels):
                channel.subscribe(self._watch(number), try_to_connect=True)

    def method(self, path: str, response: Any) -> Method:
        """A unary method by its gRPC path; ``response`` is the message type of the response."""
        stubs = [
            channel.unary_unary(
                path,
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )
            for channel in self._channels
        ]

        def start(request: Any, seconds: float, metadata: Any) -> Any:
            if self._closed:
                raise ValueError("the client is closed: make another")
            return stubs[self._next()].future(request, timeout=seconds, metadata=metadata)

        return start

    def close(self) -> None:
        """Close the channels."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def _next(self) -> int:
        turn = next(self._turns)
        order = [(turn + step) % len(self._channels) for step in range(len(self._channels))]
        return next((number for number in order if not self._failing[number]), order[0])

    def _watch(self, number: int) -> Callable[[grpc.ChannelConnectivity], None]:
        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                self._failing[number] = True
            elif state is grpc.ChannelConnectivity.READY:
                self._failing[number] = False

        return changed


class Call:
    """A request in flight and its retries: scoring has no side effects, so unanswered calls may be repeated.

    Args:
        timeout: Seconds for all attempts together.
        patient: While no server can be reached, retry until the deadline instead of five times.
    """

    def __init__(self, method: Method, request: Any, timeout: float, metadata: Any, *, patient: bool):
        self.timeout = timeout
        self._method, self._request, self._metadata, self._patient = method, request, metadata, patient
        self._end = time.monotonic() + timeout
        self._future = method(request, timeout, metadata)

    def result(self) -> Any:
        """Wait for the answer.

        Raises:
            grpc.RpcError: the error of the last attempt; for a server overloaded until the deadline, its refusal.
            TimeoutError: no server could be reached before the deadline of a patient call.
            grpc.FutureCancelledError: the call was cancelled.
        """
        attempt, refused = 1, None
        while True:
            try:
                return self._future.result()
            except grpc.RpcError as error:
                overloaded = is_overload(error)
                if refused is not None and _code(error) is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise refused from None
                last = not self._patient and attempt >= _ATTEMPTS
                if not overloaded and (last or _code(error) is not grpc.StatusCode.UNAVAILABLE):
                    raise
                # Jitter: callers that were refused together should not retry together.
                pause = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
                left = self._end - time.monotonic()
                if pause >= left and self._patient and not overloaded:
                    raise TimeoutError from None
                if pause >= left:
                    raise
                refused = error if overloaded else None
            time.sleep(pause)
            attempt += 1
            self._future = self._method(self._request, max(self._end - time.monotonic(), 0.001), self._metadata)

    def cancel(self) -> None:
        """Cancel the call."""
        self._future.cancel()


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
