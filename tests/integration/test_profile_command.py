"""``train --profile``: a table whose parts sum to the step, beside TensorBoard's trace, and no other weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from afm_ctr.distributed import SingleWorld
from afm_ctr.training import TrainConfig, train
from afm_ctr.training.profiler import PARTS
from tests import prepared

MODEL = "model={name: afm, factors: 4, attention: 4}"


def weights(run: Path) -> dict[str, np.ndarray]:
    (last,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    return {path.name: np.load(path) for path in last.glob("tables/*/*.npy")}


def test_a_run_is_profiled_once_and_learns_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = prepared.write(tmp_path / "data", {"train": 100})
    config = TrainConfig.load(None, [MODEL, "batch_size=5", "epochs=2", "validation=null"])
    train(data, tmp_path / "plain", config, SingleWorld(), progress="none")
    assert not (tmp_path / "plain/profile.json").exists()
    train(data, tmp_path / "run", config, SingleWorld(), progress="lines", profile=6)
    profile = json.loads((tmp_path / "run/profile.json").read_text())
    assert (profile["steps"], profile["batch_size"]) == (6, 5)
    took = profile["milliseconds"]
    assert set(took) == {*PARTS, "step"}
    assert sum(took[part] for part in PARTS) == pytest.approx(took["step"], abs=0.01)
    for part in ("input", "merge", "lookup", "interaction", "optimizer", "other"):
        assert took[part] > 0, part
    assert took["exchange"] < 0.5 * took["step"]
    assert (tmp_path / "run" / profile["trace"]).is_file() and profile["trace"].startswith("tensorboard/")
    shown = capfd.readouterr().err
    assert "profile of 6 steps of 5 rows" in shown and "interaction" in shown
    for name, value in weights(tmp_path / "plain").items():
        np.testing.assert_array_equal(weights(tmp_path / "run")[name], value, err_msg=name)


def test_a_run_that_is_too_short_for_a_profile_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = prepared.write(tmp_path / "data", {"train": 100})
    config = TrainConfig.load(None, [MODEL, "batch_size=50", "epochs=1", "validation=null"])
    train(data, tmp_path / "run", config, SingleWorld(), progress="lines", profile=6)
    assert "no profile: the run had no step left after 10 warm-up steps" in capfd.readouterr().err
    assert not (tmp_path / "run/profile.json").exists()
