"""What other people have or have not installed: a model of another package, no Horovod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import prepared
from tests.integration.conftest import AFM_CTR

SETUP = """
from setuptools import setup
setup(
    name="outside-ctr", version="1.0", py_modules=["outside_ctr"],
    entry_points={"afm_ctr.models": ["squares = outside_ctr:Squares"]},
)
"""
MODEL = '''
"""A model of people who know afm_ctr by its contract alone."""

import keras
import tensorflow as tf

from afm_ctr.models import Interaction, InteractionOptions


class Options(InteractionOptions):
    units: int = 4


class Squares(Interaction):
    Options = Options

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hidden = keras.layers.Dense(self.options.units, activation="relu")
        self.drop = keras.layers.Dropout(0.1)
        self.out = keras.layers.Dense(1)

    def call(self, inputs, training=False, rows=None):
        pooled = tf.square(tf.reduce_sum(inputs.vectors, axis=1))
        hidden = self.drop(self.hidden(pooled), training=training)
        return tf.reduce_sum(inputs.linear, axis=1) + self.out(hidden)[:, 0]
'''
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


def settings(folder: Path, model: str) -> Path:
    path = folder / "train.yaml"
    optimizer = "{name: adam, learning_rate: 0.05}"
    path.write_text(f"model: {model}\noptimizer: {optimizer}\nbatch_size: 16\nepochs: 2\n")
    return path


def test_a_model_of_another_package_goes_the_whole_way(data: Path, tmp_path: Path) -> None:
    source, site, run = tmp_path / "source", tmp_path / "site", tmp_path / "run"
    source.mkdir()
    (source / "setup.py").write_text(SETUP)
    (source / "outside_ctr.py").write_text(MODEL)
    how = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *how, "--target", str(site), str(source)]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=240)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    afm_ctr = command(site)
    config = settings(tmp_path, "{name: squares, factors: 3, units: 5}")
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
