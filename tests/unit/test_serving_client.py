"""The client against a server of ten lines that answers as it is told to."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import tensors
from serving.client import Client
from serving.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, ServingError, Unavailable
from serving.protos import wire_pb2 as wire

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"

Answer = Callable[[bytes, grpc.ServicerContext], Any]


class Fake(grpc.GenericRpcHandler):
    """Answers by gRPC path; counts calls."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {METADATA: metadata}
        self.calls: list[str] = []

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        answer = self.answers.get(details.method)
        if answer is None:
            return None

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append(details.method)
            message: bytes = answer(request, context).SerializeToString()
            return message

        return grpc.unary_unary_rpc_method_handler(handle)


def metadata(request: bytes, context: grpc.ServicerContext) -> Any:
    signature = wire.SignatureDef(method_name="tensorflow/serving/predict")
    for name in ("A", "B"):
        signature.inputs[name].dtype = 7
        signature.inputs[name].tensor_shape.dim.add(size=-1)
    numbers = wire.SignatureDef(method_name="tensorflow/serving/predict")
    numbers.inputs["ids"].dtype = 9
    signatures = wire.SignatureDefMap(
        signature_def={"raw": signature, "serving_default": numbers, "__init": wire.SignatureDef()}
    )
    response = wire.GetModelMetadataResponse()
    response.model_spec.version.value = 4
    response.metadata["signature_def"].value = signatures.SerializeToString()
    return response


def echo(request: bytes, context: grpc.ServicerContext) -> Any:
    """``logit`` is the number in column A, so that order shows; early batches are slow."""
    columns = wire.PredictRequest.FromString(request).inputs
    numbers = np.array([float(cell) for cell in columns["A"].string_val], np.float32)
    time.sleep(0.05 if numbers.size and numbers[0] == 0 else 0.0)
    response = wire.PredictResponse()
    response.model_spec.version.value = 4
    tensors.to_proto(numbers, response.outputs["logit"], compact=False)
    return response


@pytest.fixture
def fake() -> Iterator[tuple[Fake, int]]:
    handler = Fake()
    server = grpc.server(ThreadPoolExecutor(8), handlers=[handler])
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield handler, port
    server.stop(None)


def client_of(fake: tuple[Fake, int], **options: Any) -> Client:
    return Client(f"localhost:{fake[1]}", **options)


def test_rows_come_back_in_order_with_several_requests_in_flight(fake: tuple[Fake, int]) -> None:
    fake[0].answers[PREDICT] = echo
    with client_of(fake, max_in_flight=3) as client:
        rows = ({"A": number, "B": None} for number in range(23))
        scores = [row["logit"] for row in client.score_rows(rows, batch_size=5)]
    assert scores == list(range(23))
    assert fake[0].calls.count(PREDICT) == 5
    assert fake[0].calls.count(METADATA) == 1


def test_no_more_requests_than_allowed_are_in_flight(fake: tuple[Fake, int]) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def counted(request: bytes, context: grpc.ServicerContext) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1
        return echo(request, context)

    fake[0].answers[PREDICT] = counted
    with client_of(fake, max_in_flight=2) as client:
        assert len(list(client.score_rows([{"A": 1}] * 20, batch_size=1))) == 20
    assert most <= 2


def test_cells_of_any_kind_become_text(fake: tuple[Fake, int]) -> None:
    sent: list[list[bytes]] = []

    def record(request: bytes, context: grpc.ServicerContext) -> Any:
        sent.append(list(wire.PredictRequest.FromString(request).inputs["B"].string_val))
        return echo(request, context)

    fake[0].answers[PREDICT] = record
    cells = ["é", b"\xff", 3, np.int64(4), 0.5, np.float32(0.1), float("nan"), None, True]
    with client_of(fake) as client:
        list(client.score_rows([{"A": 0, "B": cell} for cell in cells] + [{"A": 0}]))
    assert sent == [["é".encode(), b"\xff", b"3", b"4", b"0.5", b"0.1", b"", b"", b"1", b""]]


def test_a_wrong_row_is_named_before_anything_is_sent(fake: tuple[Fake, int]) -> None:
    fake[0].answers[PREDICT] = echo
    with client_of(fake) as client:
        with pytest.raises(InvalidArgument, match=r"row 1: unknown column C; the model has A, B"):
            list(client.score_rows([{"A": 1}, {"C": 1}]))
        with pytest.raises(InvalidArgument, match=r"row 0, column A: \[1\] is neither"):
            list(client.score_rows([{"A": [1]}]))
        with pytest.raises(InvalidArgument, match="no signature rows"):
            list(client.score_rows([{"A": 1}], signature="rows"))
        with pytest.raises(InvalidArgument, match="other inputs than strings: ids"):
            client.string_columns("serving_default")
        assert list(client.score_rows([])) == []
    assert PREDICT not in fake[0].calls


def test_metadata_is_plain_python_without_the_loader_s_own_entries(fake: tuple[Fake, int]) -> None:
    with client_of(fake) as client:
        found = client.metadata()
    assert found.version == 4
    assert sorted(found.signatures) == ["raw", "serving_default"]
    assert found.signatures["raw"].inputs["A"] == ("string", (-1,))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.INTERNAL, ServingError),
    ],
)
def test_errors_are_typed_have_one_line_and_are_not_repeated(
    fake: tuple[Fake, int], status: grpc.StatusCode, kind: type[ServingError]
) -> None:
    fake[0].answers[PREDICT] = lambda request, context: context.abort(status, "first\n\tsecond")
    with client_of(fake) as client, pytest.raises(kind, match="first second") as caught:
        client.predict({})
    assert caught.value.code == status.name
    assert type(caught.value) is kind
    assert fake[0].calls == [PREDICT]


