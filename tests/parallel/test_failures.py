"""A rank that misbehaves ends the job, soon, and in words."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from launch import JOBS, horovodrun, needs_horovod

from afm_ctr.distributed import SingleWorld
from afm_ctr.training import TrainConfig, train
from afm_ctr.training.checkpoint_manager import CheckpointManager
from tests import prepared

EXPECTED = {
    "stuck": r"afm-ctr: rank \d of 2: no step finished for \d+ s \(last finished step: \d; at [^\n]+\): ending",
    "drift": r"variable [^\n]*second/bias has drifted apart after 5 steps: rank 0 and rank 1 disagree",
    "uneven": r"(rank 1 has ended an epoch after step 19, other ranks continue|another rank has ended its epoch or "
    r"its training while this one has batches left): give every rank as many",
}
# What the job's last words are under `afm-ctr train`: which rank, and why. How many steps are saved at least.
TOLD = {
    "killed": (r"\(rank 0\): rank 1 on localhost has ended without a word: killed, perhaps by the system", 4),
    "stopped": (r"no step finished for [^\n]+; rank 1 on localhost has not answered for \d+ s: stopped", 4),
    "stuck": (r"no step finished for [^\n]+; [^\n]*rank 1 at failing_train.py:\d+ fail", 4),
    "memory": (r"\(rank 1\): out of memory \([^\n]+\): lower batch_size [^\n]*/run\n", 4),
    "disk": (r"\(rank 0\): cannot write the run in [^\n]*/run: [^\n]*File too large; every checkpoint there is", 4),
    "shard": (r"\(rank \d\): [^\n]*part-00009\.tfrecord: block 0 [^\n]+ checksum does not match", 4),
    "signal": (r"\(rank 0\): stopped by SIGTERM after step 10: the state is saved in [^\n]*/run,", 10),
}
TOLD["killed, sharded"] = TOLD["killed"]


@needs_horovod
def test_the_launcher_shows_the_lines_of_the_ranks_alone(tmp_path: Path) -> None:
    job = horovodrun(2, ["-c", "print('here')"], tmp_path, TF_CPP_MIN_LOG_LEVEL="0")
    assert job.code == 0 and sorted(job.output.splitlines()) == ["[0]<stdout>:here", "[1]<stdout>:here"]


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


@needs_horovod
@pytest.mark.parametrize("how", [pytest.param(h, marks=[pytest.mark.soak] * (h == "stuck")) for h in TOLD])
def test_training_ends_with_a_cause_and_can_go_on(how: str, tmp_path: Path) -> None:
    data, run, file = prepared.write(tmp_path / "data", {"train": 400}), tmp_path / "run", tmp_path / "train.yaml"
    shard = data / "attempt/train/part-00009.tfrecord"
    whole = shard.read_bytes()
    if how == "shard":
        shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    name, (how, _, placement) = how, how.partition(", ")
    settings = TrainConfig.load(
        None,
        ["model={name: fm, factors: 4}", "batch_size=16", "epochs=1", "validation=null", "checkpoint.every_steps=2"]
        + ["watchdog.timeout_seconds=10", "tensorboard=false", f"table.placement={placement or 'replicated'}"],
    )
    file.write_text(settings.to_yaml())
    arguments = ["train", "--data", data, "--model-dir", run, "--config", file]
    job = horovodrun(2, [JOBS / "failing_train.py", how, *arguments], tmp_path, timeout=300)
    ended = time.time()
    said, saved = TOLD[name]
    assert job.code not in (0, 124), job.output[-4000:]
    assert re.search(said, job.output), job.output[-6000:]
    if how != "shard":
        failed = re.search(r"fails at ([\d.]+)", job.output)
        assert failed and ended - float(failed[1]) < 120, job.output[-4000:]
    last = CheckpointManager(run / "checkpoints").latest()
    assert last is not None and last.position.step >= saved
    shard.write_bytes(whole)
    summary = train(data, run, settings, SingleWorld(), progress="none")
    assert (summary.resumed_from, summary.steps) == (last.position.step, 25)


@needs_horovod
def test_a_rank_that_ends_before_the_first_meeting_is_named(tmp_path: Path) -> None:
    """With 0, of which the launcher says nothing; Horovod aborted without a word of it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "if os.environ['HOROVOD_RANK'] == '1': sys.exit(0)\n"
        "from afm_ctr.distributed import rendezvous\n"
        "rendezvous._PATIENCE = 3.0\n"
        "from afm_ctr.cli.main import main\n"
        "main()\n"
    )
    data = prepared.write(tmp_path / "data", {"train": 400})
    arguments = ["train", "--data", data, "--model-dir", tmp_path / "run"]
    job = horovodrun(2, [script, *arguments], tmp_path, HOROVOD_GLOO_TIMEOUT_SECONDS="3")
    assert job.code == 1, job.output[-4000:]
    assert "afm-ctr (rank 0): of 2 ranks 1 did not come within 3 s" in job.output, job.output[-4000:]
