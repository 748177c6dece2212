"""Elastic state and run without other processes, and the ranks' meeting against a small store."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_world import FakeWorld

from afm_ctr import distributed, optimizers
from afm_ctr.distributed import ElasticState, HostsChanged, RankRemoved, SingleWorld, rendezvous, run_elastic
from afm_ctr.distributed.state import training_state
from afm_ctr.errors import RunError, UserError
from afm_ctr.models import CTRModel

LOST = tf.errors.UnknownError(None, None, "HorovodAllreduce: Horovod has been shut down. This was caused by …")


class ElasticWorld(FakeWorld):
    """One rank that says its world is elastic; ``others`` speak of their state, ``theirs`` is that of rank 1."""

    def __init__(self) -> None:
        super().__init__(size=1, elastic=True)
        self.theirs: tuple[list[np.ndarray], bytes] | None = None

    def allgather_object(self, obj: Any) -> list[Any]:
        return [obj, *self.others] if isinstance(obj, tuple) else [obj] * (1 + len(self.others))

    def broadcast_variables(self, variables: Any, root: int = 0) -> None:
        if root:
            assert self.theirs is not None
            for variable, value in zip(variables, self.theirs[0], strict=True):
                variable.assign(value)

    def broadcast_object(self, obj: Any = None, root: int = 0) -> Any:
        return obj if root == 0 or self.theirs is None else self.theirs[1]


def small_model(world: distributed.World) -> keras.Model:
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1), keras.layers.Dropout(0.1)])
    model.compile(distributed.wrap_optimizer(keras.optimizers.Adam(0.1), world), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def values_of(model: keras.Model) -> list[np.ndarray]:
    return [np.array(variable) for variable in training_state(model).values()]


def one_step(state: ElasticState) -> None:
    variables = state.model.trainable_variables
    state.model.optimizer.apply([tf.ones_like(variable.value) for variable in variables], variables)
    state.model.layers[-1].seed_generator.next()


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def state() -> ElasticState:
    world = ElasticWorld()
    return ElasticState(small_model(world), world, commit_steps=3, step=0, seen=[])


def test_the_single_process_twin_keeps_nothing() -> None:
    world = SingleWorld()
    state = ElasticState(small_model(world), world, step=0)

    def function(given: ElasticState) -> str:
        given.begin()
        one_step(given)
        given.commit()
        return "done"

    assert run_elastic(function, state) == "done"
    assert not state.committed
    with pytest.raises(RuntimeError, match="do not change"):
        world.reset()


def test_restore_brings_back_weights_slots_seeds_and_values(state: ElasticState) -> None:
    state.begin()
    one_step(state)
    state.values["seen"].append(1)
    state.commit()
    kept = values_of(state.model)
    assert len(kept) >= 8  # kernel, bias, dropout's seed, iterations, learning rate, two slots of both
    one_step(state)
    state.values["seen"].append(2)
    assert any((one != other).any() for one, other in zip(values_of(state.model), kept, strict=True))
    state.restore()
    assert_equal(values_of(state.model), kept)
    assert state.values == {"step": 0, "seen": [1]}
    one_step(state)  # what is kept is not changed by steps after it was put back
    state.values["seen"].append(3)
    state.restore()
    assert_equal(values_of(state.model), kept)
    assert state.values == {"step": 0, "seen": [1]}


def test_commits_never_hold_a_variable_a_second_time(state: ElasticState, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(state.model.variables[0].value)
    plain = kind.read_value

    def refuse(variable: Any) -> Any:
        assert not variable.shape.rank, "a whole variable was read"
        return plain(variable)

    state.begin()
    monkeypatch.setattr("afm_ctr.distributed.state._CHUNK_BYTES", 4)  # one row of the kernel
    kept = values_of(state.model)
    one_step(state)
    with monkeypatch.context() as reading:
        reading.setattr(kind, "read_value", refuse)
        state.commit()
        state.restore()
    after = values_of(state.model)
    one_step(state)
    state.restore()
    assert_equal(values_of(state.model), after)
    assert any((one != other).any() for one, other in zip(after, kept, strict=True))


def test_commits_are_due_by_steps_or_by_time(state: ElasticState) -> None:
    state.begin()
    due = []
    for step in range(1, 8):
        state.count_step()
        if state.due:
            due.append(step)
            state.commit()
    assert due == [3, 6]
    for wrong in ({"commit_seconds": -1.0}, {"commit_steps": 0}):
        with pytest.raises(UserError, match="elastic commits"):
            ElasticState(state.model, state.world, **wrong)


@pytest.mark.parametrize(("cost", "last"), [(0.0, 8_000), (100.0, 16_000)])  # a commit of 100 s fits every 2000 s
def test_intervals_grow_until_commits_are_as_rare_as_asked_for(
    cost: float, last: int, state: ElasticState, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def broadcast(obj: Any) -> Any:  # a part of every commit
        nonlocal clock
        clock += cost
        return obj

    monkeypatch.setattr("afm_ctr.distributed.elastic.time", SimpleNamespace(monotonic=lambda: clock))
    monkeypatch.setattr(state.world, "broadcast_object", broadcast)
    timed = ElasticState(state.model, state.world, commit_seconds=1000.0)
    timed.begin()
    intervals = []
    for _ in range(9):
        steps = 0
        while not timed.due:
            timed.count_step()
            steps, clock = steps + 1, clock + 0.125
        intervals.append(steps)
        timed.commit()
    assert intervals == [1, 4, 16, 64, 256, 1024, 4096, last, last]


def steps_begun(state: ElasticState, steps: int, after: Callable[[ElasticState, int], None]) -> list[int]:
    """Train; ``after`` gets the state after each step, and how often the loop has begun. At which steps it began."""
    begun_at: list[int] = []

    def function(given: ElasticState) -> int:
        given.begin()
        begun_at.append(given.values["step"])
        while given.values["step"] < steps:
            one_step(given)
            given.values["step"] += 1
            given.count_step()
            after(given, len(begun_at))
        return given.values["step"]

    assert run_elastic(function, state) == steps
    return begun_at


def test_a_lost_rank_costs_what_came_after_the_commit(state: ElasticState) -> None:
    pytest.importorskip("horovod")

    def lose_twice(given: ElasticState, begun: int) -> None:
        if given.due:
            given.commit()
        if given.values["step"] == 5 and begun < 3:
            raise LOST

    assert steps_begun(state, 8, lose_twice) == [0, 3, 3]
    assert (state.world.resets, state.world.hung_up) == (2, 2)  # type: ignore[attr-defined]
    assert int(state.model.optimizer.iterations) == 8


def test_rows_of_a_sharded_table_are_copied_again_when_ranks_have_changed() -> None:
    """Before anything else is done; which is no progress that would let ranks be lost without end."""
    pytest.importorskip("horovod")
    world = ElasticWorld()

    def build() -> CTRModel:
        model = CTRModel("fm", {"factors": 2}, 9, 2, [(0, 1)], shard_over=world)
        model.compile(distributed.wrap_optimizer(optimizers.build("sgd"), world))
        model.optimizer.build(model.trainable_variables)
        return model

    state = ElasticState(build(), world, commit_steps=9, rebuild=build)
    commits, linear = [], []

    def lose(given: ElasticState) -> None:
        given.begin()
        commits.append((given.serial, list(given.copies.kept)))
        linear.append(given.model.table.columns["linear"].numpy())
        given.model.table.columns["linear"].assign_add(tf.ones([9, 1]))  # and is not committed
        raise LOST

    with pytest.raises(RunError, match="5 times in a row without a commit"):
        run_elastic(lose, state)
    assert commits == [(n, [n]) for n in range(1, 6)]
    assert not np.any(linear)


def test_changed_hosts_cost_nothing(state: ElasticState) -> None:
    pytest.importorskip("horovod")

    def change_hosts(given: ElasticState, begun: int) -> None:
        if given.values["step"] == 2:
            given.on_hosts_updated(0, None)
        given.commit()

    assert steps_begun(state, 5, change_hosts) == [0, 2]
    assert not state.keep()


def test_what_ends_a_run(state: ElasticState) -> None:
    pytest.importorskip("horovod")

    def lose(given: ElasticState) -> None:
        given.begin()
        raise LOST

    with pytest.raises(RunError, match="5 times in a row without a commit"):
        run_elastic(lose, state)

    def fail(given: ElasticState) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run_elastic(fail, state)

    def leave(given: ElasticState) -> None:
        raise HostsChanged

    def removed(neighbours: Any, lost: bool) -> None:
        assert not lost  # all ranks have agreed to leave
        raise RankRemoved

    state.world.reset = removed  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as end:
        run_elastic(leave, state)
    assert end.value.code == 0


def test_a_newcomer_takes_the_newest_commit(state: ElasticState) -> None:
    world: Any = state.world
    theirs = [np.full_like(value, 3) for value in values_of(state.model)]
    world.others = [(7, False, "elsewhere", 1), (8, False, "elsewhere", 2)]
    world.theirs = (theirs, pickle.dumps({"step": 12, "seen": [5]}))
    state.sync()
    assert state.committed
    assert_equal(values_of(state.model), theirs)
    assert state.values == {"step": 12, "seen": [5]}
    one_step(state)
    state.restore()
    assert_equal(values_of(state.model), theirs)
    # Everybody holds the same: nothing is sent.
    world.others, world.theirs = [(8, False, "elsewhere", 1)], None
    state.sync()


def test_a_torn_state_is_not_begun_with(state: ElasticState) -> None:
    world: Any = state.world
    world.others = [(0, True, "elsewhere", 1)]
    with pytest.raises(RunError, match="every rank that held the state"):
        state.sync()


class Store(ThreadingHTTPServer):
    """What the launcher keeps: keys, and an answer to those who ask for a rank."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kept: dict[str, bytes] = {}
        self.slot = b"1,2,0,1,1,2"
        self.ready = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        key = self.path[1:]
        if key.startswith("rank_and_size/"):
            self.server.ready.wait(60)
            found: bytes | None = self.server.slot
        else:
            found = self.server.kept.get(key)
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(found or b"")

    def do_PUT(self) -> None:
        self.server.kept[self.path[1:]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with Store() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
        for name, value in zip(names, (0, 1, 0, 1, 0, 1), strict=True):
            monkeypatch.setenv(f"HOROVOD_{name}", str(value))
        monkeypatch.setenv("HOROVOD_HOSTNAME", "here")
        monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
        monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", str(server.server_port))
        yield server
        server.ready.set()
        server.shutdown()
        thread.join()


def test_ranks_wait_for_each_other(store: Store) -> None:
    arrived: dict[int, bool] = {}

    def come(rank: int) -> None:
        arrived[rank] = rendezvous.all_here(rank, 3)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(3)]
    for thread in threads[:2]:
        thread.start()
    assert not arrived
    threads[2].start()
    for thread in threads:
        thread.join(60)
    assert arrived == {0: True, 1: True, 2: True}


