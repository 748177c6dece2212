"""How errors are told apart: the user's mistakes, and the end of another rank."""

from __future__ import annotations

import subprocess
import sys
import weakref

import pytest

from afm_ctr.errors import RunError, UserError, find_lost_rank, find_user_error, in_graph, release

SHUT_DOWN = (
    "{{function_node __wrapped__HorovodAllgather}} Horovod has been shut down. This was caused by an exception on "
    "one of the ranks or an attempt to allreduce a tensor after one of the ranks finished. [Op:HorovodAllgather]"
)


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def test_a_chain_that_leads_back_to_its_start_ends() -> None:
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert find_user_error(first) is None
    assert find_lost_rank(first) is None


def test_a_mistake_is_found_behind_what_wraps_it() -> None:
    mistake = UserError("the file is damaged")
    assert find_user_error(caused(RuntimeError("outer"), caused(ValueError("inner"), mistake))) is mistake
    found = find_user_error(RuntimeError(f"Graph execution error:\n {in_graph('an id is too large')}\n\t [[node]]"))
    assert str(found) == "an id is too large"
    found = find_user_error(RuntimeError(f"assertion failed: [{in_graph('an id is outside [0, 6)')}]\n\t [[node]]"))
    assert str(found) == "an id is outside [0, 6)"
    assert find_user_error(RuntimeError("a bug")) is None


@pytest.mark.parametrize("text", [SHUT_DOWN, "[../gloo/transport/tcp/pair.cc:598] Connection closed by peer"])
def test_the_end_of_another_rank_is_one_line(text: str) -> None:
    found = find_lost_rank(caused(RuntimeError("outer"), ValueError(text)))
    assert isinstance(found, RunError)
    assert "another rank of the job has ended" in str(found) and "\n" not in str(found)
    assert find_lost_rank(ValueError("HorovodAllreduce: mismatched shapes")) is None
    code = (
        "import sys; sys.argv = ['afm-ctr', 'doctor']\n"
        "from afm_ctr import doctor; from afm_ctr.cli import main\n"
        f"def examine(): raise ValueError({text!r})\n"
        "doctor.examine = examine; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"afm-ctr: {found}\n")


class Held:
    """Something that a frame holds."""


def fails() -> None:
    held = Held()
    alive.append(weakref.ref(held))
    raise ValueError("inner")


def fails_below() -> None:
    held = Held()
    alive.append(weakref.ref(held))
    fails()


alive: list[weakref.ref[Held]] = []


@pytest.mark.parametrize("cut", [0, 2], ids=["whole", "outer frames cut out"])
def test_what_the_frames_of_a_told_exception_hold_is_freed(cut: int) -> None:
    alive.clear()
    try:
        fails_below()
    except ValueError as inner:
        frames = inner.__traceback__
        for _ in range(cut):
            frames = frames.tb_next  # type: ignore[union-attr]
        told = caused(UserError("outer"), inner.with_traceback(frames))
        del frames
    assert [held() is not None for held in alive] == [True, True]
    release(told)
    assert [held() for held in alive] == [None, None]
