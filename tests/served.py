"""Whoever serves the tiny model: the local server, or the real one where there is one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import export

from serving.client import Client
from serving.server.app import LocalServer
from serving.server.flags import ServerFlags, parse

LIMIT = 1 << 20
IDS = np.array([[1, 9], [0, 3], [5, 5]], np.int64)
VALUES = np.array([[1, 1], [0, -2], [0.5, 0.25]], np.float32)


def local_server(base: Path, **flags: Any) -> LocalServer:
    """Our server of the models below a folder, as ``afm``, on a port that is free."""
    return LocalServer(
        ServerFlags(**{"model_base_path": str(base), "model_name": "afm", "port": 0} | flags), "127.0.0.1"
    )


@contextmanager
def tiny_server(base: Path) -> Iterator[LocalServer]:
    """Version 3 of the tiny model, with REST, and no other version is looked for."""
    export(base, 3)
    with local_server(base, rest_api_port=0, file_system_poll_wait_seconds=0) as running:
        yield running


@dataclass(frozen=True)
class Served:
    """Where version 3 of the tiny model answers as ``afm``; ``ours`` if the label and the limit are set, too."""

    target: str
    rest: str | None
    ours: bool = True

    def http(self, path: str, body: Any = None) -> tuple[int, Any]:
        if self.rest is None:
            pytest.skip("TF_SERVING_REST does not say where the REST API is")
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://{self.rest}{path}", data, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@contextmanager
def serve(kind: str, folder: Path) -> Iterator[Served]:
    """Version 3 of the tiny model with a label ``stable`` and messages of at most ``LIMIT`` bytes.

    Args:
        kind: ``local`` or ``real``; the test is skipped if there is no real one.
        folder: An empty one.
    """
    if kind == "real" and (target := os.environ.get("TF_SERVING_TARGET")):
        yield Served(target, os.environ.get("TF_SERVING_REST"), ours=False)
        return
    binary = shutil.which("tensorflow_model_server")
    if kind == "real" and binary is None:
        pytest.skip("no real server: neither TF_SERVING_TARGET nor tensorflow_model_server on the PATH")
    (folder / "afm").mkdir()
    export(folder / "afm", 3)
    config = folder / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "afm" base_path: "{folder}/afm" model_platform: "tensorflow" '
        'version_labels { key: "stable" value: 3 } } }'
    )
    ports = free_port(), free_port()
    flags = [
        f"--port={ports[0]}",
        f"--rest_api_port={ports[1]}",
        f"--model_config_file={config}",
        "--allow_version_labels_for_unavailable_models=true",
        f"--grpc_channel_arguments=grpc.max_receive_message_length={LIMIT}",
    ]
    where = Served(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
    if kind == "local":
        with LocalServer(parse(flags), "127.0.0.1"):
            yield where
        return
    assert binary is not None
    process = subprocess.Popen([binary, *flags])
    try:
        with Client(where.target) as client:
            client.wait_ready(60)
        yield where
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
