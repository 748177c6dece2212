"""One Slurm task becomes one Horovod rank: no ssh and no MPI between the nodes, Slurm starts every process.

    srun python deploy/slurm/task.py afm-ctr train --data /shared/data --model-dir /shared/run --config train.yaml

Each task translates Slurm's variables into Horovod's and becomes the command. Task 0 also serves Horovod's rendezvous
(the addresses of the ranks, Gloo) until its command ends. Its place comes from two variables, equal on all tasks:

- ``HOROVOD_GLOO_RENDEZVOUS_ADDR``: by default the first host of ``SLURM_STEP_NODELIST``, by ``scontrol``.
- ``HOROVOD_GLOO_RENDEZVOUS_PORT``: by default 20000 + the job's id modulo 10000.

``HOROVOD_GLOO_IFACE`` names the network interface of the ranks' own connections; without it Gloo uses that of the
host's name. The number of ranks does not change during a job: for that, see ``horovodrun --host-discovery-script``.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping

NEEDED = (
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID"),
    *("SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"),
)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's ``4(x2),3`` as ``[4, 4, 3]``."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, where 4(x2),3 or the like was expected")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def horovod_environment(slurm: Mapping[str, str], address: str, port: int) -> dict[str, str]:
    """Horovod's environment variables for this task.

    Args:
        slurm: the environment from srun.
        address: host of the rendezvous.
        port: its port.
    """
    nodes = tasks_per_node(slurm["SLURM_STEP_TASKS_PER_NODE"])
    node, local_rank = int(slurm["SLURM_NODEID"]), int(slurm["SLURM_LOCALID"])
    # The nodes that have a task of this local rank, in order: Horovod's "cross" communicator.
    peers = [place for place, count in enumerate(nodes) if count > local_rank]
    return {
        "HOROVOD_RANK": slurm["SLURM_PROCID"],
        "HOROVOD_SIZE": slurm["SLURM_NTASKS"],
        "HOROVOD_LOCAL_RANK": str(local_rank),
        "HOROVOD_LOCAL_SIZE": str(nodes[node]),
        "HOROVOD_CROSS_RANK": str(peers.index(node)),
        "HOROVOD_CROSS_SIZE": str(len(peers)),
        "HOROVOD_HOSTNAME": f"node{node}",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }


def rendezvous(slurm: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the rendezvous, the same on every task."""
    address = slurm.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
    if not address:
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", slurm["SLURM_STEP_NODELIST"]],
            capture_output=True,
            text=True,
            check=True,
        )
        address = hosts.stdout.split()[0]
    return address, int(slurm.get("HOROVOD_GLOO_RENDEZVOUS_PORT") or 20000 + int(slurm["SLURM_JOB_ID"]) % 10000)


def serve(address: str, port: int, counts: list[int]) -> None:
    """Answer Horovod's rendezvous in a thread of this process, at this address alone.

    Raises:
        OSError: the address is not of this host, or the port is taken.
    """
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    server = RendezvousHTTPServer((socket.gethostbyname(address), port), RendezvousHandler, 0)
    ranks, plan = 0, []
    for node, count in enumerate(counts):
        for local_rank in range(count):
            peers = [place for place, other in enumerate(counts) if other > local_rank]
            plan.append(
                SlotInfo(
                    hostname=f"node{node}",
                    rank=ranks,
                    local_rank=local_rank,
                    cross_rank=peers.index(node),
                    size=sum(counts),
                    local_size=count,
                    cross_size=len(peers),
                )
            )
            ranks += 1
    server.init(plan)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def run(command: list[str], environment: Mapping[str, str]) -> int:
    """The command as a child, for as long as this process serves the rendezvous; its exit code."""
    child = subprocess.Popen(command, env=dict(environment))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda received, _: child.send_signal(received))
    code = child.wait()
    return 128 - code if code < 0 else code


def main(command: list[str]) -> int:
    missing = [name for name in NEEDED if name not in os.environ]
    if not command or missing:
        print("usage: srun python task.py COMMAND …", file=sys.stderr)
        if missing:
            print(f"task.py: not started by srun: {', '.join(missing)} not set", file=sys.stderr)
        return 2
    address, port = rendezvous(os.environ)
    environment = {**os.environ, **horovod_environment(os.environ, address, port)}
    if environment["HOROVOD_RANK"] != "0":
        os.execvpe(command[0], command, environment)
    try:
        serve(address, port, tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"]))
    except OSError as error:
        print(
            f"task.py: no rendezvous at {address}:{port}: {error}; name another port by HOROVOD_GLOO_RENDEZVOUS_PORT",
            file=sys.stderr,
        )
        return 2
    return run(command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
