"""The meeting of a job's ranks: at its start, and in an elastic job whenever a rank was lost or hosts changed.

The launcher keeps a small HTTP store that is emptied before each meeting. When Horovod restarts, it asks there for a
new rank, and then waits for the others within Gloo's timeout; a failure of either aborts the process. So ranks ask
here, in Python, and start Horovod only once all of them have arrived: a new rank may take its time to load.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from afm_ctr.errors import RunError

ELASTIC = "HOROVOD_ELASTIC"
_SLOT = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")  # in the launcher's order
_PATIENCE = 60.0  # seconds to wait for ranks that the launcher has promised, before asking it again
_STOPPED_AFTER = 5.0
_OTHERS_SPEAK_AFTER = 5.0  # seconds later than rank 0: one line is enough
_TRIES = 20
_PAUSE = 0.25  # seconds between tries
_LARGEST = 1 << 16  # bytes of an answer

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RankRemoved(SystemExit):
    """This process is no longer part of the job: its host was removed. Uncaught, it ends the process with code 0."""

    def __init__(self) -> None:
        super().__init__(0)


def meet() -> None:
    """Wait until all ranks of a job that is not elastic have started, if the launcher keeps a store.

    Horovod would wait for Gloo's timeout and then abort the process.

    Raises:
        RunError: some were missing after a minute, or ``horovodrun --gloo-timeout-seconds`` if that is longer.
    """
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in os.environ:
        return
    rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
    allowed = max(_PATIENCE, float(os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS") or 0))
    deadline = time.monotonic() + allowed + (_OTHERS_SPEAK_AFTER if rank else 0)
    _put(f"afm_ctr_here/{rank}", b"here", round(allowed / _PAUSE))  # rank 0 may keep the store, and come later
    # Rank 0 polls for each of the others, and they only for its answer: the store gets 2 · ranks requests.
    for key in [f"afm_ctr_here/{other}" for other in range(1, size)] if rank == 0 else ["afm_ctr_here/all"]:
        pause = 0.01
        while _get(key) is None:
            if time.monotonic() > deadline:
                absent = [str(one) for one in range(size) if _get(f"afm_ctr_here/{one}") is None]
                raise RunError(
                    f"of {size} ranks {', '.join(absent[:8])}{' and more' if len(absent) > 8 else ''} did not come "
                    f"within {allowed:.0f} s: they ended as they started, which their own lines explain, or need "
                    "more time (horovodrun --gloo-timeout-seconds)"
                )
            time.sleep(pause)
            pause = min(_PAUSE, 1.5 * pause)
    if rank == 0:
        _put("afm_ctr_here/all", b"here")


def arrive() -> None:
    """Wait until all ranks that the launcher counts are here; from then on they may start Horovod.

    If one of them does not arrive (it crashed at its start), the launcher is asked for a new round without it; also
    if other ranks have run out of patience. Slow ranks are not lost by this: they ask as well.
    """
    while not all_here(int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])):
        ask_for_rank([])


def reconnect(neighbours: Sequence[int] = ()) -> None:
    """Get a new rank and wait for the others; sets ``HOROVOD_RANK``, ``HOROVOD_SIZE`` and the like.

    Args:
        neighbours: process ids of the ranks that shared this machine. A stopped one (SIGSTOP) would keep all others
            waiting forever, so it is killed.

    Raises:
        RankRemoved: this host is no longer part of the job.
        RunError: the launcher has ended, or a rank did not arrive within ``HOROVOD_ELASTIC_TIMEOUT`` (600 s).
    """
    ask_for_rank(neighbours)
    arrive()


def ask_for_rank(neighbours: Sequence[int]) -> None:
    """Report this rank to the launcher as ready; it answers when each rank of the last round is ready or dead."""
    key = f"rank_and_size/{os.environ['HOROVOD_HOSTNAME']}:{os.environ['HOROVOD_LOCAL_RANK']}"
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(_get(key, tries=1))  # a second request would count as a second rank
        except RunError as error:
            answer.append(error)

    thread = threading.Thread(target=ask, name="afm-ctr-meeting", daemon=True)
    thread.start()
    begun = time.monotonic()
    allowed = float(os.environ.get("HOROVOD_ELASTIC_TIMEOUT", "600"))
    while not answer:
        thread.join(0.25 if time.monotonic() - begun > 1 else 0.01)
        waited = time.monotonic() - begun
        if waited > allowed:
            raise RunError(
                f"the ranks did not meet again within {allowed:.0f} s (HOROVOD_ELASTIC_TIMEOUT): one of them neither "
                "answers nor ends, or there are fewer slots than --min-np; end it, and start the same command again"
            )
        if waited > _STOPPED_AFTER:
            _kill_stopped(neighbours)
    if isinstance(answer[0], RunError):
        raise answer[0]
    if answer[0] is None:
        raise RunError("the launcher of this job does not know elastic ranks: the job is not elastic")
    try:
        slot = [str(int(number)) for number in answer[0].decode().split(",")]
    except ValueError as error:
        raise RunError(
            f"the launcher's answer {answer[0][:40]!r} is not a rank: is another program at its port?"
        ) from error
    if int(slot[0]) < 0:
        raise RankRemoved
    os.environ.update({f"HOROVOD_{name}": value for name, value in zip(_SLOT, slot, strict=False)})


def all_here(rank: int, size: int) -> bool:
    """Announce this rank, and wait until all are here; False if one left, or did not arrive in time."""
    _put(f"afm_ctr_here/{rank}", b"here")
    deadline = time.monotonic() + _PATIENCE
    for other in range(size):
        pause = 0.01
        while (said := _get(f"afm_ctr_here/{other}")) != b"here":
            if said == b"left" or time.monotonic() > deadline:
                _put(f"afm_ctr_here/{rank}", b"left")
                return False
            time.sleep(pause)
            pause = min(0.25, 1.5 * pause)
    return True


def _kill_stopped(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                state = stat.read().rpartition(")")[2].split()[0]
            if state == "T":
                os.kill(pid, signal.SIGKILL)
                print(
                    f"afm-ctr: rank {os.environ['HOROVOD_RANK']}: process {pid}, another rank on this machine, "
                    "is stopped (SIGSTOP) and keeps the job waiting: killed",
                    file=sys.stderr,
                    flush=True,
                )
        except OSError:
            continue  # it has ended, or belongs to another user


def _get(key: str, tries: int = _TRIES) -> bytes | None:
    try:
        return _send(urllib.request.Request(_url(key)), tries)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise RunError(f"the launcher's store answers {error.code} to {key}") from error


def _put(key: str, value: bytes, tries: int = _TRIES) -> None:
    _send(urllib.request.Request(_url(key), data=value, method="PUT"), tries)


def _url(key: str) -> str:
    address, port = (os.environ[f"HOROVOD_GLOO_RENDEZVOUS_{part}"] for part in ("ADDR", "PORT"))
    return f"http://{address}:{port}/{key}"


def _send(request: urllib.request.Request, tries: int) -> bytes:
    while True:
        tries -= 1
        try:
            with _opener.open(request) as response:
                return bytes(response.read(_LARGEST))
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            if not tries:
                raise RunError(f"the launcher (horovodrun) no longer answers: {error}") from error
            time.sleep(_PAUSE)
