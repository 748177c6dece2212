"""Several hosts on one machine: network namespaces with a switch between them, an sshd in each, and shaped links.

The machine's own network is not touched: the switch is a bridge in its own namespace, the hosts' only other interface
is loopback, ssh keys and settings are in a temporary folder. Leaving the :class:`Lab` ends every process in its
namespaces and removes them; the next one removes those that a killed one left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

PREFIX = "afmbench"
PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
}
PORT = 22
RELAY = Path(__file__).with_name("delayed_switch.py")


class LabError(Exception):
    """Namespaces cannot be created here, or a process in them does not answer; the text is one line."""


class Link(NamedTuple):
    """A host's link: bits per second in each direction, None for unlimited; one-way delay."""

    name: str
    rate: int | None = None
    delay_ms: float = 0.0


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def why_not() -> str:
    """Why a :class:`Lab` cannot be created here, and how to fix it; "" if it can."""
    if missing := [name for name in PROGRAMS if _program(name) is None]:
        packages = " ".join(dict.fromkeys(PROGRAMS[name] for name in missing))
        return f"{', '.join(missing)} not found: apt-get install {packages}"
    if os.geteuid() != 0:
        return "network namespaces with an sshd in each need root: start it with sudo"
    name = f"{PREFIX}-{os.getpid()}-try"
    made = subprocess.run([str(_program("ip")), "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    pair = ["-n", name, "link", "add", "name", "t0", "type", "veth", "peer", "name", "t1"]
    tried = subprocess.run([str(_program("ip")), *pair], capture_output=True, text=True)
    subprocess.run([str(_program("ip")), "netns", "del", name], check=False)
    return f"veth interfaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Lab:
    """Hosts host0 … with the addresses 10.77.0.1 …, each in a namespace, joined by a switch.

    Args:
        hosts: number of hosts.

    Attributes:
        addresses: of the hosts.
        names: of the hosts, which each host can resolve.
        folder: for files that all hosts share; removed with the lab.
        netem: whether the kernel can delay packets; if not, ``delayed_switch.py`` delays them.

    Raises:
        LabError: it cannot be created here.

    Example:
        >>> with Lab(3) as lab:
        ...     lab.shape(Link("1 Gbit/s", 10**9))
        ...     lab.popen(0, ["ssh", lab.names[1], "hostname"]).wait()
    """

    def __init__(self, hosts: int) -> None:
        self.addresses = [f"10.77.0.{number + 1}" for number in range(hosts)]
        self.names = [f"host{number}" for number in range(hosts)]
        self._stem = f"{PREFIX}-{os.getpid()}"
        self._switch = f"{self._stem}-switch"
        self._namespaces = [f"{self._stem}-h{number}" for number in range(hosts)]
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._handlers: dict[int, Any] = {}
        self._relay: subprocess.Popen[Any] | None = None
        self.netem = False
        self.folder = Path()

    def __enter__(self) -> Lab:
        if reason := why_not():
            raise LabError(reason)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _leave)
        try:
            _clear_stale()
            self.folder = Path(tempfile.mkdtemp(prefix=f"{self._stem}-"))
            self._connect()
            self._start_sshd()
            self.netem = self._has_netem()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes in the namespaces and remove them. A second Ctrl-C does not interrupt this."""
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            for name in [*self._namespaces, self._switch]:
                _remove(name)
            for daemon in self._daemons:
                daemon.wait()
            if self.folder != Path():
                shutil.rmtree(self.folder, ignore_errors=True)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _connect(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "name", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for number, (name, address) in enumerate(zip(self._namespaces, self.addresses, strict=True)):
            _ip("netns", "add", name)
            port = f"p{number}"
            _ip(
                "-n", self._switch, "link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", name
            )
            _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")

    def _has_netem(self) -> bool:
        try:
            _run(
                [
                    str(_program("tc")),
                    "-n",
                    self._switch,
                    "qdisc",
                    "add",
                    "dev",
                    "p0",
                    "root",
                    "netem",
                    "delay",
                    "1ms",
                ]
            )
        except LabError:
            return False
        _run([str(_program("tc")), "-n", self._switch, "qdisc", "del", "dev", "p0", "root"])
        return True

    def _start_sshd(self) -> None:
        folder = self.folder
        known = "".join(f"{address} {name}\n" for address, name in zip(self.addresses, self.names, strict=True))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        for key in ("host", "user"):
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)])
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "client").write_text(
            f"IdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known\n"
            "StrictHostKeyChecking no\nLogLevel ERROR\n"
        )
        # horovodrun calls "ssh": this wrapper does not use the user's own settings and known hosts.
        (folder / "bin").mkdir()
        wrapper = folder / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {_program("ssh")} -F {folder}/client "$@"\n')
        wrapper.chmod(0o755)
        for number, address in enumerate(self.addresses):
            settings, log = folder / f"sshd-{number}", folder / f"sshd-{number}.log"
            settings.write_text(
                f"Port {PORT}\nListenAddress {address}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
                f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\n"
                "PermitRootLogin prohibit-password\n"
            )
            daemon = [str(_program("sshd")), "-D", "-e", "-f", str(settings)]
            with log.open("wb") as sink:
                self._daemons.append(self.popen(number, daemon, stdout=sink, stderr=sink))
        deadline = time.monotonic() + 30
        for number, address in enumerate(self.addresses):
            ask = ["ssh", "-o", "ConnectTimeout=2", address, "true"]
            while self.popen(number, ask, stderr=subprocess.DEVNULL).wait():
                if time.monotonic() > deadline:
                    said = (folder / f"sshd-{number}.log").read_text(errors="replace").strip().splitlines()
                    raise LabError(f"no sshd answers on {address}: {said[-1] if said else 'it said nothing'}")
                time.sleep(0.1)

    def popen(self, host: int, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on a host, where ``ssh`` reaches the others by name; it ends with the lab."""
        # Mounts of `ip netns exec` are private. Horovod resolves its host's own name, and sshd needs an empty folder
        # in /run.
        own = f"hostname {self.names[host]} && mount --bind {self.folder}/hosts /etc/hosts && "
        own += 'mount -t tmpfs -o mode=755 none /run && mkdir /run/sshd && exec "$@"'
        line = [str(_program("unshare")), "--uts", "sh", "-c", own, "sh", *command]
        return self._start(self._namespaces[host], line, **options)

    def _start(self, namespace: str, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        env = options.pop("env", dict(os.environ))
        env["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{env.get('PATH', '')}"
        line = [str(_program("ip")), "netns", "exec", namespace, *command]
        # A separate session: we handle Ctrl-C and then end it.
        return subprocess.Popen(line, env=env, start_new_session=True, stdin=subprocess.DEVNULL, **options)

    def shape(self, link: Link) -> None:
        """Shape every host's link in both directions: the host's end and the switch's port."""
        self._bridge(link.delay_ms if not self.netem else 0.0)
        for number, name in enumerate(self._namespaces):
            for where, device in ((name, "eth0"), (self._switch, f"p{number}")):
                tc = [str(_program("tc")), "-n", where, "qdisc"]
                subprocess.run([*tc, "del", "dev", device, "root"], capture_output=True, check=False)
                parent = ["root"]
                if link.rate:
                    # Half a millisecond of bucket, and at least two segments as large as the kernel makes them.
                    burst = max(link.rate // 8 // 2000, 1 << 17)
                    rate = ["tbf", "rate", f"{link.rate}bit", "burst", str(burst), "latency", "100ms"]
                    _run([*tc, "add", "dev", device, *parent, "handle", "1:", *rate])
                    parent = ["parent", "1:1"]
                if link.delay_ms and self.netem and where == self._switch:
                    late = ["netem", "delay", f"{link.delay_ms}ms", "limit", "100000"]
                    _run([*tc, "add", "dev", device, *parent, "handle", "2:", *late])

    def _bridge(self, delay_ms: float) -> None:
        """Join the ports by the kernel's bridge, or for a delay by the switch in user space."""
        if self._relay:
            self._relay.kill()
            self._relay.wait()
            self._relay = None
        for number in range(len(self._namespaces)):
            to = ["nomaster"] if delay_ms else ["master", "br0"]
            _ip("-n", self._switch, "link", "set", f"p{number}", *to)
        if delay_ms:
            ports = [f"p{number}" for number in range(len(self._namespaces))]
            command = [sys.executable, str(RELAY), str(delay_ms), *ports]
            self._relay = self._start(self._switch, command, stdout=subprocess.PIPE)
            if self._relay.stdout is None or not self._relay.stdout.readline():
                raise LabError(f"{RELAY.name} does not start")


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"{' '.join(line)}: {said[-1] if said else f'ended with {done.returncode}'}")


def _ip(*words: str) -> None:
    _run([str(_program("ip")), *words])


def _remove(name: str) -> None:
    """Remove a namespace and every process in it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = subprocess.run([str(_program("ip")), "netns", "pids", name], capture_output=True, text=True)
        pids = [int(word) for word in found.stdout.split()]
        if found.returncode or not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    subprocess.run([str(_program("ip")), "netns", "del", name], capture_output=True, check=False)


def _clear_stale() -> None:
    """The namespaces and folders of labs whose process is gone."""
    listed = subprocess.run([str(_program("ip")), "netns", "list"], capture_output=True, text=True).stdout
    names = [line.split()[0] for line in listed.splitlines() if line.startswith(f"{PREFIX}-")]
    folders = [folder.name for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*")]
    for name in [*names, *folders]:
        if Path(f"/proc/{name.split('-')[1]}").exists():
            continue
        if name in names:
            _remove(name)
        else:
            shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)
