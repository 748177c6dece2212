"""The client against a server of ten lines that answers as it is told to."""

from __future__ import annotations

import copy
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest

from serving import tensors
from serving.calls import Servers
from serving.client import Client
from serving.errors import (
    BadCells,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Overloaded,
    ServingError,
    Unavailable,
)
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
    assert sent == [["é".encode(), b"\xff", b"3", b"4", b"0.5", b"0.1", b"", b"", b"true", b""]]


def test_a_wrong_row_is_named_before_anything_is_sent(fake: tuple[Fake, int]) -> None:
    fake[0].answers[PREDICT] = echo
    with client_of(fake) as client:
        with pytest.raises(InvalidArgument, match=r"row 1: unknown column C; the model has A, B"):
            list(client.score_rows([{"A": 1}, {"C": 1}]))
        with pytest.raises(InvalidArgument, match=r"row 0, column A: \[1\] is neither"):
            list(client.score_rows([{"A": [1]}]))
        for inputs in (None, [1.0], "x"):
            with pytest.raises(InvalidArgument, match=r"^inputs are arrays by name, .*, not (NoneType|list|str)"):
                client.predict(inputs)
        with pytest.raises(InvalidArgument, match="no signature rows"):
            list(client.score_rows([{"A": 1}], signature="rows"))
        with pytest.raises(InvalidArgument, match="has inputs that are not strings: ids"):
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


GOING_DOWN = (grpc.StatusCode.UNAVAILABLE, "going down")


def refusing_first(times: int, server: Fake, status: grpc.StatusCode, details: str) -> Callable[..., Any]:
    """The answer of a server that refuses the first calls."""

    def answer(request: bytes, context: grpc.ServicerContext) -> Any:
        if len(server.calls) <= times:
            context.abort(status, details)
        return echo(request, context)

    return answer


def test_unavailable_is_repeated_even_for_a_large_request(fake: tuple[Fake, int]) -> None:
    fake[0].answers[PREDICT] = refusing_first(2, fake[0], *GOING_DOWN)
    with client_of(fake, timeout=20) as client:
        outputs = client.predict({"A": ["7"], "B": [b"x" * 2_000_000]})
    assert outputs["logit"].tolist() == [7.0]
    assert outputs.version == 4
    assert fake[0].calls == [PREDICT] * 3


FULL_POOL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
FULL_QUEUE = (
    grpc.StatusCode.UNAVAILABLE,
    "The batch scheduling queue to which this task was submitted is full; num batches: 16",
)


@pytest.mark.parametrize("refusal", [FULL_POOL, FULL_QUEUE])
def test_an_overloaded_server_is_asked_again_after_pauses(fake: tuple[Fake, int], refusal: Any) -> None:
    """More often than a server that is gone would be."""
    fake[0].answers[PREDICT] = refusing_first(6, fake[0], *refusal)
    with client_of(fake, timeout=60) as client, patch("serving.calls.time.sleep") as pauses:
        assert client.predict({"A": ["7"], "B": ["x"]})["logit"].tolist() == [7.0]
    assert fake[0].calls == [PREDICT] * 7
    seconds = [call.args[0] for call in pauses.call_args_list if call.args[0]]
    assert all(
        pause / 2 <= slept <= pause for pause, slept in zip([0.1, 0.2, 0.4, 0.8, 1.6, 2.0], seconds, strict=True)
    )


@pytest.mark.parametrize("refusal", [FULL_POOL, FULL_QUEUE])
def test_an_overloaded_server_is_named_so_within_the_deadline(fake: tuple[Fake, int], refusal: Any) -> None:
    fake[0].answers[PREDICT] = lambda request, context: context.abort(*refusal)
    with client_of(fake, timeout=0.5) as client, pytest.raises(Overloaded, match="is overloaded") as caught:
        client.predict({"A": ["7"], "B": ["x"]})
    assert caught.value.code == refusal[0].name
    assert "is a model server running" not in str(caught.value) and "smaller batches" not in str(caught.value)
    assert 2 <= fake[0].calls.count(PREDICT) <= 6


