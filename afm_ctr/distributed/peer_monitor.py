"""Who is still there: messages between the ranks, outside the exchange.

When an exchange fails or hangs, Horovod cannot say because of whom. Here every rank reports to rank 0 once a second
where it is, and rank 0 passes it on. A rank that is killed drops its connection, one that is stopped falls silent,
one that fails says why before it goes. Nothing is decided here: it is what the job's last words are made of.
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
_SILENT = 5.0  # seconds without a word: no rank is that busy, its thread of messages does nothing else
_PATIENCE = 4.0  # how long a failure waits for its explanation
_LINE = 1 << 20  # bytes: more than the table of thousands of ranks takes
_HELLO = 10.0  # seconds that a stranger has to say who it is
_SIOCGIFADDR = 0x8915  # linux/sockios.h


@dataclasses.dataclass
class _Member:
    """What is known of one rank. ``age`` counts from ``heard``, in seconds of this machine's clock."""

    host: str
    place: str = ""
    heard: float = 0.0
    ended: bool = False
    words: str = ""


class PeerMonitor:
    """Keeps track of the other ranks of a job; a single process has none to keep track of.

    All ranks make it together. Ranks that cannot be reached over TCP are left out of what it reports.

    Args:
        place: says where this rank is, in a few words.
    """

    def __init__(self, world: World, place: Callable[[], str]) -> None:
        self._world, self._place = world, place
        self._members: dict[int, _Member] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._words = ""
        self._sockets: list[socket.socket] = []
        self._room = threading.BoundedSemaphore(2 * world.size)  # connections; beyond it they are closed at once
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
        """Which rank is missing, in a few words; None if nothing is known against any.

        Args:
            stuck: name the places of all ranks if all of them answer. Else wait a little for an explanation to come.
        """
        deadline = time.monotonic() + (0 if stuck else _PATIENCE)
        while True:
            found = self.missing()
            if found or time.monotonic() >= deadline or self._world.size == 1:
                break
            time.sleep(0.1)
        return found or (self._places() if stuck else None)

    def close(self, words: str = "") -> None:
        """Leave, with a reason that the other ranks will give for the end of the job."""
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
        """What is known of ranks that failed, ended or have fallen silent, in one text; None: all answer."""
        now = time.monotonic()
        with self._lock:
            known = sorted(self._members.items())
            chief = self._members.get(0)
        # What is heard of the others comes through rank 0: while it is silent nothing can be said of them.
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

    # -- messages: JSON objects, one a line ------------------------------------------------------------------------

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        def quietly() -> None:
            # A connection that ends, or says nonsense.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
                work(*arguments)

        threading.Thread(target=quietly, name="afm-ctr-roll-call", daemon=True).start()

    def _report(self) -> dict[str, Any]:
        return {"place": self._place(), "words": self._words}

    def receive(self, rank: int, said: dict[str, Any]) -> None:
        """Note what a rank said of itself, or rank 0 of it."""
        place, words = str(said["place"]), str(said["words"])
        age, ended = float(said.get("age", 0.0)), bool(said.get("ended", False))
        with self._lock:
            member = self._members.setdefault(rank, _Member(self._hosts[rank]))
            member.place, member.words = place, words or member.words
            member.heard = time.monotonic() - age
            member.ended = ended

    def _hang_up(self, rank: int) -> None:
        with self._lock:
            if rank in self._hosts and not self._stop.is_set():  # it may be gone before it has said anything
                self._members.setdefault(rank, _Member(self._hosts[rank])).ended = True

    def _listen(self, listener: socket.socket, token: str) -> None:
        while not self._stop.is_set():
            connection, _ = listener.accept()
            if self._room.acquire(blocking=False):
                self._run(self._serve, connection, token)
            else:
                connection.close()

    def _serve(self, connection: socket.socket, token: str) -> None:
        """Rank 0: what one of the others says."""
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
            with contextlib.suppress(OSError):  # what is left unread would turn the end into a reset
                connection.recv(1 << 16, socket.MSG_DONTWAIT)
            connection.close()
            self._room.release()

    def _tell(self) -> None:
        self.send()
        while not self._stop.wait(_EVERY):
            self.send()

    def send(self) -> None:
        """Send this rank's state to rank 0, or as rank 0 everybody's to everybody."""
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
            with contextlib.suppress(OSError):  # a stopped rank reads nothing: what does not fit its buffer is lost
                if one.send(data, socket.MSG_DONTWAIT) < len(data):
                    one.shutdown(socket.SHUT_WR)  # nothing can follow half a line

    def _join(self, chief: dict[str, Any]) -> None:
        """The other ranks: find rank 0, speak once a second, hear of the rest."""
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
    """A JSON object from a line, whatever its bytes. Raises ValueError: it is none."""
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def first_object(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """The first line of a connection, at most 1000 bytes, which must come within a time as a whole."""
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        byte = connection.recv(1)  # and nothing of the lines after it
        if not byte or len(line) == 1000 or time.monotonic() > deadline:
            raise ValueError("no line")
        line += byte
    return _object(line)


def interface_address(one_host: bool) -> str:
    """The address of this machine that the other ranks connect to, the only one to listen at; "" if none is found."""
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
    """Where this machine may be reached, the likeliest first."""
    found = [os.environ.get("HOROVOD_HOSTNAME", "")]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1"), 9))  # sends nothing
        found.append(probe.getsockname()[0])
    found += [socket.gethostname(), "127.0.0.1"]
    return list(dict.fromkeys(filter(None, found)))