def test_a_new_rank_is_asked_for_and_taken(store: Store) -> None:
    store.ready.set()
    store.kept["afm_ctr_here/0"] = b"here"
    rendezvous.reconnect()
    assert (os.environ["HOROVOD_RANK"], os.environ["HOROVOD_SIZE"], os.environ["HOROVOD_CROSS_SIZE"]) == (
        "1",
        "2",
        "2",
    )
    assert store.kept["afm_ctr_here/1"] == b"here"
    store.slot = b"-1,-1,-1,-1,-1,-1"
    with pytest.raises(RankRemoved):
        rendezvous.reconnect()


def test_who_does_not_come_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that broke as it started: the launcher is asked again, and says that there is one rank left."""
    monkeypatch.setattr(rendezvous, "_PATIENCE", 0.05)
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    store.slot = b"0,1,0,1,0,1"
    store.ready.set()
    rendezvous.arrive()
    assert os.environ["HOROVOD_SIZE"] == "1"
    # And who comes late finds that the others have left, and asks too.
    monkeypatch.setattr(rendezvous, "_PATIENCE", 60.0)
    store.kept["afm_ctr_here/0"] = b"left"
    assert not rendezvous.all_here(1, 2)
    assert store.kept["afm_ctr_here/1"] == b"left"


def test_ranks_that_do_not_change_wait_for_each_other_and_name_who_does_not_come(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_PATIENCE", 0.05)
    monkeypatch.setenv("HOROVOD_SIZE", "4")
    store.kept["afm_ctr_here/2"] = b"here"
    with pytest.raises(RunError, match=r"of 4 ranks 1, 3 did not come within 0 s: they ended as they started"):
        rendezvous.meet()
    monkeypatch.setattr(rendezvous, "_PATIENCE", 60.0)
    late = threading.Timer(0.1, lambda: store.kept.update({"afm_ctr_here/1": b"here", "afm_ctr_here/3": b"here"}))
    late.start()
    rendezvous.meet()
    late.join()
    assert store.kept["afm_ctr_here/all"] == b"here"
    monkeypatch.setenv("HOROVOD_RANK", "3")
    rendezvous.meet()  # rank 0 has seen all
    del store.kept["afm_ctr_here/all"], store.kept["afm_ctr_here/1"]
    monkeypatch.setattr(rendezvous, "_PATIENCE", 0.05)
    monkeypatch.setattr(rendezvous, "_OTHERS_SPEAK_AFTER", 0.05)
    with pytest.raises(RunError, match=r"of 4 ranks 1 did not come"):
        rendezvous.meet()
    monkeypatch.delenv("HOROVOD_GLOO_RENDEZVOUS_ADDR")  # another launcher, such as mpirun
    store.kept.clear()
    rendezvous.meet()


def test_a_rank_that_stands_still_is_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_STOPPED_AFTER", 0.0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        os.kill(other.pid, signal.SIGSTOP)
        while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        asking = threading.Thread(target=rendezvous.ask_for_rank, args=([other.pid],))
        asking.start()
        assert other.wait(60) == -signal.SIGKILL
        store.ready.set()
        asking.join(60)


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"\xff\xfe", b"1,2,x", b"9" * 70_000])
def test_an_answer_that_is_no_rank_ends_in_words(store: Store, answer: bytes) -> None:
    store.slot = answer
    store.ready.set()
    with pytest.raises(RunError, match=r"^the launcher's answer b'[^\n]{0,170}is not a rank"):
        rendezvous.ask_for_rank([])


def test_nobody_waits_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC_TIMEOUT", "0.1")
    with pytest.raises(RunError, match="did not meet again within 0 s"):
        rendezvous.reconnect()
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", "9")
    with pytest.raises(RunError, match="no longer answers"):
        rendezvous.reconnect()