def test_a_server_that_is_away_is_asked_five_times(fake: tuple[Fake, int]) -> None:
    fake[0].answers[PREDICT] = lambda request, context: context.abort(*GOING_DOWN)
    with (
        client_of(fake, timeout=60) as client,
        patch("serving.calls.time.sleep") as pauses,
        pytest.raises(Unavailable, match="is a model server running there") as caught,
    ):
        client.predict({"A": ["7"], "B": ["x"]})
    assert not isinstance(caught.value, Overloaded)
    assert fake[0].calls == [PREDICT] * 5 and len(pauses.call_args_list) == 4


def test_a_message_that_is_too_large_is_not_repeated(fake: tuple[Fake, int]) -> None:
    said = "Received message larger than max (2 vs. 1)"
    fake[0].answers[PREDICT] = lambda request, context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said)
    with client_of(fake) as client, pytest.raises(ServingError, match="send smaller batches"):
        client.predict({"A": ["7"], "B": ["x"]})
    assert fake[0].calls == [PREDICT]


def test_a_patient_client_asks_until_the_deadline(fake: tuple[Fake, int]) -> None:
    fake[0].answers[PREDICT] = refusing_first(8, fake[0], *GOING_DOWN)
    with client_of(fake, timeout=60, wait_for_ready=True) as client, patch("serving.calls.time.sleep"):
        assert client.predict({"A": ["7"], "B": ["x"]})["logit"].tolist() == [7.0]
    with Client("localhost:1", timeout=0.3, wait_for_ready=True) as client, pytest.raises(DeadlineExceeded):
        client.predict({"A": ["7"], "B": ["x"]})


def counting(request: bytes, context: grpc.ServicerContext) -> Any:
    """``logit`` and ``bad_cells``: a cell of A that is no number."""
    columns, wanted = wire.PredictRequest.FromString(request).inputs, wire.PredictRequest.FromString(request)
    bad = np.array([bool(cell) and not cell.isdigit() for cell in columns["A"].string_val], np.int32)
    response = wire.PredictResponse()
    for name, array in (("logit", np.zeros(len(bad), np.float32)), ("bad_cells", bad)):
        if not wanted.output_filter or name in wanted.output_filter:
            tensors.to_proto(array, response.outputs[name], compact=False)
    return response


def test_cells_that_cannot_be_read_raise_unless_allowed(fake: tuple[Fake, int]) -> None:
    def with_outputs(request: bytes, context: grpc.ServicerContext) -> Any:
        response = metadata(request, context)
        signatures = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        for name, dtype in (("logit", 1), ("bad_cells", 3)):
            signatures.signature_def["raw"].outputs[name].dtype = dtype
        response.metadata["signature_def"].value = signatures.SerializeToString()
        return response

    fake[0].answers |= {PREDICT: counting, METADATA: with_outputs}
    rows = [{"A": "x" if number in (5, 8) else number} for number in range(10)]
    columns = {"A": [b"1", b"x"], "B": [b"", b""]}
    with client_of(fake) as client:
        for asked in ((), ["logit"]):
            with pytest.raises(BadCells, match=r"row 5, column A: 1 of its cells cannot be read") as caught:
                client.score(rows, batch_size=4, outputs=asked)
            assert (
                caught.value.rows == [5]
                and caught.value.columns == ["A"]
                and len(caught.value.outputs["bad_cells"]) == 4
            )
            with pytest.raises(BadCells, match=r"row 5, column A and 1 more rows"):
                client.score(rows, outputs=asked)
        assert list(client.score(rows[:5], outputs=["logit"])) == ["logit"]
        with pytest.raises(BadCells, match="row 1, column A"):
            client.predict(columns)
        with pytest.raises(BadCells, match="row 1, column A"):
            client.predict({"A": ["1", "x"], "B": np.array([1.5, 2.5])})
    with client_of(fake, allow_bad_cells=True) as client:
        assert client.score(rows, batch_size=4)["bad_cells"].nonzero()[0].tolist() == [5, 8]
        assert client.predict(columns)["bad_cells"].tolist() == [0, 1]


