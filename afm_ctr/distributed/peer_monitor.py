"""Which ranks are still alive: messages between the ranks, outside the exchange.

When an exchange fails or hangs, Horovod cannot tell which rank caused it. Here every rank reports its place to rank 0
once a second, and rank 0 passes it on. A rank that is killed drops its connection, one that is stopped falls silent,
one that fails sends the reason before it ends. Nothing is decided here: it only explains the end of the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import json
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from afm_ctr.distributed.world import World

_EVERY = 1.0
_SILENT = 5.0  # seconds without a message: the thread that sends them does nothing else
_PATIENCE = 4.0  # how long a failure waits for its explanation
_LINE = 1 << 20  # bytes: more than the table of thousands of ranks takes
_HELLO = 10.0  # seconds that a new connection has to identify itself
_SIOCGIFADDR = 0x8915  # linux/sockios.h


@dataclasses.dataclass
class _Member:
    """State of one rank. ``age`` counts from ``heard``, in seconds of this machine's clock."""

    host: str
    place: str = ""
    heard: float = 0.0
    ended: bool = False
    words: str = ""


class PeerMonitor:
    """Keeps track of the other ranks of a job; does nothing in a single process.

    All ranks create it together. Ranks that cannot be reached over TCP are left out of its reports.

    Args:
        place: returns where this rank is, in a few words.
    """

    def __init__(self, world: World, place: Callable[[], str]) -> None:
        self._world, self._place = world, place
        self._members: dict[int, _Member] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._words = ""
        self._sockets: list[socket.socket] = []
        self._room = threading.BoundedSemaphore(2 * world.size)  # connections; more are closed at once
        if world.size == 1:
            return
        here = interface_address(world.local_size == world.size) if world.is_chief else ""
        listener = socket.create_server((here, 0)) if world.is_chief else None
        mine = {"host": os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname()}
        port = listener.getsockname()[1] if listener is not None else 0
        contact = {"port": port, "token": secrets.token_hex(16), "addresses": [here] if here else _addresses()}
        self.contact = contact
        chief, everyone = world.broadcast_object(contact), world.allgather_object(mine)
        self._hosts = {rank: one["host"] for rank, one in enumerate(everyone)}
        if listener is not None:
            self._sockets.append(listener)
            self._run(self._listen, listener, chief["token"])
            self._run(self._tell)
        else:
            self._run(self._join, chief)

    def explain(self, stuck: bool = False) -> str | None:
        """Which rank is missing, in a few words; None if all seem fine.

        Args:
            stuck: name the places of all ranks if all of them answer. Otherwise wait briefly for an explanation.
        """
        deadline = time.monotonic() + (0 if stuck else _PATIENCE)
        while True:
            found = self.missing()
            if found or time.monotonic() >= deadline or self._world.size == 1:
                break
            time.sleep(0.1)
        return found or (self._places() if stuck else None)

    def close(self, words: str = "") -> None:
        """Leave, with a reason that the other ranks print for the end of the job."""
        self._words = words
        if self._stop.is_set() or not self._sockets:
            return
        with contextlib.suppress(OSError):
            self.send()
        self._stop.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def missing(self) -> str | None:
        """The ranks that failed, ended or have fallen silent, in one text; None: all answer."""
        now = time.monotonic()
        with self._lock:
            known = sorted(self._members.items())
            chief = self._members.get(0)
        # News of the other ranks comes through rank 0: while it is silent nothing is known about them.
        last = now if chief is None else chief.heard
        silence = {rank: (last if rank else now) - m.heard for rank, m in known}
        ended = [f"rank {rank} on {m.host} failed: {m.words}" for rank, m in known if m.words]
        ended += [
            f"rank {rank} on {m.host} has ended without a word: killed, perhaps by the system for lack of memory"
            for rank, m in known
            if m.ended and not m.words
        ]
        silent = [
            f"rank {rank} on {m.host} has not answered for {silence[rank]:.0f} s: stopped, or its machine is out of "
            "reach"
            for rank, m in known
            if not m.ended and silence[rank] > _SILENT
        ]
        return "; ".join(ended or silent) or None

    def _places(self) -> str | None:
        with self._lock:
            known = {rank: m.place for rank, m in self._members.items()} | {self._world.rank: self._place()}
        groups: dict[str, list[int]] = {}
        for rank, place in sorted(known.items()):
            groups.setdefault(place, []).append(rank)
        if len(groups) < 2:
            return None
        few = sorted(groups.items(), key=lambda group: len(group[1]))
        return ", ".join(f"rank {', '.join(map(str, ranks))} at {place}" for place, ranks in few)

    # -- messages: one JSON object per line ------------------------------------------------------------------------

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        def quietly() -> None:
            # The connection ended, or sent garbage.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
                work(*arguments)

        threading.Thread(target=quietly, name="afm-ctr-roll-call", daemon=True).start()

    def _report(self) -> dict[str, Any]:
        return {"place": self._place(), "words": self._words}

    def receive(self, rank: int, said: dict[str, Any]) -> None:
        """Record what a rank reported about itself, or rank 0 about it."""
        place, words = str(said["place"]), str(said["words"])
        age, ended = float(said.get("age", 0.0)), bool(said.get("ended", False))
        with self._lock:
            member = self._members.setdefault(rank, _Member(self._hosts[rank]))
            member.place, member.words = place, words or member.words
            member.heard = time.monotonic() - age
            member.ended = ended

    def _hang_up(self, rank: int) -> None:
        with self._lock:
            if rank in self._hosts and not self._stop.is_set():  # it may end before it has sent anything
                self._members.setdefault(rank, _Member(self._hosts[rank])).ended = True

    def _listen(self, listener: socket.socket, token: str) -> None:
        while not self._stop.is_set():
            connection, _ = listener.accept()
            if self._room.acquire(blocking=False):
                self._run(self._serve, connection, token)
            else:
                connection.close()

    def _serve(self, connection: socket.socket, token: str) -> None:
        """Rank 0: receive the messages of one other rank."""
        rank = -1
        try:
            hello = first_object(connection, _HELLO)
            if not secrets.compare_digest(str(hello["token"]).encode(errors="replace"), token.encode()):
                return
            if hello["rank"] not in self._hosts:
                return
            rank = int(hello["rank"])
            connection.settimeout(None)
            self._sockets.append(connection)
            with connection.makefile("rb") as lines:
                while line := lines.readline(_LINE):
                    self.receive(rank, _object(line))
        finally:
            self._hang_up(rank)
            with contextlib.suppress(OSError):  # unread data would turn the close into a reset
                connection.recv(1 << 16, socket.MSG_DONTWAIT)
            connection.close()
            self._room.release()

    def _tell(self) -> None:
        self.send()
        while not self._stop.wait(_EVERY):
            self.send()

    def send(self) -> None:
        """Send this rank's state to rank 0; rank 0 sends all states to all."""
        now = time.monotonic()
        if self._world.is_chief:
            with self._lock:
                table = {
                    rank: {"place": m.place, "words": m.words, "age": now - m.heard, "ended": m.ended}
                    for rank, m in self._members.items()
                }
            said: dict[str, Any] = {"table": {**table, 0: self._report()}}
            receivers = self._sockets[1:]
        else:
            said, receivers = self._report(), self._sockets
        data = json.dumps(said).encode() + b"\n"
        for one in receivers:
            with contextlib.suppress(OSError):  # a stopped rank reads nothing: what exceeds its buffer is lost
                if one.send(data, socket.MSG_DONTWAIT) < len(data):
                    one.shutdown(socket.SHUT_WR)  # nothing can follow a partial line

    def _join(self, chief: dict[str, Any]) -> None:
        """The other ranks: connect to rank 0, report once a second, receive the states of all."""
        for address in chief["addresses"]:
            try:
                connection = socket.create_connection((address, chief["port"]), timeout=3)
            except OSError:
                continue
            hello = {"token": chief["token"], "rank": self._world.rank}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            connection.settimeout(None)
            self._sockets.append(connection)
            self._run(self._tell)
            try:
                with connection.makefile("rb") as lines:
                    while line := lines.readline(_LINE):
                        for rank, said in _object(line)["table"].items():
                            if int(rank) != self._world.rank:
                                self.receive(int(rank), said)
            finally:
                self._hang_up(0)
            return


def _object(line: bytes) -> dict[str, Any]:
    """A JSON object from a line of any bytes. Raises ValueError if it is not one."""
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def first_object(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """The first line of a connection, at most 1000 bytes, with a deadline for the whole line."""
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        byte = connection.recv(1)  # nothing of the lines after it
        if not byte or len(line) == 1000 or time.monotonic() > deadline:
            raise ValueError("no line")
        line += byte
    return _object(line)


def interface_address(one_host: bool) -> str:
    """The address of this machine that the other ranks connect to, and the only one to listen on; "" if none."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if name := os.environ.get("HOROVOD_GLOO_IFACE", "").split(",")[0]:
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                found.append(socket.inet_ntoa(answer[20:24]))
        probe.connect((os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1"), 9))  # sends nothing
        found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found.append(socket.gethostbyname(os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname()))
    return next((one for one in found if one_host or not ipaddress.ip_address(one).is_loopback), "")


def _addresses() -> list[str]:
    """The addresses of this machine, most likely first."""
    found = [os.environ.get("HOROVOD_HOSTNAME", "")]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1"), 9))  # sends nothing
        found.append(probe.getsockname()[0])
    found += [socket.gethostname(), "127.0.0.1"]
    return list(dict.fromkeys(filter(None, found)))
