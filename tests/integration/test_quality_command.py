"""The comparison of accuracy as a command, on made-up rows and with our own models: peers take long."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "quality" / "run.py"
RANGES = [0, 957, 5039, 5046, 5053, 5055, 5058, 5060, 5069, 5149]  # where the ids of Frappe's fields begin


def libfm(file: Path, rows: int, seed: int) -> Path:
    """Rows whose label is that the first two fields are both odd, or both even."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2, (rows, len(RANGES)))
    labels = np.where(ids[:, 0] == ids[:, 1], 1, -1)
    lines = (
        f"{label} {' '.join(f'{first + one}:1' for first, one in zip(RANGES, row, strict=True))}\n"
        for label, row in zip(labels, ids, strict=True)
    )
    content = "".join(lines).encode()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def call(folder: Path, *options: object) -> str:
    command = [sys.executable, str(RUN), "frappe", "--data", str(folder), "--output-dir", str(folder / "out")]
    done = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.soak
def test_models_are_compared_and_nothing_is_done_twice(tmp_path: Path) -> None:
    assert "skipped: " in call(tmp_path)
    libfm(tmp_path / "frappe/frappe.train.libfm.gz", 6000, 1)
    libfm(tmp_path / "frappe/frappe.validation.libfm.gz", 1000, 2)
    table = tmp_path / "table.md"
    first = call(tmp_path, "--only", "lr", "fm", "--seeds", 2, "--output", table)
    assert "fm, seed 2022, epoch 1, validation AUC" in first
    kept = [json.loads(file.read_text()) for file in (tmp_path / "out/frappe/results").iterdir()]
    aucs = {(one["model"], one["seed"]): one["metrics"]["valid"]["auc"] for one in kept}
    assert sorted(aucs) == [("fm", 2021), ("fm", 2022), ("lr", 2021), ("lr", 2022)]
    assert aucs["fm", 2021] > 0.95 > 0.6 > aucs["lr", 2021]  # a pair decides
    text = table.read_text()
    assert "python benchmarks/quality/run.py frappe" in text and "| fm | 2 | " in text and "fm, AUC not worse" in text
    again = call(tmp_path, "--only", "fm", "--seeds", 2, "--test", libfm(tmp_path / "test.libfm", 500, 3))
    assert "epoch 1" not in again and "split file-" in again