def test_a_request_without_rows_is_answered_by_the_client(fake: tuple[Fake, int]) -> None:
    """A server that batches would never answer it."""

    def with_outputs(request: bytes, context: grpc.ServicerContext) -> Any:
        response = metadata(request, context)
        signatures = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        attention = signatures.signature_def["raw"].outputs["attention"]
        attention.dtype = 1
        for size in (-1, 3):
            attention.tensor_shape.dim.add(size=size)
        response.metadata["signature_def"].value = signatures.SerializeToString()
        return response

    fake[0].answers |= {METADATA: with_outputs}
    with client_of(fake) as client:
        for nothing in ([], np.zeros(0, object), np.zeros((0, 2), object)):
            answer = client.predict({"A": nothing, "B": nothing})
            assert (answer["attention"].shape, answer["attention"].dtype, answer.version) == ((0, 3), np.float32, 4)
        assert client.score({"A": [], "B": []})["attention"].shape == (0, 3)
    assert PREDICT not in fake[0].calls


def test_the_version_of_a_label_is_asked_for_by_metadata(fake: tuple[Fake, int]) -> None:
    """GetModelStatus of the real server ignores labels."""
    asked: list[wire.ModelSpec] = []

    def status(request: bytes, context: grpc.ServicerContext) -> Any:
        spec = wire.GetModelStatusRequest.FromString(request).model_spec
        asked.append(spec)
        response = wire.GetModelStatusResponse()
        for version in (4, 5):
            if not spec.HasField("version") or spec.version.value == version:
                response.model_version_status.add(version=version, state=30)
        return response

    def labelled(request: bytes, context: grpc.ServicerContext) -> Any:
        assert wire.GetModelMetadataRequest.FromString(request).model_spec.version_label == "stable"
        if fake[0].calls.count(METADATA) < 3:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: stable")
        return metadata(request, context)

    fake[0].answers |= {METADATA: labelled, STATUS: status}
    with client_of(fake, label="stable") as client:
        with pytest.raises(InvalidArgument, match="label: stable"):
            client.status()
        assert client.wait_ready(20).version == 4
        assert [item.version for item in client.status()] == [4]
    assert all(spec.version.value == 4 and not spec.version_label for spec in asked)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "a target is empty"),
        ("a:1,,b:2", "a target is empty"),
        ("localhost", "target localhost is not host:port; give such as localhost:8500"),
        ("localhost:", "is not host:port"),
        ("localhost:http", "is not host:port"),
        (":8500", "is not host:port"),
        ("localhost:99999", "the port must be from 1 to 65535"),
        ("localhost:0", "the port must be from 1 to 65535"),
        ("localhost:8500/v1", "is not host:port"),
        ("http://localhost:8500", "is a URL; .* such as localhost:8500"),
        ("grpc://localhost:8500/", "is a URL; .* such as localhost:8500"),
        ("::1:8500", "is not host:port"),
        ("a b:8500", "is not host:port"),
        (["localhost:8500", "other"], "target other is not host:port"),
        ([], "no target"),
    ],
)
def test_a_target_that_cannot_be_is_named(target: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Client(target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    ["[::1]:8500", "a:1,[::1]:2", ["[fe80::1%eth0]:1", "10.0.0.1:2"], "dns:///afm:8500", "ipv4:1.2.3.4:1,1.2.3.5:2",
     "unix:/tmp/x", "dns:///a:1,b:2"],
)  # fmt: skip
def test_targets_of_every_form(target: Any) -> None:
    with Client(target) as client:
        assert client.target == (target if isinstance(target, str) else ",".join(target))


def test_a_list_takes_ipv6_beside_other_servers(fake: tuple[Fake, int]) -> None:
    fake[0].answers[PREDICT] = echo
    with Client(["[::1]:1", f"localhost:{fake[1]}"], timeout=20) as client:
        assert client.score([{"A": number} for number in range(6)], batch_size=1)["logit"].tolist() == list(range(6))


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"http_proxy": "http://me:secret@127.0.0.1:1"}, True),
        ({"grpc_proxy": "http://127.0.0.1:1"}, True),
        ({"https_proxy": "http://127.0.0.1:1", "no_proxy": "elsewhere"}, True),
        ({"https_proxy": "http://127.0.0.1:1", "no_proxy": "elsewhere, localhost"}, False),
        ({"https_proxy": "http://127.0.0.1:1", "no_grpc_proxy": "localhost"}, False),
        ({}, False),
    ],
)
def test_a_proxy_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: bool
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Client("localhost:1", timeout=0.3) as client, pytest.raises(ServingError) as caught:
        client.predict({"A": ["x"]})
    proxy = next(iter(environment), "")
    assert (f"by {proxy}=http://127.0.0.1:1: " in str(caught.value)) is named
    assert "secret" not in str(caught.value)


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


