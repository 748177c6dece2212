"""Traffic on the links of a :class:`namespaces.Lab`: bytes counted by an interface, and the attained speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from namespaces import Lab, LabError

# One end of a TCP connection; the sender waits for a byte that confirms that everything has arrived.
END = """
import socket, sys, time
kind, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3]) << 20
if kind == "to":
    server = socket.create_server((address, 7777))
    print("up", flush=True)
    peer = server.accept()[0]
    while size > 0:
        size -= len(peer.recv(1 << 20))
    peer.sendall(b".")
else:
    peer = socket.create_connection((address, 7777))
    start = time.perf_counter()
    peer.sendall(bytes(size))
    peer.recv(1)
    print(size * 8 / (time.perf_counter() - start) / 1e9)
"""


def received_and_sent(device: str = "eth0") -> tuple[int, int]:
    """Bytes counted by an interface in this process's namespace.

    Raises:
        LabError: there is no such interface.
    """
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            counts = numbers.split()
            return int(counts[0]), int(counts[8])
    raise LabError(f"there is no interface {device} here: the ranks run on the hosts of a lab")


def attained(lab: Lab, megabytes: int) -> float:
    """Gbit/s from host 0 to host 1 over one TCP connection."""
    words, pipe = [sys.executable, "-c", END], subprocess.PIPE
    to = lab.popen(1, [*words, "to", lab.addresses[1], str(megabytes)], stdout=pipe, text=True)
    assert to.stdout
    to.stdout.readline()
    source = lab.popen(0, [*words, "from", lab.addresses[1], str(megabytes)], stdout=pipe, text=True)
    answer, _ = source.communicate(timeout=120)
    to.wait(timeout=30)
    return float(answer)
