"""Two and three ranks with a table spread over them do what one process with the whole table does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.launch import JOBS, horovodrun, needs_horovod


@needs_horovod
@pytest.mark.parametrize("ranks", [2, 3])
def test_sharded_ranks_equal_one_process(ranks: int, tmp_path: Path) -> None:
    job = horovodrun(ranks, [JOBS / "sharded.py"], tmp_path)
    assert job.code == 0, job.output[-4000:]
    assert sorted(job.reports) == list(range(ranks))
    for findings in job.reports.values():
        assert findings.pop("size") == ranks
        assert len(findings) == 8
        for name, difference in findings.items():
            assert difference <= 1e-5, (name, difference)
    worst = max(max(findings.values()) for findings in job.reports.values())
    print(f"{ranks} ranks: {job.seconds:.0f} s, largest difference {worst:.1e}")
