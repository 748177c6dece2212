"""Checkpoints of sharded tables: each rank's rows in one folder, read by any number of ranks and in either placement.

The ranks here take turns in one process.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_world import FakeWorld

from afm_ctr import optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError
from afm_ctr.io.files import new_folder
from afm_ctr.models import CTRModel
from afm_ctr.optimizers.average import Average
from afm_ctr.training.checkpoint import Checkpoint, DamagedCheckpoint, Position
from afm_ctr.training.checkpoint_manager import CheckpointManager
from afm_ctr.training.expiry import expire
from afm_ctr.training.model_state import split_variables
from afm_ctr.training.snapshot import Snapshot, own_rows, write_columns
from afm_ctr.training.stored_table import StoredTable

ROWS, AT = 101, Position(0, 3, 3)


def build(
    rank: int = 0, ranks: int | None = None, rows: int = ROWS, average: float | None = None, optimizer: str = "adam"
) -> CTRModel:
    """The part of one rank; ``ranks`` None: the whole table."""
    share = None if ranks is None else FakeWorld(rank, ranks) if ranks > 1 else SingleWorld()
    options = {"factors": 3, "init_stddev": 0.1}
    model = CTRModel("fm", options, rows, 2, [(0, 1)], seed=3, mark_rows=True, shard_over=share)
    model.compile(optimizer=wrap_optimizer(optimizers.build(optimizer, average=average), SingleWorld()))
    model.optimizer.build(model.trainable_variables)
    return model


def worn(model: CTRModel) -> CTRModel:
    """With numbers of its own everywhere."""
    rng = np.random.default_rng(5)
    for column in split_variables(model)[1]:
        shape = tuple(column.variable.shape)
        marks = column.key == "last_seen"
        column.variable.assign(rng.integers(0, 9, shape) if marks else rng.normal(size=shape).astype(np.float32))
    model.table.last_seen.assign(np.r_[0, model.table.last_seen.numpy()[1:]])
    model.bias.assign(0.25)
    return model


def write_whole(model: CTRModel, folder: Path) -> Checkpoint:
    return Snapshot.take(model, AT, schema_id="s", state={}, rows_per_file=40).write(folder)


def reshard(source: Checkpoint, ranks: int, folder: Path, **options: Any) -> Checkpoint:
    """Read by so many ranks, one by one, and written by them."""
    parts = []
    with new_folder(folder) as temporary:
        for rank in range(ranks):
            model = build(rank, ranks, **options)
            source.restore(model)
            parts.append(write_columns(temporary, own_rows(model, 17), AT, lambda: None))
        Snapshot.take(model, AT, schema_id="s", state={}).fill(temporary, lambda: None, parts)
    return Checkpoint.open(folder)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("optimizer, columns", [("adam", 7), ("rowwise_adagrad", 5)])
def test_three_ranks_two_one_and_the_whole_table_and_back_are_the_same_bits(
    optimizer: str, columns: int, tmp_path: Path
) -> None:
    first = write_whole(worn(build(optimizer=optimizer)), tmp_path / "whole")
    assert not first.sharded and first.manifest["format_version"] == 2
    found, kept = first, {}
    for number, ranks in enumerate([3, 2, 1, 3]):
        found = reshard(found, ranks, tmp_path / f"{number}", optimizer=optimizer)
        assert found.sharded and found.manifest["format_version"] == 3
        kept[number] = digests(found.folder)
    assert kept[0] == kept[3]
    again = build(optimizer=optimizer)
    found.restore(again)
    write_whole(again, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")
    assert len(digests(tmp_path / "again")) == 2 + columns * 3


@pytest.mark.parametrize("ranks", [None, 3])
def test_averages_are_read_of_a_sharded_checkpoint_too(ranks: int | None, tmp_path: Path) -> None:
    average = Average(0.9)
    trained = worn(build(average=0.9))
    trained.optimizer.iterations.assign(12)
    source = write_whole(trained, tmp_path / "whole")
    found = source if ranks is None else reshard(source, ranks, tmp_path / "ranks", average=0.9)
    model = build(rows=ROWS + 5)
    found.restore(model, optimizer=False)
    found.restore_averages(model, average)
    for name, column in trained.table.columns.items():
        kept = trained.optimizer.slots_of(column)["average"].numpy()
        expected = column.numpy() + average.scale(12) * kept
        np.testing.assert_allclose(model.table.columns[name].numpy()[:ROWS], expected, rtol=1e-6)
        assert np.abs(kept).max() > 1
    ids = tf.constant(np.random.default_rng(1).integers(0, ROWS + 5, [9, 4]))
    kind = functools.partial(StoredTable, checkpoint=found, average=average)
    options = {"factors": 3, "init_stddev": 0.1}
    stored = CTRModel("fm", options, ROWS + 5, 2, [(0, 1)], seed=3, table_kind=kind).table.read(ids)
    for name, rows in model.table.read(ids).items():
        np.testing.assert_array_equal(stored[name], rows)
    slot = trained.optimizer.slots_of(trained.bias)["average"]
    assert float(model.bias) == pytest.approx(0.25 + average.scale(12) * float(slot))
    for rank in range(3):  # and by ranks that share the table
        part = build(rank, 3)
        found.restore(part, optimizer=False)
        found.restore_averages(part, average)
        ids = part.table.stored_ids(0, part.table.local_rows)
        vectors = part.table.columns["vectors"].numpy()[: len(ids)]
        np.testing.assert_array_equal(vectors[ids < ROWS], model.table.columns["vectors"].numpy()[ids[ids < ROWS]])


def test_each_rank_stores_its_share_and_no_more(tmp_path: Path) -> None:
    source = write_whole(worn(build()), tmp_path / "whole")
    reshard(source, 3, tmp_path / "three")
    files = {path.name: np.load(path) for path in (tmp_path / "three").rglob("mixed-*.vectors.npy")}
    assert sorted(files) == sorted(
        f"mixed-{a}-{b}.vectors.npy" for a, b in [(0, 17), (17, 34), (34, 51), (51, 68), (68, 85), (85, 101)]
    )
    assert sum(map(len, files.values())) == ROWS


def test_a_table_that_has_grown_keeps_the_new_rows_initial_values(tmp_path: Path) -> None:
    source = reshard(write_whole(worn(build()), tmp_path / "whole"), 2, tmp_path / "two")
    old, fresh = build(), build(rows=ROWS + 60)
    source.restore(old)
    for rank in range(3):
        grown = build(rank, 3, ROWS + 60)
        source.restore(grown)
        ids = grown.table.stored_ids(0, grown.table.local_rows)
        vectors = grown.table.columns["vectors"].numpy()[: len(ids)]
        known = ids < ROWS
        np.testing.assert_array_equal(vectors[known], old.table.columns["vectors"].numpy()[ids[known]])
        np.testing.assert_array_equal(vectors[~known], fresh.table.columns["vectors"].numpy()[ids[~known]])
    with pytest.raises(UserError, match=r"ids\.linear is \[101, 1\], this model's is \[90, 1\]"):
        source.restore(build(0, 3, 90))


def test_rows_are_read_where_they_are_stored(tmp_path: Path) -> None:
    """In either order, of a table that has grown too; and nothing else of it is in memory."""
    by_id = write_whole(worn(build()), tmp_path / "whole")
    expected = build(rows=ROWS + 60)
    by_id.restore(expected)
    ids = np.random.default_rng(1).integers(0, ROWS + 60, [9, 4])
    for source in (reshard(by_id, 3, tmp_path / "three"), by_id):
        kind = functools.partial(StoredTable, checkpoint=source)
        model = CTRModel("fm", {"factors": 3, "init_stddev": 0.1}, ROWS + 60, 2, [(0, 1)], seed=3, table_kind=kind)
        source.restore(model, optimizer=False)
        assert [variable.path.split("/")[-1] for variable in model.variables] == ["bias"]
        assert float(model.bias) == 0.25
        found, whole = (one.table.read(tf.constant(ids)) for one in (model, expected))
        for column, rows in whole.items():
            np.testing.assert_array_equal(found[column], rows)
            by_place = np.concatenate(list(model.table.blocks(column)))
            np.testing.assert_array_equal(by_place[model.table.places(ids)], rows)
            np.testing.assert_array_equal(by_place[model.table.places(tf.constant(ids))], rows)
        shutil.rmtree(source.folder)  # as a run does that trains on
        np.testing.assert_array_equal(model.table.read(tf.constant(ids))["linear"], whole["linear"])
        with pytest.raises(tf.errors.InvalidArgumentError, match="another schema"):
            model.table.read(tf.constant([ROWS + 60], tf.int64))
    with pytest.raises(UserError, match=r"ids\.linear is \[101, 1\], this model's is \[90, 1\]"):
        CTRModel("fm", {"factors": 3}, 90, 2, [(0, 1)], table_kind=kind)


def test_expired_rows_go_back_where_they_live() -> None:
    whole = worn(build())
    marks, fresh = whole.table.last_seen.numpy(), build().table.columns["vectors"].numpy()
    for rank in range(2):
        part = build(rank, 2)
        ids = part.table.stored_ids(0, part.table.local_rows)
        for name, values in (("last_seen", marks), ("vectors", whole.table.columns["vectors"].numpy())):
            variable = part.table.last_seen if name == "last_seen" else part.table.columns[name]
            variable.value[: len(ids)].assign(values[ids])
        gone = (marks[ids] > 0) & (marks[ids] <= 4)
        assert expire(part, 4) == (gone.sum(), (marks[ids] > 0).sum())
        expected = np.where(gone[:, None], fresh[ids], whole.table.columns["vectors"].numpy()[ids])
        np.testing.assert_array_equal(part.table.columns["vectors"].numpy()[: len(ids)], expected)
        assert not part.table.last_seen.numpy()[: len(ids)][gone].any()


def test_a_damaged_share_is_found(tmp_path: Path) -> None:
    source = reshard(write_whole(worn(build()), tmp_path / "whole"), 2, tmp_path / "two")
    path = next(source.folder.rglob("mixed-51-*.linear.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedCheckpoint, match=path.name):
        Checkpoint.open(source.folder)
    assert Checkpoint.open(source.folder, verify=False).sharded


def test_one_rank_saves_by_the_manager_all_or_nothing(tmp_path: Path) -> None:
    model, manager = build(0, 1), CheckpointManager(tmp_path / "run" / "checkpoints", keep=1)

    def save(step: int, model: CTRModel) -> None:
        snapshot = Snapshot.take(model, Position(0, step, step), schema_id="s", state={})
        manager.save_sharded(SingleWorld(), model, snapshot, None)

    save(1, model)
    save(2, model)
    assert manager.steps() == [2] and manager.latest().sharded  # type: ignore[union-attr]
    model.table.columns["linear"].value[7].assign([np.nan])
    with pytest.raises(UserError, match=r"ids\.linear is not finite after step 3"):
        save(3, model)
    assert manager.steps() == [2] and [path.name for path in manager.folder.iterdir()] == ["step-000000002"]
    keras.backend.clear_session()
