"""A table spread over ranks, as far as one process can see it; tests/parallel has the ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from fake_world import FakeWorld

from afm_ctr import optimizers
from afm_ctr.distributed import (
    DistributedError,
    DriftCheck,
    ShardedTable,
    SingleWorld,
    World,
    agreed_state,
    is_replicated,
    training_state,
)
from afm_ctr.embedding import EmbeddingTable
from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel

ROWS, SLOTS = 50, 3
COLUMNS, STDDEV = {"linear": 1, "vectors": 4}, {"vectors": 0.1}
PAIRS = [(0, 1), (0, 2), (1, 2)]


def table(world: World, rows: int = ROWS, **options: Any) -> ShardedTable:
    return ShardedTable(rows, COLUMNS, 7, STDDEV, world=world, **options)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_row_starts_the_same_wherever_it_lives(size: int) -> None:
    whole = EmbeddingTable(ROWS, COLUMNS, 7, STDDEV).columns["vectors"].numpy()
    for rank in range(size):
        part = table(FakeWorld(rank, size))
        ids = part.shards.ids(part.shards.start, part.shards.stop)
        kept = part.columns["vectors"].numpy()
        assert len(kept) == -(-ROWS // size)
        np.testing.assert_array_equal(kept[: len(ids)], whole[ids])
        assert not kept[len(ids) :].any()


def model(shard_over: World | None, optimizer: str = "adam") -> CTRModel:
    made = CTRModel(
        "afm",
        {"factors": 4, "attention_dropout": 0.2, "init_stddev": 0.1},
        feature_size=ROWS,
        num_slots=SLOTS,
        pairs=PAIRS,
        row_l2={"linear": 0.01, "vectors": 0.02},
        seed=3,
        mark_rows=True,
        shard_over=shard_over,
    )
    made.compile(optimizer=optimizers.build(optimizer, learning_rate=0.05))
    made.optimizer.build(made.trainable_variables)
    return made


def test_a_rank_marks_its_first_row() -> None:
    """Row 0 of a whole table is that of absent slots; of another rank's part it is a row like any other."""
    part = table(FakeWorld(1, 2), mark_rows=True)
    part.mark(tf.IndexedSlices(tf.ones([2, 1]), tf.constant([0, 3], tf.int64)), 5)
    assert part.last_seen is not None
    np.testing.assert_array_equal(part.last_seen.numpy()[:5], [5, 0, 0, 5, 0])


@pytest.mark.parametrize("optimizer", optimizers.names())
def test_one_rank_takes_the_steps_of_the_whole_table_bit_by_bit(optimizer: str) -> None:
    whole, part = model(None, optimizer), model(SingleWorld(), optimizer)
    rng = np.random.default_rng(0)
    steps = [tf.function(one.train_step, autograph=False) for one in (whole, part)]
    for number in range(8):
        batch = {
            "feature_ids": tf.constant(rng.integers(0, ROWS, [16, SLOTS])),
            "feature_vals": tf.ones([16, SLOTS]),
            "label": tf.constant(rng.integers(0, 2, 16).astype(np.float32)),
            "weight": tf.fill([16], float(number != 3)),  # a step that changes nothing
        }
        losses = [float(step(batch)["loss"]) for step in steps]
        assert losses[0] == losses[1]
    ids = part.table.shards.ids(0, ROWS)  # type: ignore[attr-defined]
    for name, column in whole.table.columns.items():
        ours = part.table.columns[name]
        pairs = [(column, ours)]
        for slot, kept in whole.optimizer.slots_of(column).items():
            pairs.append((kept, part.optimizer.slots_of(ours)[slot]))
        for one, other in pairs:
            np.testing.assert_array_equal(one.numpy()[ids], other.numpy())
    np.testing.assert_array_equal(whole.table.last_seen.numpy()[ids], part.table.last_seen.numpy())
    assert np.abs(part.table.columns["linear"].numpy()).max() > 0.005
    assert not part.table.columns["vectors"].numpy()[ids == 0].any()
    scored = [one.predict_step(batch)["logit"].numpy() for one in (whole, part)]
    np.testing.assert_array_equal(*scored)


def test_an_id_outside_is_the_users_mistake() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"outside \[0, 50\)"):
        table(SingleWorld()).lookup(tf.constant([[1, ROWS]], tf.int64))


def test_no_ids_and_absent_slots_alone() -> None:
    for ids in (np.zeros([0, SLOTS], np.int64), np.zeros([2, SLOTS], np.int64)):
        rows = table(SingleWorld()).read(tf.constant(ids))
        assert rows["vectors"].shape == (*ids.shape, 4) and not rows["vectors"].numpy().any()


def test_what_ranks_give_each_other_leaves_its_rows_and_slots_out() -> None:
    part = model(SingleWorld())
    mine = {*map(id, part.table.variables)}
    for column in part.table.columns.values():
        mine |= {id(slot) for slot in part.optimizer.slots_of(column).values()}
    assert len(mine) == 7 and not any(is_replicated(v) for v in part.optimizer.variables if id(v) in mine)
    for state in (training_state(part), agreed_state(part)):
        assert not mine & {id(variable) for variable in state.values()}
        assert any(name.endswith("bias") for name in state)


def test_an_optimizer_that_steps_whole_tables_is_refused() -> None:
    part = model(SingleWorld())
    with pytest.raises(UserError, match=r"a sharded table needs .*adagrad, adam, ftrl, rowwise_adagrad, sgd"):
        part.compile(optimizer=tf.keras.optimizers.RMSprop())
    with pytest.raises(ValueError, match="placement must be 'sharded'"):
        ShardedTable(ROWS, COLUMNS, 7, world=SingleWorld(), placement="replicated")


class OtherOwners(FakeWorld):
    """Whose second rank holds the same variables, and counts rows in another way."""

    def allgather_object(self, obj: Any) -> list[Any]:
        theirs = obj.copy()
        theirs[-1] += 1
        return [obj, theirs]


def test_the_drift_check_compares_who_owns_what_and_no_rows() -> None:
    part = model(SingleWorld())
    check = DriftCheck(OtherOwners())
    check.set_model(part)
    with pytest.raises(DistributedError, match=r"ids/last_seen \(who owns its rows\) has drifted apart"):
        check.check()
    same = DriftCheck(FakeWorld())
    same.set_model(part)
    same.check()
