"""deploy/slurm on a Slurm of one node that the test starts: two tasks, two ranks, CPU."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import prepared

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONFIG = "model: {name: fm, factors: 4}\nbatch_size: 10\n"


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a cluster of this machine alone, on loopback."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    missing = [name for name in NEEDED if shutil.which(name, path=search) is None]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client")
    if os.geteuid() != 0:
        pytest.skip("slurmd wants root")
    folder = tmp_path_factory.mktemp("slurm")
    controller, daemon = free_ports(2)
    host = socket.gethostname().partition(".")[0]
    lines = {
        "ClusterName": "one",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "AuthType": "auth/none",
        "CredType": "cred/none",
        "SlurmctldPort": controller,
        "SlurmdPort": daemon,
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "ProctrackType": "proctrack/pgid",
        "TaskPlugin": "task/none",
        "SlurmdParameters": "config_overrides",
        "ReturnToService": "2",
    }
    conf = folder / "slurm.conf"
    conf.write_text(
        "".join(f"{name}={value}\n" for name, value in lines.items())
        + f"NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n"
        + "PartitionName=main Nodes=ALL Default=YES State=UP\n"
    )
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "PATH": search,
        "SLURM_CONF": str(conf),
        "CUDA_VISIBLE_DEVICES": "",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(free_ports(1)[0]),
    }
    daemons = [
        subprocess.Popen(
            [shutil.which(name, path=search) or name, "-D"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("slurmctld", "slurmd")
    ]
    try:
        deadline = time.monotonic() + 60
        while "idle" not in (state := asked(environment, "sinfo", "--noheader", "--format", "%T")):
            logs = (folder / "slurmctld.log", folder / "slurmd.log")
            said = "\n".join(log.read_text()[-1500:] for log in logs if log.exists())
            assert time.monotonic() < deadline, f"the node did not come up: {state}\n{said}"
            time.sleep(0.5)
        yield environment
    finally:
        for process in reversed(daemons):
            process.terminate()
            process.wait(30)


def asked(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def submit(environment: dict[str, str], root: Path, log: Path, *arguments: object) -> str:
    config = log.with_name("train.yaml")
    config.write_text(CONFIG)
    # The script looks for .venv in the checkout; a test's interpreter may stand elsewhere.
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    line = ["sbatch", "--parsable", "--nodes", "1", "--ntasks-per-node", "2", "--output", str(log)]
    script = str(root / "deploy" / "slurm" / "train.sbatch")
    made = subprocess.run(
        [*line, script, "--config", str(config), *map(str, arguments)],
        env={**environment, "PATH": path},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def state(environment: dict[str, str], job: str) -> str:
    shown = asked(environment, "scontrol", "show", "job", job)
    return next(word.partition("=")[2] for word in shown.split() if word.startswith("JobState="))


def wait_for(environment: dict[str, str], job: str, states: set[str], log: Path, seconds: float = 150) -> str:
    deadline = time.monotonic() + seconds
    while (now := state(environment, job)) not in states:
        text = log.read_text() if log.exists() else ""
        assert time.monotonic() < deadline, f"job {job} is {now}, not {states}\n{text}"
        time.sleep(0.5)
    return now


ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def test_two_tasks_train_as_two_ranks(slurm: dict[str, str], root: Path, tmp_path: Path) -> None:
    data, run, log = prepared.write(tmp_path / "data"), tmp_path / "run", tmp_path / "log"
    job = submit(slurm, root, log, "--data", data, "--model-dir", run, "--set", "epochs=2")
    assert wait_for(slurm, job, ENDED, log) == "COMPLETED", log.read_text()
    assert "on 2 ranks" in log.read_text()
    epochs = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]


def test_before_the_time_limit_the_state_is_saved_and_the_job_queued_again(
    slurm: dict[str, str], root: Path, tmp_path: Path
) -> None:
    """Slurm's signal, sent here by hand: to the job's steps and not to the script, as --signal=TERM@120 does."""
    data, run, log = prepared.write(tmp_path / "data"), tmp_path / "run", tmp_path / "log"
    job = submit(slurm, root, log, "--data", data, "--model-dir", run, "--set", "epochs=100000")
    deadline = time.monotonic() + 120
    while not (run / "history.jsonl").exists():
        assert state(slurm, job) not in ENDED and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    asked(slurm, "scancel", "--signal=TERM", job)
    wait_for(slurm, job, {"PENDING"}, log)  # held back for some seconds before it may run again
    assert "stopped by SIGTERM" in log.read_text() and "queued again" in log.read_text()
    assert any((run / "checkpoints").iterdir())
    asked(slurm, "scancel", job)
