"""Start a script on several ranks and collect what each of them found."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# One machine as several hosts: Horovod drops a host as a whole when a rank on it fails.
ALIASES = ("localhost:1", "127.0.0.1:1", f"{socket.gethostname()}:1")

ROOT = Path(__file__).resolve().parents[2]
JOBS = Path(__file__).resolve().parent / "jobs"

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed: scripts/build_horovod.py builds it"
)


class Job(NamedTuple):
    """A finished job: exit code, both streams together, seconds, and ``reports[rank]`` (what its ranks wrote)."""

    code: int
    output: str
    seconds: float
    reports: dict[int, Any]


def horovodrun(ranks: int, command: list[str | Path], folder: Path, timeout: float = 180.0, **env: str) -> Job:
    """Run a Python script (with arguments), or with ``-m`` a module, on so many ranks of this machine.

    The ranks find ``folder`` in ``$REPORTS`` and may leave ``rank-<r>.json`` there (see :func:`report`). After
    ``timeout`` seconds the whole job is killed and its code is 124.
    """
    return _launch(["-np", str(ranks), "-H", f"localhost:{ranks}", "--gloo"], command, folder, timeout, env)


def elastic_horovodrun(
    hosts: Sequence[str], command: list[str | Path], folder: Path, timeout: float = 300.0, **env: str
) -> Job:
    """The same with ranks that may come and go: one on each host, at first on these, later on those in
    ``folder/hosts``, a line each, which a job may replace."""
    (folder / "hosts").write_text("".join(f"{host}\n" for host in hosts))
    discover = folder / "discover.sh"
    discover.write_text(f"#!/bin/sh\ncat '{folder / 'hosts'}'\n")
    discover.chmod(0o755)
    ranks = ["-np", str(len(hosts)), "--min-np", "1", "--max-np", str(len(ALIASES))]
    how = ["--host-discovery-script", discover, "--network-interfaces", "lo", "--gloo"]
    # Ranks that are left notice a loss by the connections that break. None of them may wait until Gloo's time is up.
    return _launch([*ranks, *how], command, folder, timeout, {"HOROVOD_GLOO_TIMEOUT_SECONDS": "200", **env})


def _launch(
    options: list[str | Path], command: list[str | Path], folder: Path, timeout: float, env: dict[str, str]
) -> Job:
    line = [Path(sys.executable).with_name("horovodrun"), *options, sys.executable, *command]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "REPORTS": str(folder),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "",
        **env,
    }
    begun = time.monotonic()
    with subprocess.Popen(
        [str(part) for part in line],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # horovodrun ends its ranks, each in a session of its own
            try:
                output, _ = process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
            code = 124
    reports = {int(path.stem.split("-")[1]): json.loads(path.read_text()) for path in folder.glob("rank-*.json")}
    return Job(code, output, time.monotonic() - begun, reports)


def report(rank: int, findings: Any) -> None:
    """Called in a rank: leave JSON-ready findings for the test."""
    (Path(os.environ["REPORTS"]) / f"rank-{rank}.json").write_text(json.dumps(findings))
