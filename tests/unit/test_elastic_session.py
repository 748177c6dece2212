"""What an elastic session keeps, when, and in which order with its checkpoints; the training itself is not run."""

from __future__ import annotations

import types
from typing import Any

import pytest
from fake_world import FakeWorld

from afm_ctr.distributed import BroadcastVariables, HostsChanged
from afm_ctr.training.checkpoint import Position
from afm_ctr.training.trainer import ElasticTrainer, Trainer


class Kept:
    """Stands for the elastic state: notes what it is asked for, and what it would have kept."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"run": None, "speed": None}
        self.calls: list[tuple[str, Any]] = []
        self.due = self.changed = False

    def note(self, name: str) -> None:
        self.calls.append((name, self.values["run"]))

    def begin(self) -> None:
        self.note("begin")

    def commit(self) -> None:
        self.note("commit")

    def keep(self) -> bool:
        self.note("keep")
        return self.changed

    def count_step(self) -> None:
        self.note("count")


def session(monkeypatch: pytest.MonkeyPatch, elastic: bool = True) -> tuple[Any, Kept]:
    kept = Kept()

    def begun(self: Any, world: FakeWorld) -> None:
        self.world, self.position, self.speed = world, Position(), "speed 0"
        self.config, self.reader = None, types.SimpleNamespace(steps_per_epoch=4)

    monkeypatch.setattr(Trainer, "__init__", begun)
    monkeypatch.setattr(Trainer, "save", lambda self: kept.note("checkpoint"))
    monkeypatch.setattr(Trainer, "fit", lambda self: kept.note("fit"))
    monkeypatch.setattr(Trainer, "state", lambda self: (self.position, "state", "sums"))
    monkeypatch.setattr(Trainer, "ended", None)
    return ElasticTrainer(kept, world=FakeWorld(size=1, elastic=elastic)), kept  # type: ignore[arg-type]


def run_at(position: Position) -> Any:
    return position, "state", "sums"


def test_what_begins_is_handed_over_first(monkeypatch: pytest.MonkeyPatch) -> None:
    one, kept = session(monkeypatch)
    one.position = Position(1, 0, 4)
    one.begin()
    assert kept.calls == [("begin", run_at(Position(1, 0, 4)))]
    assert kept.values["speed"] == "speed 0"


def test_the_end_of_an_epoch_is_kept_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    one, kept = session(monkeypatch)
    one.position, one.speed = Position(1, 0, 4), "speed 1"
    one.save()
    assert kept.calls == [("keep", run_at(Position(1, 0, 4))), ("checkpoint", run_at(Position(1, 0, 4)))]
    assert kept.values["speed"] == "speed 1"


def test_a_checkpoint_within_an_epoch_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    one, kept = session(monkeypatch)
    one.position = Position(0, 2, 2)
    one.save()
    assert kept.calls == [("checkpoint", None)]


@pytest.mark.parametrize(("due", "step", "committed"), [(True, 3, True), (False, 3, False), (True, 4, False)])
def test_a_commit_that_is_due_holds_the_step_that_is_done(
    due: bool, step: int, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of an epoch commits by itself, when its figures are there."""
    one, kept = session(monkeypatch)
    one.position, one.speed, kept.due = Position(0, step, step), "speed 3", due
    one.step_done()
    assert kept.calls == [("count", None), *([("commit", run_at(one.position))] if committed else [])]
    assert kept.values["speed"] == ("speed 3" if committed else None)


def test_a_rank_that_comes_back_takes_up_the_commit_and_writes_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one, kept = session(monkeypatch)
    taken: list[Any] = []
    monkeypatch.setattr(Trainer, "restore", lambda self, *run: taken.append(run))
    kept.values.update(run=run_at(Position(0, 2, 2)), speed="speed 2")
    one.resume()
    assert taken == [run_at(Position(0, 2, 2))]
    assert one.speed == "speed 2"
    assert [name for name, _ in kept.calls] == ["checkpoint"], "a commit would be of the same state again"


@pytest.mark.parametrize("ended", [None, "epochs"])
def test_changed_hosts_end_a_fit_that_is_not_the_last(ended: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    one, kept = session(monkeypatch)
    one.fit()
    kept.changed = True
    one.save()
    monkeypatch.setattr(Trainer, "ended", ended)
    if ended is None:
        with pytest.raises(HostsChanged):
            one.fit()
    else:
        one.fit()
    assert [name for name, _ in kept.calls] == ["fit", "keep", "checkpoint", "fit"]


def test_where_ranks_cannot_change_it_is_a_plain_session(monkeypatch: pytest.MonkeyPatch) -> None:
    one, kept = session(monkeypatch, elastic=False)
    one.begin()
    one.save()
    assert kept.calls == [("checkpoint", None)]


@pytest.mark.parametrize("elastic", [False, True])
def test_the_step_is_counted_after_all_other_callbacks(elastic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All elastic ranks hold the same variables already: nothing is broadcast."""
    one, kept = session(monkeypatch, elastic)
    others = [BroadcastVariables(one.world), one]
    monkeypatch.setattr(Trainer, "callbacks", lambda self: list(others))
    chosen = one.callbacks()
    assert chosen[: -1 if elastic else None] == (others[1:] if elastic else others)
    if elastic:
        chosen[-1].on_train_batch_end(0)
        assert kept.calls == [("count", None)]
