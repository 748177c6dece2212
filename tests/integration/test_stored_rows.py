"""A run's scores are the same whether its table is in memory or its rows are read from the checkpoint."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_ctr.distributed import SingleWorld
from afm_ctr.explain import explain
from afm_ctr.prediction import predict_logs, predict_records
from afm_ctr.report import report
from afm_ctr.training import evaluate, load_model
from afm_ctr.training.model_io import open_run
from afm_ctr.training.stored_table import LARGEST_TABLE_MB, StoredTable
from tests import prepared
from tests.runs import write_run

SCORERS = ("prediction", "training.evaluation", "explain.command", "report.command", "report.baseline")
LOG = "".join(f"0,{row % 5},{row % 12},{row % 7},,{row % 11}\n" for row in range(30))


def scored(run: Path, other: Path, data: Path, folder: Path) -> dict[str, Any]:
    """What each command finds."""
    folder.mkdir()
    (folder / "log.csv").write_text(LOG)
    predict_records(run, data, "test", folder / "records.jsonl")
    predict_logs(run, [str(folder / "log.csv")], folder / "logs.jsonl")
    lines = {
        name: [{**json.loads(line), "key": ""} for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("records", "logs")
    }
    pairs = sorted(explain(run, data).pairs, key=lambda pair: pair.fields)
    told = report(run, data, output=folder / "page.html", baseline=other).to_json()
    judged = evaluate(data, "test", run, SingleWorld())
    return {**lines, "explain": repr(pairs), "evaluate": judged, "report": told | {"output": ""}}


def test_scores_are_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared.write(tmp_path / "data")
    for seed, name in enumerate(("run", "other")):
        write_run(tmp_path / name, prepared.schema(), seed=seed)
    arguments = (tmp_path / "run", tmp_path / "other", data)
    held = scored(*arguments, tmp_path / "held")
    opened: list[StoredTable] = []

    def without_memory(*options: Any, **named: Any) -> Any:
        found = open_run(*options, **named, largest_table_mb=0)
        opened.append(found[0].table)
        assert all(np.prod(variable.shape) < 50 for variable in found[0].variables)
        return found

    for module in SCORERS:
        monkeypatch.setattr(f"afm_ctr.{module}.open_run", without_memory)
    assert scored(*arguments, tmp_path / "stored") == held
    assert len(opened) == 6 and all(isinstance(table, StoredTable) for table in opened)
    assert len({line["logit"] for line in held["records"]}) > 20 and len(held["logs"]) == 30


def test_a_larger_table_is_read_from_its_files(tmp_path: Path) -> None:
    write_run(tmp_path / "run", prepared.schema())
    size = 4 * (1 + prepared.FIELDS * prepared.IDS) * 5
    for largest, stored in ((size, False), (size - 1, True)):
        table = open_run(tmp_path / "run", largest_table_mb=largest / 1e6)[0].table
        assert isinstance(table, StoredTable) == stored
    default = inspect.signature(open_run).parameters["largest_table_mb"].default
    assert default == LARGEST_TABLE_MB == 1000
    assert not isinstance(load_model(tmp_path / "run")[0].table, StoredTable)
