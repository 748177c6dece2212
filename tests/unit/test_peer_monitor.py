"""The ranks' messages outside the exchange, with threads for ranks."""

from __future__ import annotations

import json
import random
import select
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from fake_world import Meeting, ThreadWorld, together

from afm_ctr.distributed import SingleWorld
from afm_ctr.distributed import peer_monitor as module
from afm_ctr.distributed.peer_monitor import PeerMonitor

SIZE, DEADLINE = 3, 60.0
PLACES = "rank 0 at place.py:0, rank 1, 2 at place.py:1"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "_EVERY", 0.05)
    monkeypatch.setattr(module, "_SILENT", DEADLINE)
    meeting = Meeting(SIZE)

    def make(rank: int) -> PeerMonitor:
        return PeerMonitor(ThreadWorld(rank, meeting), lambda: f"place.py:{min(rank, 1)}")

    made = dict(enumerate(together(make, SIZE)))
    soon(lambda: all(call.explain(stuck=True) == PLACES for call in made.values()))
    yield made
    for call in made.values():
        call.close()


def soon(found: Any) -> None:
    deadline = time.monotonic() + DEADLINE
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pass_over(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the monitors' clock forward."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + seconds, sleep=time.sleep)
    monkeypatch.setattr(module, "time", clock)


def said(call: PeerMonitor, part: str) -> bool:
    return part in (call.missing() or "")


def test_nothing_is_said_of_ranks_that_answer(calls: dict[int, PeerMonitor]) -> None:
    assert all(call.missing() is None for call in calls.values())
    assert calls[0].explain(stuck=True) == PLACES and calls[2].explain(stuck=True) == PLACES


@pytest.mark.parametrize("gone", [0, 2])
def test_a_rank_that_fails_says_why_before_it_goes(calls: dict[int, PeerMonitor], gone: int) -> None:
    calls[gone].close("the disk is full")
    for rank in {0, 1, 2} - {gone}:
        soon(lambda rank=rank: said(calls[rank], f"rank {gone} on "))
        assert (calls[rank].explain() or "").endswith("failed: the disk is full")


@pytest.mark.parametrize("gone", [0, 2])
def test_a_rank_that_is_killed_drops_its_connection(calls: dict[int, PeerMonitor], gone: int) -> None:
    calls[gone].send = lambda: None  # type: ignore[method-assign]
    calls[gone].close()
    for rank in {0, 1, 2} - {gone}:
        soon(lambda rank=rank: said(calls[rank], "without a word: killed"))
        assert f"rank {gone} on " in (calls[rank].explain() or "")


@pytest.mark.parametrize("still", [0, 2])
def test_a_rank_that_is_stopped_falls_silent(
    calls: dict[int, PeerMonitor], still: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls[still].send = lambda: None  # type: ignore[method-assign]
    pass_over(DEADLINE + 1, monkeypatch)
    soon(lambda: said(calls[1], f"rank {still} on ") and not said(calls[1], f"rank {2 - still} on "))
    assert "has not answered for" in (calls[1].explain(stuck=True) or "")


def test_while_rank_0_is_silent_nothing_is_held_against_the_others(
    calls: dict[int, PeerMonitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls[0].send = lambda: None  # type: ignore[method-assign]
    pass_over(DEADLINE + 1, monkeypatch)
    soon(lambda: calls[1].missing() is not None)
    assert "rank 0 on " in calls[1].missing() and "rank 2 on " not in calls[1].missing()  # type: ignore[operator]


def test_a_rank_may_go_before_it_has_said_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeerMonitor, "send", lambda monitor: None)
    meeting = Meeting(SIZE)
    silent = together(lambda rank: PeerMonitor(ThreadWorld(rank, meeting), lambda: ""), SIZE)

    def gone() -> bool:
        silent[2].close()  # nothing happens before it has joined
        return said(silent[0], "rank 2 on ")

    soon(gone)
    assert "without a word: killed" in (silent[0].explain() or "")
    for one in silent:
        one.close()


def test_a_stranger_is_not_listened_to(calls: dict[int, PeerMonitor]) -> None:
    with socket.create_connection(chief_contact(calls)[0]) as stranger:
        stranger.sendall(b'{"token": "guessed", "rank": 1}\n{"place": "", "words": "nonsense"}\n')
        assert stranger.recv(1) == b""  # hung up
    assert calls[0].missing() is None


def test_a_single_process_has_nobody_to_ask() -> None:
    call = PeerMonitor(SingleWorld(), lambda: "here")
    assert call.explain() is None and call.explain(stuck=True) is None
    call.close("done")


def chief_contact(calls: dict[int, PeerMonitor]) -> tuple[tuple[str, int], str]:
    """Address and token of rank 0, as it announced them."""
    contact = calls[0].contact
    return (contact["addresses"][0], contact["port"]), contact["token"]


def nonsense(token: str) -> list[bytes]:
    rng = random.Random(7)
    hello = json.dumps({"token": token, "rank": 1}).encode()
    lines = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(40)]
    lines += [
        b"",
        b"\n",
        b"[]\n",
        b"null\n",
        b"1e999\n",
        b"[" * 900 + b"\n",
        b"{" * 5000,
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n",
    ]
    lines += [json.dumps({"token": "\ud800é", "rank": 1}).encode() + b"\n", b'{"token": 3}\n', hello[:-1]]
    ranks: list[Any] = [-1, 0.5, 99, None, [], {}, "1", 1e400, 10**40]
    lines += [json.dumps({"token": token, "rank": rank}).encode() + b"\n" for rank in ranks]
    messages = [
        b"[]",
        b'{"place": 1}',
        b'{"place": "x", "words": "", "age": "y"}',
        b"[" * 100_000,
        rng.randbytes(500),
        b"x" * 3_000_000,
    ]
    lines += [hello + b"\n" + said + b"\n" for said in messages]
    return lines


def test_no_bytes_end_the_messages(calls: dict[int, PeerMonitor], monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    address, token = chief_contact(calls)
    assert address[0] == "127.0.0.1"  # no other interface listens
    for line in nonsense(token):
        with socket.create_connection(address, timeout=DEADLINE) as stranger:
            try:
                stranger.sendall(line)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(1 << 16):
                    pass
            except OSError:
                pass  # it was hung up on
    assert not failed
    heard, hear = list[str](), calls[0].receive  # rank 1 itself says another place many times a second

    def noted(rank: int, said: dict[str, Any]) -> None:
        heard.append(said["place"])
        hear(rank, said)

    monkeypatch.setattr(calls[0], "receive", noted)
    with socket.create_connection(address, timeout=DEADLINE) as friend:  # who knows the token is still heard
        said = {"place": "a place of its own", "words": ""}
        friend.sendall(b"".join(json.dumps(o).encode() + b"\n" for o in ({"token": token, "rank": 1}, said)))
        soon(lambda: "a place of its own" in heard)


def test_strangers_are_turned_away_when_there_are_many(calls: dict[int, PeerMonitor]) -> None:
    address, _ = chief_contact(calls)
    strangers = [socket.create_connection(address, timeout=DEADLINE) for _ in range(2 * SIZE + 3)]

    def heard() -> list[socket.socket]:
        return select.select(strangers, [], [], 0)[0]

    soon(lambda: len(heard()) >= 3)
    assert all(stranger.recv(1) == b"" for stranger in heard())
    for stranger in strangers:
        stranger.close()
    assert calls[0].missing() is None


def test_a_stranger_has_a_time_for_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b'{"token"')
        with pytest.raises((ValueError, TimeoutError)):
            module.first_object(here, 0.05)


@pytest.mark.parametrize(
    ("env", "alone", "found"),
    [
        ({"HOROVOD_GLOO_IFACE": "lo"}, True, "127.0.0.1"),
        ({"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1"}, True, "127.0.0.1"),
        ({"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_HOSTNAME": "127.0.0.1"}, False, ""),
        ({"HOROVOD_GLOO_IFACE": "no-such-one", "HOROVOD_HOSTNAME": "203.0.113.7"}, False, "203.0.113.7"),
    ],
)
def test_the_interface_that_is_listened_at(
    env: dict[str, str], alone: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOROVOD_GLOO_IFACE", "HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert module.interface_address(alone) == found