def test_unavailable_is_repeated_even_for_a_large_request(fake: tuple[Fake, int]) -> None:
    def twice_away(request: bytes, context: grpc.ServicerContext) -> Any:
        if len(fake[0].calls) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        return echo(request, context)

    fake[0].answers[PREDICT] = twice_away
    with client_of(fake, timeout=20) as client:
        outputs = client.predict({"A": ["7"], "B": [b"x" * 2_000_000]})
    assert outputs["logit"].tolist() == [7.0]
    assert outputs.version == 4
    assert fake[0].calls == [PREDICT] * 3


def test_a_deadline_ends_a_call_that_nobody_answers(fake: tuple[Fake, int]) -> None:
    release = threading.Event()

    def hang(request: bytes, context: grpc.ServicerContext) -> Any:
        release.wait(20)
        return wire.PredictResponse()

    fake[0].answers[PREDICT] = hang
    with client_of(fake, timeout=0.2) as client, pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        client.predict({})
    release.set()


def test_nobody_there_is_unavailable_and_named() -> None:
    with Client("localhost:1", timeout=0.3) as client:
        with pytest.raises((Unavailable, DeadlineExceeded), match="localhost:1"):
            client.predict({"A": ["x"]})
        with pytest.raises(Unavailable, match=r"model afm at localhost:1 was not ready in 0\.3 s"):
            client.wait_ready(0.3)


def test_wait_ready_gives_up_on_a_socket_that_never_answers() -> None:
    """By its own budget, not by that of a call, which is an hour here."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout=3600) as client,
    ):
        said: list[str] = []

        def wait() -> None:
            with pytest.raises(Unavailable) as caught:
                client.wait_ready(0.5)
            said.append(str(caught.value))

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(30)
        assert said and "was not ready in 0.5 s" in said[0]


def test_wait_ready_waits_for_the_version_to_be_available(fake: tuple[Fake, int]) -> None:
    def loading(request: bytes, context: grpc.ServicerContext) -> Any:
        response = wire.GetModelStatusResponse()
        if len(fake[0].calls) > 1:
            response.model_version_status.add(version=2, state=50).status.error_message = "broken"
            response.model_version_status.add(version=1, state=30 if len(fake[0].calls) > 2 else 20)
            return response
        return context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model afm")

    fake[0].answers[STATUS] = loading
    with client_of(fake) as client:
        assert client.wait_ready(10).version == 1
        assert [(v.version, v.state, v.error_message) for v in client.status()] == [
            (1, "AVAILABLE", ""),
            (2, "END", "broken"),
        ]


@pytest.mark.parametrize("options", [{"version": 1, "label": "x"}, {"timeout": 0}, {"max_in_flight": 0}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not both|must be positive"):
        Client("localhost:1", **options)


def test_the_client_needs_grpc_protobuf_and_numpy_alone(root: Path, fake: tuple[Fake, int]) -> None:
    """In a fresh interpreter that refuses every other package, the client imports and scores."""
    program = """
import sys
allowed = {"serving", "grpc", "google", "numpy", "typing_extensions"} | set(sys.stdlib_module_names)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
        if name.startswith("google.") and not name.startswith("google.protobuf") and name != "google._upb":
            if not name.startswith("google._upb"):
                raise ModuleNotFoundError(f"blocked: {name}", name=name)
        return None
sys.meta_path.insert(0, Refuse())
from serving.client import Client
with Client(f"localhost:{sys.argv[1]}", "afm") as client:
    scores = client.score({"A": [3, 1, 2], "B": ["x", None, "y"]}, batch_size=2)
others = {"tensorflow", "tensorflow_serving", "afm_ctr", "pydantic"} & set(sys.modules)
print(scores["logit"].tolist(), sorted(others))
"""
    fake[0].answers[PREDICT] = echo
    command = [sys.executable, "-c", program, str(fake[1])]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[3.0, 1.0, 2.0] []"


def test_another_version_s_inputs_are_asked_for_again(fake: tuple[Fake, int]) -> None:
    """A new version with one column more: a client that knew the old one finds out by itself."""
    wider = False

    def growing(request: bytes, context: grpc.ServicerContext) -> Any:
        response = metadata(request, context)
        if wider:
            signatures = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value)
            signatures.signature_def["raw"].inputs["C"].CopyFrom(signatures.signature_def["raw"].inputs["A"])
            response.metadata["signature_def"].value = signatures.SerializeToString()
            response.model_spec.version.value = 5
        return response

    fake[0].answers |= {PREDICT: echo, METADATA: growing}
    with client_of(fake) as client:
        assert client.score([{"A": 1}])["logit"].tolist() == [1]
        with pytest.raises(InvalidArgument, match="unknown column C; the model has A, B"):
            client.score([{"A": 1, "C": 1}])
        wider = True
        assert client.score([{"A": 1, "C": 1}])["logit"].tolist() == [1]
        assert client.string_columns() == ["A", "B", "C"]
        with pytest.raises(InvalidArgument, match="missing column C"):
            client.score({"A": [1], "B": [2]})


def test_metadata_of_the_caller_goes_with_every_call(fake: tuple[Fake, int]) -> None:
    seen: list[Any] = []

    def record(request: bytes, context: grpc.ServicerContext) -> Any:
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        return echo(request, context)

    fake[0].answers[PREDICT] = record
    with client_of(fake, metadata=[("authorization", "Bearer x")]) as client:
        client.score([{"A": 1}, {"A": 2}], batch_size=1)
    assert seen == ["Bearer x"] * 2
