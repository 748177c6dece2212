"""Who owns which row: a permutation that mixes, cut into ranges."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.row_shards import RowShards, mix, unmix


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000, 4097, 65_535, 65_536, 100_003])
def test_every_row_has_one_place_and_the_way_back_leads_to_it(rows: int) -> None:
    ids = np.arange(rows)
    positions = mix(ids, rows)
    np.testing.assert_array_equal(np.sort(positions), ids)
    np.testing.assert_array_equal(unmix(positions, rows), ids)


@pytest.mark.parametrize("rows", [7, 1000, 2**31 + 5, 10**9, 2**39 + 12_345, 2**40])
def test_tensors_as_arrays_however_large_the_table(rows: int) -> None:
    ids = np.unique(np.r_[0, rows - 1, np.random.default_rng(0).integers(0, rows, 5000)])
    positions = mix(ids, rows)
    assert positions.min() >= 0 and positions.max() < rows and len(np.unique(positions)) == len(ids)
    np.testing.assert_array_equal(unmix(positions, rows), ids)
    np.testing.assert_array_equal(tf.function(mix)(tf.constant(ids), rows).numpy(), positions)


ROWS = 1_234_567
KINDS = {
    "the head of a zipf law": np.arange(1, 3000),
    "one field's range": np.arange(300_000, 310_000),
    "another field's range": np.arange(ROWS - 3000, ROWS),
    "every 64th": np.arange(0, ROWS, 64)[:10_000],
    "every 300th": np.arange(0, ROWS, 300),
    "every 1024th": np.arange(5, ROWS, 1024),
    "zipf": np.unique(np.minimum(np.random.default_rng(1).zipf(1.1, 100_000), ROWS - 1)),
}


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_spread_evenly(kind: str, size: int) -> None:
    """As drawn by lot: within four standard deviations of equal shares."""
    ids = KINDS[kind]
    owners = RowShards(ROWS, 0, size).positions(ids) // RowShards(ROWS, 0, size).per_rank
    share = np.bincount(owners, minlength=size) / len(ids)
    assert np.abs(share * size - 1).max() < 4 * np.sqrt((size - 1) / len(ids))


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 100, 101])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_ranks_hold_every_row_once(rows: int, size: int) -> None:
    shards = [RowShards(rows, rank, size) for rank in range(size)]
    held = [one.ids(one.start, one.stop) for one in shards]
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.arange(rows))
    for one, ids in zip(shards, held, strict=True):
        assert len(ids) <= one.per_rank
        assert (one.positions(ids) // one.per_rank == one.rank).all()


def test_the_digest_tells_ownerships_apart() -> None:
    assert RowShards(1000, 0, 3).digest() == RowShards(1000, 2, 3).digest()
    others = [RowShards(1001, 0, 3), RowShards(1000, 0, 2)]
    assert len({RowShards(1000, 0, 3).digest(), *(one.digest() for one in others)}) == 3


@pytest.mark.parametrize("rows", [0, -1, 2**40 + 1])
def test_impossible_sizes_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="rows must be"):
        mix(np.arange(3), rows)
