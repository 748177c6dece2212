"""The order of an epoch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_ctr.records import EpochOrder
from afm_ctr.records.order import permutation

PINNED = [3, 6, 4, 2, 7, 0, 5, 1]
BLOCKS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def _walk(order: EpochOrder, start: int, stop: int) -> list[tuple[int, int]]:
    return [(take.block, record) for take in order.take(start, stop) for record in take.records.tolist()]


@given(blocks=BLOCKS, seed=st.integers(-(2**63), 2**64), epoch=st.integers(0, 10**6), shuffle=st.booleans())
def test_every_record_once(blocks, seed, epoch, shuffle):
    order = EpochOrder(np.array(blocks), seed, epoch, shuffle)
    every = [(block, record) for block, rows in enumerate(blocks) for record in range(rows)]
    walked = _walk(order, 0, sum(blocks))
    assert (sorted(walked) if shuffle else walked) == every
    assert order.rows == len(every)


@given(blocks=BLOCKS, data=st.data())
def test_any_stretch_is_that_of_the_whole(blocks, data):
    whole = _walk(EpochOrder(np.array(blocks), 3, 1), 0, sum(blocks))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole) + 5))
    assert _walk(EpochOrder(np.array(blocks), 3, 1), start, stop) == whole[start:stop]


@given(blocks=BLOCKS)
def test_a_block_is_left_only_when_it_is_used_up(blocks):
    walked = [block for block, _ in _walk(EpochOrder(np.array(blocks), 3, 1), 0, sum(blocks))]
    changes = sum(a != b for a, b in pairwise(walked))
    assert changes == len(blocks) - 1


def test_blocks_and_records_move_with_seed_and_epoch():
    blocks = np.full(50, 20)
    walks = [_walk(EpochOrder(blocks, seed, epoch), 0, 1000) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    for i, walk in enumerate(walks):
        assert all(walk != other for other in walks[:i])
    first_blocks = [[block for block, record in walk if record == 0] for walk in walks]
    inside = [[record for block, record in walk if block == 7] for walk in walks]
    assert len(set(map(tuple, first_blocks))) == len(set(map(tuple, inside))) == 4
    # Two blocks of one epoch are not permuted alike.
    assert inside[0] != [record for block, record in walks[0] if block == 8]


def test_the_permutation_is_fixed_for_good():
    # A resumed run goes on in the order in which an earlier release began.
    assert permutation(8, 0, 0).tolist() == PINNED
    assert permutation(8, 2**64, 0).tolist() == PINNED
    assert permutation(0, 1).tolist() == [] and permutation(1, 1).tolist() == [0]


def test_the_permutation_is_even():
    places = np.array([permutation(4, seed) for seed in range(4000)])
    counts = np.array([np.bincount(places[:, i], minlength=4) for i in range(4)])
    # 1000 each; 5 standard deviations of a binomial are 137.
    assert np.abs(counts - 1000).max() < 137


@pytest.mark.parametrize("start", [0, 1, 5])
def test_no_blocks(start):
    assert EpochOrder(np.zeros(0, np.int64), 0, 0).take(start, start + 1) == []
