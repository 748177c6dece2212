"""The portable path as Flink and Spark run it: a job service, and workers in processes of their own, on loopback.

The workers live in a bare virtual environment: the source distribution that ``setup.py`` builds is installed in it,
Beam and TensorFlow are lent to it by path, and it cannot see the checkout.
"""

from __future__ import annotations

import os
import shutil
import site
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beam_jobs import PrepareOptions, prepare
from tests import raw_logs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def call(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def bare_python(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the workers' environment."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(root / name, source)
    for name in ("afm_ctr", "beam_jobs", "serving"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    call(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder / "dist", cwd=source)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # A line of a .pth file is a path and no more: the editable install of the checkout stays behind.
    (packages / "lent.pth").write_text("\n".join(site.getsitepackages()))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    call(*pip, "--ignore-installed", "--prefix", folder / "venv", archive, cwd=folder)
    found = call(
        python, "-c", "import beam_jobs.convert as c, afm_ctr as a; print(c.__file__, a.__file__)", cwd=folder
    )
    assert all(path.startswith(str(packages)) for path in found.split()), found
    return python


@contextmanager
def started(log: Path, command: list[object], port: int, python: Path) -> Iterator[None]:
    """A process that listens on a port of this machine; it ends with the block."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # The pool starts its workers by the word "python".
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*map(str, command)], cwd=log.parent, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.timeout(900)
def test_the_portable_runner_gives_the_same_bytes(tmp_path: Path, bare_python: Path) -> None:
    logs = raw_logs.write(tmp_path)
    prepare(PrepareOptions(**logs, output=str(tmp_path / "one")))
    service, pool = free_port(), free_port()
    job_service = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port", service]
    worker_pool = [bare_python, "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", pool]
    with (
        started(
            tmp_path / "service.log", [*job_service, "--staging_dir", tmp_path / "staging"], service, bare_python
        ),
        started(tmp_path / "pool.log", worker_pool, pool, bare_python),
    ):
        portable = ["--runner=PortableRunner", f"--job_endpoint=localhost:{service}"]
        portable += ["--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"]
        summary = prepare(PrepareOptions(**logs, output=str(tmp_path / "portable"), beam_args=portable))
    assert raw_logs.contents(tmp_path / "portable") == raw_logs.contents(tmp_path / "one")
    assert summary.metrics["rows"] == summary.rows_out
    assert "Starting worker with command" in (tmp_path / "pool.log").read_text()
