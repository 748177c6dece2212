"""The wheel and the sdist in virtual environments with nothing else: the client alone, and the commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from served import local_server
from tiny_model import export

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]

SCORE = """
import sys
from serving import Client
with Client(sys.argv[1], "afm", timeout=20) as client:
    scores = client.predict({"A": ["x", ""], "B": ["1.5", ""]})
print(scores["logit"].shape, *sorted({name.partition(".")[0] for name in sys.modules} & {"afm_ctr", "tensorflow"}))
"""


def run(*command: object, folder: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def dist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``make dist`` makes it, without a trace in the source tree."""
    folder = tmp_path_factory.mktemp("dist")
    egg = ["egg_info", "--egg-base", folder]
    run(sys.executable, "setup.py", "--quiet", *egg, "sdist", "--dist-dir", folder, folder=root)
    (source,) = folder.glob("*.tar.gz")
    run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, source)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where pip reaches no index."""
    asked = [
        *PIP,
        "--retries",
        "0",
        "--timeout",
        "20",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "typing-extensions",
    ]
    folder = tmp_path_factory.mktemp("asked")
    if subprocess.run(asked, cwd=folder, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("pip reaches no package index from here, and a bare environment needs one")


def bare(folder: Path, root: Path, *requirements: str) -> Path:
    """The programs of a fresh virtual environment with these requirements, at the pinned versions."""
    venv.create(folder)
    constraints = root / "requirements" / "constraints.txt"
    run(
        *PIP, "--python", folder / "bin/python", "install", "--no-compile", "--constraint", constraints, *requirements
    )
    return folder / "bin"


def test_the_wheel_and_the_sdist_hold_the_packages_whole(dist: Path, root: Path) -> None:
    packages = ("afm_ctr", "beam_jobs", "serving")
    suffixes = (".py", ".pyi", ".cc", ".cu", ".h", ".proto", ".jinja", ".typed")
    ours = {str(path.relative_to(root)) for name in packages for path in (root / name).rglob("*")}
    ours = {name for name in ours if name.endswith(suffixes)}
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == ours
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert ours | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_client_needs_three_packages(dist: Path, root: Path, tmp_path: Path, index: None) -> None:
    (wheel,) = dist.glob("*.whl")
    programs = bare(tmp_path / "venv", root, f"{wheel}[client]")
    listed = json.loads(run(*PIP[:3], "--python", programs / "python", "list", "--format", "json").stdout)
    assert {package["name"] for package in listed} == {
        "afm-ctr", "grpcio", "numpy", "protobuf", "typing_extensions",  # the last one is grpcio's
    }  # fmt: skip
    export(tmp_path / "models", 3)
    with local_server(tmp_path / "models") as server:
        scored = run(programs / "python", "-c", SCORE, f"127.0.0.1:{server.grpc_port}", folder=tmp_path)
    assert scored.stdout.split() == ["(2,)"]
    refused = run(programs / "afm-ctr", "--help", folder=tmp_path, code=2)
    assert len(refused.stderr.splitlines()) == 1 and "pip install '.[cli]'" in refused.stderr


def test_the_commands_work_from_the_sdist(dist: Path, root: Path, tmp_path: Path, index: None) -> None:
    (source,) = dist.glob("*.tar.gz")
    programs = bare(tmp_path / "venv", root, f"{source}[cli]")
    run(programs / "afm-ctr", "make-logs", "--rows", 200, "--output", "logs.tsv.gz", folder=tmp_path)
    run(programs / "afm-ctr", "infer-schema", "--input", "logs.tsv.gz", "--output", "s.yaml", folder=tmp_path)
    assert (tmp_path / "s.yaml").read_text().startswith("#")
    refused = run(programs / "afm-ctr", "export", "--model-dir", ".", "--export-base", "b", folder=tmp_path, code=2)
    assert "traceback" not in refused.stderr.lower() and len(refused.stderr.splitlines()) == 1


def test_workers_need_what_their_requirements_bring(root: Path) -> None:
    """Without an extra the package brings the client's needs alone."""
    listed = (root / "requirements" / "beam-workers.txt").read_text()
    assert {"pydantic", "PyYAML"} <= set(re.findall(r"^([\w-]+)==", listed, re.M))
    names = ["beam_jobs", *(f"beam_jobs.{path.stem}" for path in (root / "beam_jobs").glob("[a-z]*.py"))]
    code = "import importlib, sys; sys.modules['rich'] = sys.modules['typer'] = None; "
    code += f"[importlib.import_module(name) for name in {names}]"
    run(sys.executable, "-c", code, folder=root)
