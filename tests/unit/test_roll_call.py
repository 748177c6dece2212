"""The ranks' talk beside the exchange, with threads for ranks."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from afm_ctr.distributed import SingleWorld
from afm_ctr.distributed import roll_call as module
from afm_ctr.distributed.roll_call import RollCall

SIZE, DEADLINE = 3, 60.0


class ThreadWorld(SingleWorld):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, desk: list[Any], meet: threading.Barrier) -> None:
        self.rank, self.size, self._desk, self._meet = rank, SIZE, desk, meet

    def allgather_object(self, obj: Any) -> list[Any]:
        self._desk[self.rank] = obj
        self._meet.wait(DEADLINE)
        found = list(self._desk)
        self._meet.wait(DEADLINE)
        return found

    def broadcast_object(self, obj: Any = None) -> Any:
        return self.allgather_object(obj)[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "_EVERY", 0.05)
    monkeypatch.setattr(module, "_SILENT", DEADLINE)
    desk, meet = [None] * SIZE, threading.Barrier(SIZE)
    made: dict[int, RollCall] = {}

    def make(rank: int) -> None:
        made[rank] = RollCall(ThreadWorld(rank, desk, meet), lambda: f"place.py:{min(rank, 1)}")

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    soon(lambda: all(len(call._members) >= SIZE - 1 for call in made.values()))
    yield made
    for call in made.values():
        call.close()


def soon(found: Any) -> None:
    deadline = time.monotonic() + DEADLINE
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(call: RollCall, part: str) -> bool:
    return part in (call._missing() or "")


def test_nothing_is_said_of_ranks_that_answer(calls: dict[int, RollCall]) -> None:
    assert all(call._missing() is None for call in calls.values())
    assert calls[0].explain(stuck=True) == "rank 0 at place.py:0, rank 1, 2 at place.py:1"
    assert calls[2].explain(stuck=True) == calls[0].explain(stuck=True)


@pytest.mark.parametrize("gone", [0, 2])
def test_a_rank_that_fails_says_why_before_it_goes(calls: dict[int, RollCall], gone: int) -> None:
    calls[gone].close("the disk is full")
    for rank in {0, 1, 2} - {gone}:
        soon(lambda rank=rank: said(calls[rank], f"rank {gone} on "))
        assert (calls[rank].explain() or "").endswith("failed: the disk is full")


@pytest.mark.parametrize("gone", [0, 2])
def test_a_rank_that_is_killed_drops_its_connection(calls: dict[int, RollCall], gone: int) -> None:
    calls[gone]._say_all = lambda: None  # type: ignore[method-assign]
    calls[gone].close()
    for rank in {0, 1, 2} - {gone}:
        soon(lambda rank=rank: said(calls[rank], "without a word: killed"))
        assert f"rank {gone} on " in (calls[rank].explain() or "")


@pytest.mark.parametrize("still", [0, 2])
def test_a_rank_that_is_stopped_falls_silent(
    calls: dict[int, RollCall], still: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls[still]._say_all = lambda: None  # type: ignore[method-assign]
    monkeypatch.setattr(module, "_SILENT", 1.5)
    soon(lambda: said(calls[1], f"rank {still} on "))
    assert "has not answered for" in (calls[1].explain(stuck=True) or "")


def test_while_rank_0_is_silent_nothing_is_held_against_the_others(
    calls: dict[int, RollCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls[0]._say_all = lambda: None  # type: ignore[method-assign]
    monkeypatch.setattr(module, "_SILENT", 1.5)
    soon(lambda: calls[1]._missing() is not None)
    assert "rank 0 on " in calls[1]._missing() and "rank 2 on " not in calls[1]._missing()  # type: ignore[operator]


def test_a_rank_may_go_before_it_has_said_anything(calls: dict[int, RollCall]) -> None:
    for one in calls.values():
        one._say_all = lambda: None  # type: ignore[method-assign]
    with calls[0]._lock:
        calls[0]._members.clear()
    calls[2].close()
    soon(lambda: said(calls[0], "rank 2 on "))
    assert "without a word: killed" in (calls[0].explain() or "")


def test_a_stranger_is_not_listened_to(calls: dict[int, RollCall]) -> None:
    import socket

    port = calls[0]._sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b'{"token": "guessed", "rank": 1}\n{"place": "", "words": "nonsense"}\n')
        assert stranger.recv(1) == b""  # hung up
    assert calls[0]._missing() is None


def test_a_single_process_has_nobody_to_ask() -> None:
    call = RollCall(SingleWorld(), lambda: "here")
    assert call.explain() is None and call.explain(stuck=True) is None
    call.close("done")
