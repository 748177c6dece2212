"""What other people have or have not installed: a model of another package, no Horovod."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import prepared
from tests.integration.conftest import AFM_CTR

# Python imports it as it starts; after that Horovod looks as if it were not there.
NO_HOROVOD = "import sys\nsys.modules['horovod'] = None\n"
Command = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"))


def command(path: Path) -> Command:
    """Runs ``afm-ctr`` with a folder before all others on Python's path; returns the JSON object of ``--json``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}

    def run(*arguments: object) -> dict[str, Any]:
        line = [str(AFM_CTR), *map(str, arguments), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def plugin(root: Path) -> dict[str, str]:
    """The files of the page, by name: each is a block below its name."""
    page = (root / "docs" / "plugins.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", page, re.M | re.S))
    assert sorted(files) == ["outside_ctr.py", "setup.py", "train.yaml"]
    return files


def settings(folder: Path, model: str) -> Path:
    path = folder / "train.yaml"
    optimizer = "{name: adam, learning_rate: 0.05}"
    path.write_text(f"model: {model}\noptimizer: {optimizer}\nbatch_size: 16\nepochs: 2\n")
    return path


def test_a_model_of_another_package_goes_the_whole_way(data: Path, root: Path, tmp_path: Path) -> None:
    """The package of docs/plugins.md, by people who know afm_ctr by its contract alone."""
    source, site, run = tmp_path / "source", tmp_path / "site", tmp_path / "run"
    source.mkdir()
    for name, content in plugin(root).items():
        (source / name).write_text(content)
    how = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *how, "--target", str(site), str(source)]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=240)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    afm_ctr = command(site)
    config = source / "train.yaml"
    trained = afm_ctr("train", "--data", data, "--model-dir", run, "--config", config)
    assert (trained["epochs"], trained["steps"]) == (2, 14)
    judged = afm_ctr("evaluate", "--data", data, "--split", "valid", "--model-dir", run)
    assert judged["auc"] == pytest.approx(trained["best"]["value"], rel=1e-9)
    exported = afm_ctr("export", "--model-dir", run, "--export-base", tmp_path / "base")
    assert (tmp_path / "base/1/saved_model.pb").is_file(), exported


def test_trains_and_evaluates_without_horovod(data: Path, tmp_path: Path) -> None:
    site, run = tmp_path / "site", tmp_path / "run"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_HOROVOD)
    environment = os.environ | {"PYTHONPATH": str(site)}
    assert subprocess.run([sys.executable, "-c", "import horovod"], env=environment, capture_output=True).returncode
    afm_ctr = command(site)
    config = settings(tmp_path, "{name: afm, factors: 3, attention: 2}")
    assert afm_ctr("train", "--data", data, "--model-dir", run, "--config", config)["steps"] == 14
    assert afm_ctr("evaluate", "--data", data, "--split", "test", "--model-dir", run)["rows"] == 30
