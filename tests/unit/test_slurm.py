"""deploy/slurm: a task's variables, without Slurm. tests/integration/test_slurm_jobs.py runs jobs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def task(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("slurm_task", root / "deploy" / "slurm" / "task.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("text", "counts"), [("2", [2]), ("4(x2),3", [4, 4, 3]), ("1,2(x1),8(x3)", [1, 2, 8, 8, 8])])
def test_tasks_per_node(task: ModuleType, text: str, counts: list[int]) -> None:
    assert task.tasks_per_node(text) == counts


def test_tasks_per_node_names_what_it_cannot_read(task: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'4\(2\)'"):
        task.tasks_per_node("4(2)")


@pytest.mark.parametrize(
    ("rank", "node", "local", "expected"),
    [
        # nodes of 2, 3 and 1 tasks: local rank 1 exists on the first two, local rank 2 on the second only
        (0, 0, 0, {"LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "3"}),
        (3, 1, 1, {"LOCAL_SIZE": "3", "CROSS_RANK": "1", "CROSS_SIZE": "2"}),
        (4, 1, 2, {"LOCAL_SIZE": "3", "CROSS_RANK": "0", "CROSS_SIZE": "1"}),
        (5, 2, 0, {"LOCAL_SIZE": "1", "CROSS_RANK": "2", "CROSS_SIZE": "3"}),
    ],
)
def test_a_task_becomes_a_rank(task: ModuleType, rank: int, node: int, local: int, expected: dict[str, str]) -> None:
    slurm = {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": "6",
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_STEP_TASKS_PER_NODE": "2,3,1",
    }
    made = task.horovod_environment(slurm, "head", 20123)
    assert made["HOROVOD_RANK"] == str(rank) and made["HOROVOD_SIZE"] == "6"
    assert made["HOROVOD_LOCAL_RANK"] == str(local)
    assert made["HOROVOD_GLOO_RENDEZVOUS_ADDR"] == "head" and made["HOROVOD_GLOO_RENDEZVOUS_PORT"] == "20123"
    for name, value in expected.items():
        assert made[f"HOROVOD_{name}"] == value


def test_the_rendezvous_is_the_same_on_every_task_and_may_be_named(task: ModuleType) -> None:
    named = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "head", "SLURM_JOB_ID": "123456"}
    assert task.rendezvous(named) == ("head", 23456)
    assert task.rendezvous({**named, "HOROVOD_GLOO_RENDEZVOUS_PORT": "9"}) == ("head", 9)


def test_outside_slurm_one_line_says_so(root: Path) -> None:
    ended = subprocess.run(
        [sys.executable, root / "deploy" / "slurm" / "task.py", "true"], capture_output=True, text=True, env={}
    )
    assert ended.returncode == 2
    assert "not started by srun: SLURM_PROCID" in ended.stderr and "Traceback" not in ended.stderr


def test_the_batch_script_is_shell(root: Path) -> None:
    subprocess.run(["bash", "-n", root / "deploy" / "slurm" / "train.sbatch"], check=True)
