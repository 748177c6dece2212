"""Two and three ranks do what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import JOBS, horovodrun, needs_horovod


@needs_horovod
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_process(ranks: int, tmp_path: Path) -> None:
    job = horovodrun(ranks, [JOBS / "exchange.py"], tmp_path)
    assert job.code == 0, job.output[-4000:]
    assert sorted(job.reports) == list(range(ranks))
    for rank, findings in job.reports.items():
        assert findings.pop("size") == ranks
        assert len(findings) == (6 if rank else 16)  # what is the same on all ranks is compared on rank 0
        for name, difference in findings.items():
            allowed = 1e-9 if name.startswith(("auc", "metric")) else 1e-6 if "plain" in name else 1e-5
            assert difference <= allowed, (name, difference)
