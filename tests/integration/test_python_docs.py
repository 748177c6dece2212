"""Pages of Python: the blocks of each run one after the other, from a frame of clicks that the test makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

pandas = pytest.importorskip("pandas", reason="pandas is not installed")


def clicks(rows: int = 4000) -> Any:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, rows), rng.integers(0, 30, rows)
    price = np.where(rng.random(rows) < 0.1, np.nan, rng.lognormal(size=rows).round(2))
    clicked = rng.random(rows) < np.where((user + item) % 2, 0.7, 0.1)
    columns = {"clicked": clicked.astype(int), "user": [f"u{i}" for i in user], "item": [f"i{i}" for i in item]}
    return pandas.DataFrame({**columns, "price": price})


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def test_the_blocks_run_in_order(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = clicks()
    frame.to_csv("clicks.csv", index=False)
    frame.to_parquet("clicks.parquet")
    found = blocks(root / "docs" / "python.md")
    assert len(found) == 6, "a block more or less: does this test still say what the page does?"
    first = [line for line in found[0].splitlines() if line and not line.startswith("import")]
    assert len(first) <= 10, "from a frame to an exported model in ten lines"
    names: dict[str, Any] = {}
    for number, block in enumerate(found):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    # What the page promises happened.
    assert names["figures"]["rows"] == 400 and names["figures"]["log_loss"] < names["figures"]["constant_log_loss"]
    assert sorted(path.name for path in (tmp_path / "served" / "shop").iterdir()) == ["1", "2"]
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 400
    served = names["afm_ctr"].FeatureTransform(names["data"].schema)
    assert served.schema.num_slots == names["reader"].schema.num_slots


def test_readme_s_block_is_the_first_of_the_page(root: Path) -> None:
    assert blocks(root / "README.md") == blocks(root / "docs" / "python.md")[:1]


def test_the_same_task_as_in_deepctr(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clicks().to_csv("clicks.csv", index=False)
    printed: list[Any] = []
    names: dict[str, Any] = {"print": printed.append}
    for block in blocks(root / "docs" / "coming-from-deepctr.md"):
        exec(compile(block, "docs/coming-from-deepctr.md", "exec"), names)
    assert names["scores"].shape == (400,) and ((names["scores"] > 0) & (names["scores"] < 1)).all()
    assert printed == [pytest.approx(roc_auc_score(names["valid"].labels, names["scores"]), abs=1e-6)]
    assert (tmp_path / "served" / "clicks" / "1").is_dir()
