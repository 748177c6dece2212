"""A small prepared data set and a trained run, made once by the commands themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import raw_logs

if TYPE_CHECKING:
    from beam_jobs import PrepareSummary

AFM_CTR = Path(sys.executable).with_name("afm-ctr")
SMALL = ["--set", "model={name: afm, factors: 4, attention: 4}", "--set", "batch_size=256", "--set", "epochs=1"]


def afm_ctr(*arguments: object, code: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run one command; fail the test with its whole output unless it ends with ``code``."""
    command = [str(AFM_CTR), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == code, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result


def last_json(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Walk:
    """The files of one walk along the path."""

    schema: Path
    config: Path
    logs: Path
    data: Path
    run: Path
    made: dict[str, Any]
    prepared: dict[str, Any]
    trained: dict[str, Any]


@pytest.fixture(scope="session")
def walked(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """3,000 synthetic lines, some malformed, prepared with a tail split and trained for one epoch."""
    folder = tmp_path_factory.mktemp("walk")
    schema, config = root / "examples/criteo/schema.yaml", root / "examples/criteo/train.yaml"
    logs, data, run = folder / "logs.tsv.gz", folder / "data", folder / "run"
    made = last_json(afm_ctr("make-logs", "--rows", 3000, "--output", logs, "--malformed", 0.01, "--json"))
    described = ["--schema", schema, "--input", logs, "--split", "tail:0.1/0.1", "--max-reject-share", "0.05"]
    prepared = last_json(afm_ctr("prepare", *described, "--output", data, "--json"))
    trained = last_json(afm_ctr("train", "--data", data, "--model-dir", run, "--config", config, *SMALL, "--json"))
    return Walk(schema, config, logs, data, run, made, prepared, trained)


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of ``prepare`` for 2,400 raw rows."""
    return raw_logs.write(tmp_path_factory.mktemp("logs"), rows=2400) | {"chunk_lines": 300}


@pytest.fixture(scope="session")
def one(logs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> PrepareSummary:
    """A run of ``prepare`` in this process over them."""
    from beam_jobs import PrepareOptions, prepare

    return prepare(PrepareOptions(**logs, output=str(tmp_path_factory.mktemp("one"))))


@pytest.fixture(scope="session")
def whole(one: PrepareSummary) -> dict[str, Any]:
    """What it makes of them."""
    return raw_logs.contents(Path(one.output))
