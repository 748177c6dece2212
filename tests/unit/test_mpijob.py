"""deploy/kubernetes/mpijob.yaml: it agrees with itself, with horovodrun's options and with what sshd will read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml


@pytest.fixture(scope="module")
def documents(root: Path) -> dict[str, dict[str, Any]]:
    text = (root / "deploy" / "kubernetes" / "mpijob.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def job(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return documents["MPIJob"]["spec"]


def container(job: dict[str, Any], role: str) -> dict[str, Any]:
    (only,) = job["mpiReplicaSpecs"][role]["template"]["spec"]["containers"]
    return only


@pytest.fixture(scope="module")
def launched(job: dict[str, Any]) -> Any:
    """The launcher's command line as horovodrun itself reads it."""
    launch = pytest.importorskip("horovod.runner.launch", reason="Horovod is not installed: it reads the line")
    launcher = container(job, "Launcher")
    with mock.patch.object(sys, "argv", [*launcher["command"], *launcher["args"]]):
        return launch.parse_args()


def test_one_rank_a_gpu(job: dict[str, Any], launched: Any) -> None:
    worker = job["mpiReplicaSpecs"]["Worker"]
    assert launched.num_proc == worker["replicas"] * job["slotsPerWorker"]
    resources = container(job, "Worker")["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == job["slotsPerWorker"]
    assert "nvidia.com/gpu" not in container(job, "Launcher")["resources"]["limits"]


def test_horovodrun_takes_the_line(launched: Any) -> None:
    assert launched.hostfile == "/etc/mpi/hostfile" and launched.use_gloo
    assert launched.command[:2] == ["afm-ctr", "train"]


def test_horovodrun_reads_the_operators_host_file(tmp_path: Path) -> None:
    hosts = pytest.importorskip("horovod.runner.common.util.hosts", reason="Horovod is not installed")
    file = tmp_path / "hostfile"
    file.write_text("afm-ctr-worker-0.afm-ctr.ns.svc slots=4\nafm-ctr-worker-1.afm-ctr.ns.svc slots=4\n")
    assert hosts.parse_host_files(str(file)) == "afm-ctr-worker-0.afm-ctr.ns.svc:4,afm-ctr-worker-1.afm-ctr.ns.svc:4"


def test_ssh_has_one_port_and_one_home(root: Path, job: dict[str, Any], launched: Any) -> None:
    lines = (root / "deploy" / "kubernetes" / "sshd_config").read_text().splitlines()
    config = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    worker = container(job, "Worker")
    assert int(config["Port"]) == launched.ssh_port == worker["ports"][0]["containerPort"]
    assert worker["readinessProbe"]["tcpSocket"]["port"] == launched.ssh_port
    assert config["HostKey"] in worker["args"][0], "the key that sshd reads is the one that is made"
    assert job["sshAuthMountPath"].endswith(config["AuthorizedKeysFile"].rpartition("/")[0])


def test_pods_run_as_a_user_and_keep_others_out(documents: dict[str, dict[str, Any]], job: dict[str, Any]) -> None:
    for role in ("Launcher", "Worker"):
        pod = job["mpiReplicaSpecs"][role]["template"]
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["securityContext"]["runAsUser"] > 0
        assert container(job, role)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container(job, role)["image"].endswith(":latest")
        policy = documents["NetworkPolicy"]["spec"]
        assert policy["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
        assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]
