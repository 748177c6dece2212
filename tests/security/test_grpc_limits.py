"""What a caller may send over gRPC: the real server's limit, which also holds for what is unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from serving.server.flags import parse
from serving.server.ports import make_grpc_server


@contextmanager
def serving(*arguments: tuple[str, int | str]) -> Iterator[tuple[grpc.Channel, list[int]]]:
    """An open server that counts the bytes of each request that reaches a thread."""
    seen: list[int] = []

    class Count(grpc.GenericRpcHandler):
        def service(self, details: object) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda data, context: seen.append(len(data)) or b"")

    server = make_grpc_server(2, arguments)
    server.add_generic_rpc_handlers((Count(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield channel, seen
    server.stop(None)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_reaches_no_thread(compression: grpc.Compression) -> None:
    """20 MB of zeros are 20 kB on the wire."""
    flags = parse(["--grpc_channel_arguments=grpc.max_receive_message_length=1000000", "--model_base_path=/"])
    with serving(*flags.grpc_channel_arguments) as (channel, seen):
        call = channel.unary_unary("/any/method")
        call(bytes(900_000), timeout=20, compression=compression)
        with pytest.raises(grpc.RpcError, match="larger than max") as caught:
            call(bytes(20_000_000), timeout=20, compression=compression)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert seen == [900_000]


def test_the_default_is_the_real_server_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int | str] = {}
    monkeypatch.setattr("serving.server.ports.grpc.server", lambda pool, options: seen.update(options))
    make_grpc_server(1, ())
    assert seen["grpc.max_receive_message_length"] == 2**31 - 1
