"""A rank that misbehaves ends the job, soon, and in words."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from launch import JOBS, horovodrun, needs_horovod

EXPECTED = {
    "killed": r"",
    "stuck": r"afm-ctr: rank \d of 2: no step finished for \d+ s \(last finished step: \d; at [^\n]+\): ending",
    "drift": r"variable [^\n]*second/bias has drifted apart after 5 steps: rank 0 and rank 1 disagree",
}


@needs_horovod
@pytest.mark.parametrize("how", EXPECTED)
def test_the_job_ends_with_an_error(how: str, tmp_path: Path) -> None:
    job = horovodrun(2, [JOBS / "failing.py", how], tmp_path)
    ended = time.time()
    assert job.code not in (0, 124), job.output[-4000:]
    assert "the end was reached" not in job.output
    misbehaved = re.search(r"misbehaves at ([\d.]+)", job.output)
    assert misbehaved, job.output[-4000:]
    assert ended - float(misbehaved[1]) < 60  # bounded: the stock behaviour of a stuck rank is to wait for ever
    assert re.search(EXPECTED[how], job.output), job.output[-4000:]