@pytest.mark.parametrize("silent", ["socket", "server"])
def test_wait_ready_gives_up_on_what_never_answers(silent: str, fake: tuple[Fake, int]) -> None:
    """By its own budget, not by that of a call, which is an hour here (a connection's own, 20 s, is longer too)."""
    release, said = threading.Event(), []

    def hang(request: bytes, context: grpc.ServicerContext) -> Any:
        release.wait(60)
        return wire.GetModelStatusResponse()

    def wait() -> None:
        with pytest.raises(Unavailable) as caught:
            client.wait_ready(0.5)
        said.append(str(caught.value))

    fake[0].answers[STATUS] = hang
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1] if silent == "socket" else fake[1]
        with Client(f"127.0.0.1:{port}", timeout=3600) as client:
            waiting = threading.Thread(target=wait, daemon=True)
            waiting.start()
            waiting.join(15)
            release.set()
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None,), "no target: give host:port"),
        (("localhost:1", ""), "model_name must be the name of a model, got ''"),
        (("localhost:1", None), "model_name must be the name of a model, got None"),
        (("localhost:1", "afm", "2"), "version must be a whole number, got '2'"),
    ],
)
def test_a_target_model_or_version_that_is_none_is_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Client(*arguments)


def test_a_client_is_neither_copied_nor_used_after_its_end(fake: tuple[Fake, int]) -> None:
    with client_of(fake) as client:
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="a Client has open connections: make one in each process"):
                copied(client)
    with pytest.raises(ValueError, match="the client is closed: make another"):
        client.score([{}])
    client.close()


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


def test_a_server_that_cannot_be_reached_is_passed_over_until_it_is_ready() -> None:
    """Other states, such as a channel that idles, change nothing."""
    watchers: list[Any] = []

    def channel(number: int) -> Any:
        stub = SimpleNamespace(future=lambda *_, **__: number)
        watched = lambda watch, try_to_connect: watchers.append(watch)  # noqa: E731
        return SimpleNamespace(subscribe=watched, unary_unary=lambda *_, **__: stub)

    ask = Servers([channel(0), channel(1)]).method("path", SimpleNamespace(FromString=None))
    assert [ask(None, 1.0, None) for _ in range(4)] == [0, 1, 0, 1]
    watchers[0](grpc.ChannelConnectivity.TRANSIENT_FAILURE)
    assert [ask(None, 1.0, None) for _ in range(4)] == [1, 1, 1, 1]
    for state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
        watchers[0](state)
        watchers[1](state)
    assert [ask(None, 1.0, None) for _ in range(4)] == [1, 1, 1, 1]
    watchers[0](grpc.ChannelConnectivity.READY)
    assert [ask(None, 1.0, None) for _ in range(4)] == [0, 1, 0, 1]
