"""Rows in every form against what a model says of its inputs, before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidArgument
from serving.responses import Outputs, TensorSpec, join
from serving.rows import encode, split
from serving.top_pairs import PairShare, read_pair_names, top_pairs

RAW = {"A": TensorSpec("string", (-1,)), "B": TensorSpec("string", (-1,))}
PACKED = {"ids": TensorSpec("int64", (-1, 2)), "values": TensorSpec("float", (-1, 2))}


class Frame:
    """As much of a DataFrame as is asked of one."""

    class Column(list[Any]):
        def to_numpy(self) -> np.ndarray[Any, Any]:
            return np.array(self, dtype=object)

    def __init__(self, **columns: list[Any]):
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name: str) -> Column:
        return self.Column(self._columns[name])


def encoded(data: Any, specs: dict[str, TensorSpec], batch_size: int = 100) -> list[dict[str, Any]]:
    return [encode(chunk, specs) for chunk in split(data, batch_size)]


@pytest.mark.parametrize(
    "data",
    [
        [{"A": "x", "B": 1}, {"A": None, "B": 0.5}, {"B": b"\xff"}],
        {"A": ["x", None, float("nan")], "B": np.array([1, 0.5, b"\xff"], dtype=object)},
        Frame(A=["x", None, float("nan")], B=[1, 0.5, b"\xff"]),
    ],
)
def test_dicts_columns_and_frames_are_the_same_strings(data: Any) -> None:
    (whole,) = encoded(data, RAW)
    assert {name: column.tolist() for name, column in whole.items()} == {
        "A": [b"x", b"", b""],
        "B": [b"1", b"0.5", b"\xff"],
    }
    parts = encoded(data, RAW, batch_size=2)
    assert [len(part["A"]) for part in parts] == [2, 1]
    assert np.concatenate([part["B"] for part in parts]).tolist() == [b"1", b"0.5", b"\xff"]


def test_numbers_become_the_model_s_types() -> None:
    rows = [{"ids": [1, 2], "values": (1, 0.5)}, {"ids": np.array([3, 4], np.int32), "values": np.ones(2)}]
    (by_row,) = encoded(rows, PACKED)
    (by_column,) = encoded({"ids": [[1, 2], [3, 4]], "values": np.array([[1, 0.5], [1, 1]])}, PACKED)
    for batch in (by_row, by_column):
        assert (batch["ids"].dtype, batch["values"].dtype) == (np.int64, np.float32)
        assert (batch["ids"].tolist(), batch["values"].tolist()) == ([[1, 2], [3, 4]], [[1, 0.5], [1, 1]])
    (strings,) = encoded([{"x": ["a", b"b"]}], {"x": TensorSpec("string", (-1, 2))})
    assert strings["x"].tolist() == [[b"a", b"b"]]


GOOD = {"ids": [1, 2], "values": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ids": [1, 2]}, "column values: is missing"),
        ({**GOOD, "C": 1}, "unknown column C; the model has ids, values"),
        ({**GOOD, "ids": [1, 2, 3]}, r"column ids: shape \[3\], the model takes \[2\]"),
        ({**GOOD, "ids": 7}, r"column ids: shape \[\], the model takes \[2\]"),
        ({**GOOD, "ids": [1.0, 2.0]}, r"column ids: \[1.0, 2.0\] is not int64"),
        ({**GOOD, "ids": ["1", "2"]}, "column ids: .* is not int64"),
        ({**GOOD, "ids": [1 << 70, 2]}, "column ids: .* is not int64"),
        ({**GOOD, "ids": np.array([1 << 63, 2], np.uint64)}, "column ids: 9223372036854775808 does not fit int64"),
        ({**GOOD, "values": [1e300, 0]}, "column values: .* does not fit float"),
        ({**GOOD, "values": [[1], [2, 3]]}, "column values: "),
        ({**GOOD, "values": None}, "column values: is missing"),
        ([1, 2], "list is not a row"),
    ],
)
def test_the_row_and_the_field_are_named(wrong: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^row 7.*{says}"):
        encoded([GOOD] * 7 + [wrong] + [GOOD], PACKED, batch_size=4)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"A": ["x"]}, "missing column B; the model has A, B"),
        ({"A": ["x"], "B": ["1"], "C": [1]}, "unknown column C"),
        ({"A": ["x"], "B": ["1", "2"]}, "column B has 2 rows, column A has 1"),
        ({"A": "x", "B": "y"}, "column A: str is not a column"),
        ({"A": ["x", "y"], "B": ["1", ["2"]]}, r"row 1, column B: \['2'\] is neither text"),
        ({"A": ["x", "\ud800"], "B": ["1", "2"]}, "row 1, column A: .* has no UTF-8 form"),
    ],
)
def test_columns_are_checked_too(columns: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        encoded(columns, RAW, batch_size=1)


@pytest.mark.parametrize("nothing", [None, "x", b"x", 3, 0.5, len], ids=repr)
def test_what_is_no_rows_is_refused_by_name(nothing: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"^{type(nothing).__name__} holds no rows: give an iterable"):
        encoded(nothing, RAW)


def test_rows_are_read_no_further_than_needed() -> None:
    def endless() -> Any:
        while True:
            yield {"A": 1, "B": 2}

    assert len(next(split(endless(), 3)).content) == 3


def test_answers_of_batches_are_joined() -> None:
    parts = [Outputs({"logit": np.ones(2)}, 4), Outputs({"logit": np.zeros(1)}, 5)]
    whole = join(parts, {})
    assert (whole["logit"].tolist(), whole.versions) == ([1, 1, 0], [4, 5])
    none = join([], {"attention": TensorSpec("float", (-1, 3))})
    assert (none["attention"].shape, none["attention"].dtype, none.versions) == ((0, 3), np.float32, [])


def test_top_pairs_have_names_and_shares() -> None:
    attention = np.array([[0.25, 0.0, 0.75], [0.5, 0.5, 0.0], [0, 0, 0]], np.float32)
    assert top_pairs(attention, ["A x B", "A x C", "B x C"], 2) == [
        [PairShare("B x C", 0.75), PairShare("A x B", 0.25)],
        [PairShare("A x B", 0.5), PairShare("A x C", 0.5)],
        [],
    ]
    with pytest.raises(InvalidArgument, match="has 3 pairs, but 1 names"):
        top_pairs(attention, ["A x B"], 2)


def test_names_of_pairs_are_read_from_an_export(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"pairs": [{"name": "A x B", "slots": [0, 1]}]}))
    assert read_pair_names(path) == ["A x B"]
    for wrong in ("{", "[]", '{"pairs": [1]}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"is not the pairs\.json"):
            read_pair_names(path)
