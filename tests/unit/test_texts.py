from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_ctr import native
from afm_ctr.io.texts import Texts
from afm_ctr.rawlog.spans import CellSpans


def test_byte_strings_in_one_text_are_those_of_the_list() -> None:
    listed = [b"a", b"", b"long one", b"\0", "ü".encode()]
    texts = Texts.of(listed)
    assert texts == listed and len(texts) == 5 and texts[2] == b"long one" and texts[1:3] == listed[1:3]
    assert Texts.of(texts) is texts and texts != listed[:4]
    assert texts.take(np.array([4, 0, 0])) == [listed[4], b"a", b"a"]
    assert Texts.joined([texts.take(np.array([2])), Texts.of([]), texts]) == [b"long one", *listed]
    packed = texts.take(np.array([4, 1, 0, 0])).packed()
    assert packed == [listed[4], b"", b"a", b"a"] and packed.text == "üaa".encode()
    assert Texts.of([]).packed() == []
    assert Texts.joined([]) == [] and Texts.of([]) == []


@given(st.lists(st.binary(max_size=2) | st.sampled_from([b"12345678", b"1234567", b"12345678\0", b"1\0"])))
def test_byte_strings_are_counted(listed: list[bytes]) -> None:
    texts = Texts.of(listed)
    assert texts.counted() == Counter(listed)
    some = np.arange(0, len(listed), 2)
    assert texts.take(some).counted() == Counter(listed[::2])


def test_the_last_of_a_text_and_short_ones_are_counted() -> None:
    listed = [b"12345678", b"", b"1", b"12345678", b"1"]
    assert Texts.of(listed).counted() == {b"": 1, b"1": 2, b"12345678": 2} and Texts.of([]).counted() == {}


@pytest.mark.parametrize("numbers", [[], [0], [9, 10, 99, 100, 101], [10**17, 10**18 - 1, 10**18, 2**62]])
def test_numbers_stand_behind_a_start(numbers: list[int]) -> None:
    assert Texts.numbered(b"a, b#", np.array(numbers, np.int64)) == [b"a, b#%d" % number for number in numbers]


def test_cells_of_one_byte_are_found_like_any() -> None:
    edges = np.array([[0, 2], [1, 3]], np.int32)
    spans = CellSpans(b"1x0\xff", edges, edges + np.array([1, 1], np.int32), {"label": 0, "other": 1})
    assert spans.texts(["other", "label"]) == [b"0", b"1", b"\xff", b"x"] and spans.texts([]) == []
    assert spans.cells("label") == [b"1", b"x"] and spans.cells("other") == [b"0", b"\xff"]


@pytest.mark.skipif(not native.prepares(), reason="the library of ops is not built")
@pytest.mark.parametrize("start, end", [(-1, 1), (2, 1), (0, 5)])
def test_a_key_outside_its_text_is_refused(start: int, end: int) -> None:
    keys = Texts(b"abcd", np.array([start]), np.array([end]))
    with pytest.raises(Exception, match="a key is outside its text"):
        native.frame_examples(np.ones((1, 1), np.int64), np.ones((1, 1), np.float32), None, None, None, keys)
