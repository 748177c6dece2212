"""The form of exchange: what it is chosen by, what is said of it, and what the table is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_world import FakeWorld

from afm_ctr.distributed import SingleWorld, World
from afm_ctr.distributed.exchange import exchanged_bytes
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.training.exchange import TableExchange, cheapest, choose_exchange
from tests import prepared

ROWS = 1 + prepared.FIELDS * prepared.IDS


def chosen(folder: Path, wanted: str, world: World) -> tuple[CTRModel, list[str], list]:
    reader = Reader(folder, "train", 32, rank=world.rank, size=world.size)
    model = CTRModel("fm", {"factors": 3}, ROWS, prepared.FIELDS, [(0, 1)])
    lines: list[str] = []
    return model, lines, choose_exchange(model, reader, world, wanted, lines.append)  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", ["auto", "gather", "reduce"])
def test_the_table_is_told_and_the_line_says_why(wanted: str, tmp_path: Path) -> None:
    model, (line,), (choice,) = chosen(prepared.write(tmp_path, {"train": 100}), wanted, FakeWorld())
    assert {variable.exchange for variable in model.table.columns.values()} == {choice.form}
    assert choice.form == ("reduce" if wanted == "auto" else wanted)  # half of a small table
    assert 10 < choice.touched < ROWS  # row 0 is not counted, and the batches have absent slots
    assert choice.gather_bytes == choice.touched * (4 * 4 + 4) and choice.reduce_bytes == ROWS * 5 * 4
    assert line.startswith(f"ids/linear+vectors: {choice.touched} of {ROWS} rows touched per step: {choice.form}, ")
    assert choice.to_json()["form"] == choice.form


def test_one_process_exchanges_nothing_and_reads_nothing(tmp_path: Path) -> None:
    model, lines, choices = chosen(prepared.write(tmp_path, {"train": 40}), "reduce", SingleWorld())
    assert lines == choices == []
    assert not hasattr(model.table.columns["linear"], "exchange")


def test_the_cheapest_form_by_density() -> None:
    assert cheapest(2, 34_000, 1_000_000) == "gather"
    assert cheapest(2, 80_000, 100_000) == "reduce"
    assert cheapest(8, 20_000, 100_000) == "reduce"  # eight ranks' rows are more than the table has
    assert cheapest(8, 100, 100_000) == "gather"


def test_bytes_of_each_form() -> None:
    """Of 100 rows of 17 float32: gradient and int32 ids; the whole table and a mark; int64 ids, rows and gradient."""
    assert exchanged_bytes("gather", 100, 5000, 17) == 100 * (17 * 4 + 4)
    assert exchanged_bytes("reduce", 100, 5000, 17) == 5000 * 18 * 4
    assert exchanged_bytes("sharded", 100, 5000, 17) == 100 * (8 + 2 * 17 * 4)


def test_bytes_are_shown_in_a_unit_that_fits() -> None:
    line = str(TableExchange("ids", ("linear",), 10, 5, "gather", 50_400, 2_500_000, 99_999))
    assert "50.4 kB" in line and "2.5 MB" in line
