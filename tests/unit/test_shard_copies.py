"""Rows of a sharded table in two ranks' memory, and back from there; the ranks are threads."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from fake_world import Meeting, ThreadWorld, together
from test_sharded_checkpoint import ROWS, build, worn, write_whole

from afm_ctr.distributed.shard_copies import ShardCopies, ring_distance
from afm_ctr.distributed.state import sharded_variables
from afm_ctr.models import CTRModel
from afm_ctr.training.checkpoint import Checkpoint

Rank = tuple[ThreadWorld, ShardCopies]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_whole(worn(build()), tmp_path_factory.mktemp("source") / "whole")


@pytest.fixture
def kept(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> list[Rank]:
    """Of three ranks, after commits 1 and 2, of which the second is not settled and holds other numbers."""
    monkeypatch.setattr("afm_ctr.distributed.state._CHUNK_BYTES", 100)  # several blocks
    meeting = Meeting(3)
    worlds = [ThreadWorld(rank, meeting) for rank in range(3)]
    copies = [ShardCopies(world) for world in worlds]
    models = [build(rank, 3) for rank in range(3)]

    def commit(rank: int) -> None:
        copies[rank].restore(0, models[rank])
        source.restore(models[rank])
        copies[rank].make(1, models[rank])
        copies[rank].keep_only(1)
        for variable in sharded_variables(models[rank]):
            variable.assign(tf.zeros_like(variable.value))
        copies[rank].make(2, models[rank])

    together(commit, 3)
    return list(zip(worlds, copies, strict=True))


def met(kept: list[Rank], left: list[int | None]) -> list[tuple[ShardCopies, CTRModel]]:
    """The ranks that there are now: who they were, or None for a newcomer."""
    meeting, found = Meeting(len(left)), []
    for rank, before in enumerate(left):
        if before is None:
            copies = ShardCopies(ThreadWorld(rank, meeting))
        else:
            world, copies = kept[before]
            world.join(rank, meeting)
        found.append((copies, build(rank, len(left))))
    return found


@pytest.mark.parametrize("left", [[0, 2], [1, 2], [0, 1, 2], [2, 0, 1, None], [None, 0, 1]])
def test_every_rank_gets_the_rows_that_it_owns_now(
    left: list[int | None], kept: list[Rank], source: Checkpoint
) -> None:
    ranks = met(kept, left)
    assert together(lambda rank: ranks[rank][0].restore(1, ranks[rank][1]), len(left)) == [True] * len(left)
    for rank, (_, model) in enumerate(ranks):
        expected = build(rank, len(left))
        source.restore(expected)
        found = sharded_variables(model)
        assert len(found) == 7 and sum(variable.shards.stop - variable.shards.start for variable in found)
        for variable, other in zip(found, sharded_variables(expected), strict=True):
            np.testing.assert_array_equal(variable.numpy(), other.numpy(), err_msg=variable.path)


def test_rows_that_nobody_holds_are_not_made_up(kept: list[Rank]) -> None:
    ((copies, model),) = met(kept, [0])
    assert copies.restore(1, model) is False
    assert copies.restore(0, model) is True


def test_the_newest_commit_counts(kept: list[Rank]) -> None:
    ranks = met(kept, [1, 0])
    assert together(lambda rank: ranks[rank][0].restore(2, ranks[rank][1]), 2) == [True, True]
    assert not any(np.any(variable.numpy()) for _, model in ranks for variable in sharded_variables(model))
    assert ranks[0][1].table.shards.rows == ROWS


@pytest.mark.parametrize(
    ("hosts", "distance"),
    [("a", 0), ("aa", 1), ("ab", 1), ("aabb", 2), ("aaabb", 2), ("abc", 1), ("aabbcc", 2), ("aaaa", 1)],
)
def test_rows_are_held_on_another_host(hosts: str, distance: int) -> None:
    assert ring_distance(list(hosts)) == distance
