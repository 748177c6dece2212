"""The plan of a run: memory and bytes by hand, what fits, and what ``auto`` takes. Bytes measured: tests/parallel."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_world import FakeWorld
from typer.testing import CliRunner

from afm_ctr import optimizers
from afm_ctr.cli.app import app
from afm_ctr.cli.main import main  # noqa: F401  (registers the commands)
from afm_ctr.distributed import SingleWorld
from afm_ctr.errors import UserError
from afm_ctr.records import Reader
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training import TrainConfig, build_model
from afm_ctr.training.plan import Cluster, Table, is_to_be_sharded, plan, plan_run, rank_memory, table_of
from tests import prepared

GB = 10**9
TABLE = Table(
    rows=100_000_000, width=17, slot_numbers=34, marks=False, local_batch=4096, slots=39, pairs=741, touched=30_000
)
CLUSTER = Cluster(hosts=4, per_host=8, gbits=100.0, memory=80 * GB)


def test_memory_and_bytes_by_hand() -> None:
    costs = plan(TABLE, CLUSTER).costs
    assert costs["gather"].weights == costs["reduce"].weights == 100_000_000 * 17 * 4
    assert costs["sharded"].weights == 100_000_000 // 32 * 17 * 4
    assert all(cost.slots == 2 * cost.weights and cost.memory > 3 * cost.weights for cost in costs.values())
    assert costs["gather"].sent == 31 * 30_000 * (17 * 4 + 4)
    assert costs["reduce"].sent == 2 * 31 * 100_000_000 * 18 * 4 // 32
    assert costs["sharded"].put == 30_000 * (8 + 2 * 17 * 4)
    assert costs["sharded"].sent == 31 * 30_000 * (8 + 2 * 17 * 4) // 32
    assert plan(dataclasses.replace(TABLE, marks=True), CLUSTER).costs["gather"].slots == 100_000_000 * (
        2 * 17 * 4 + 8
    )


def test_validation_holds_the_weights_twice_where_they_are_averaged() -> None:
    """A copy takes the memory of the step's buffers where it is larger, and less fits."""
    plain, copied = (plan(dataclasses.replace(TABLE, copied=copied), CLUSTER).costs for copied in (False, True))
    for form, cost in copied.items():
        assert cost.buffers == max(plain[form].buffers, cost.weights + TABLE.activation_bytes)
        assert (cost.buffers > plain[form].buffers) == (form != "reduce")  # which sums twice as much in a step
        largest = plan(dataclasses.replace(TABLE, copied=True, rows=cost.largest_rows), CLUSTER).costs[form]
        assert largest.memory <= 0.8 * CLUSTER.memory < largest.memory + 100_000
    assert copied["gather"].largest_rows == pytest.approx(plain["gather"].largest_rows * 3 / 4, rel=0.01)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    "optimizer",
    ["{name: sgd}", "{name: adagrad}", "{name: adam, average: 0.9}", "{name: rowwise_adagrad, average: 0.9}"],
)
def test_memory_is_that_of_the_variables(optimizer: str, ranks: int, data: Path) -> None:
    """Of the table and its slots, as a training makes them; each rank's part is rounded up to a whole row."""
    settings, schema = config(f"optimizer={optimizer}", "row_l2_per=step"), ResolvedSchema.load(data)
    world = FakeWorld(1, ranks) if ranks > 1 else None
    model = build_model(schema, settings, training=True, shard_over=world)
    made = optimizers.build(settings.optimizer.name, learning_rate=1.0, **settings.optimizer.options)
    made.build(list(model.table.columns.values()))
    slots = [slot for column in model.table.columns.values() for slot in made.slots_of(column).values()]
    cost = plan(table_of(settings, schema, ranks, touched=10), dataclasses.replace(CLUSTER, hosts=1, per_host=ranks))
    form = cost.costs["sharded" if ranks > 1 else "gather"]
    sizes = [sum(v.value.dtype.size * math.prod(v.shape) for v in group) for group in (model.table.variables, slots)]
    assert sum(sizes) == form.weights + form.slots
    assert table_of(settings, schema, ranks, touched=10).copied == ("average" in optimizer)
    silent = settings.model_copy(update={"validation": None})
    assert not table_of(silent, schema, ranks, touched=10).copied


def test_time_by_hand() -> None:
    cost = plan(TABLE, CLUSTER).costs["sharded"]
    on_link = 8 * cost.put * 24 / 32  # of eight ranks, what is for other hosts
    assert cost.exchange_seconds == pytest.approx(on_link * 8 / 100e9 + 3 * 50e-6, rel=1e-6)
    assert cost.step_seconds == pytest.approx(cost.exchange_seconds + 4096 / 50_000)
    assert plan(TABLE, dataclasses.replace(CLUSTER, hosts=1)).costs["sharded"].exchange_seconds == 0


def test_the_largest_table_fits_and_one_row_more_does_not() -> None:
    for form, cost in plan(TABLE, CLUSTER).costs.items():
        table = dataclasses.replace(TABLE, rows=cost.largest_rows)
        again = plan(table, CLUSTER).costs[form]
        assert again.memory <= 0.8 * CLUSTER.memory < again.memory + (40 if form == "sharded" else 2) * 400
    costs = plan(TABLE, CLUSTER).costs
    assert costs["sharded"].largest_rows > 31 * costs["gather"].largest_rows


def test_what_auto_takes() -> None:
    small = dataclasses.replace(TABLE, rows=1_000_000)
    two, eight = (dataclasses.replace(CLUSTER, hosts=n, per_host=1) for n in (2, 8))
    assert plan(small, two).chosen == "gather"
    assert plan(small, eight).chosen == "sharded"  # gathered rows go to seven others, sharded ones to their owner
    assert plan(dataclasses.replace(small, rows=31_000), dataclasses.replace(two, hosts=4)).chosen == "reduce"
    assert plan(TABLE, dataclasses.replace(two, memory=10 * GB)).chosen == "sharded"  # 20 GB do not fit
    assert plan(TABLE, dataclasses.replace(two, hosts=1, memory=GB)).chosen == "gather"  # there is nobody to share it


def config(*overrides: str) -> TrainConfig:
    return TrainConfig.load(None, ["model={name: fm, factors: 4}", "batch_size=32", *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), {"train": 100, "valid": 20})


def test_a_run_decides_by_the_plan(data: Path) -> None:
    def sharded(world: Any, *overrides: str) -> bool:
        return is_to_be_sharded(config(*overrides), Reader(data, "train", 32, size=world.size), world)

    auto, tiny = "table.placement=auto", "table.memory_gb=0.00001"
    assert not sharded(FakeWorld(), auto) and not sharded(FakeWorld(), auto, "table.memory_gb=1")
    assert sharded(FakeWorld(), auto, tiny)
    assert not sharded(SingleWorld(), auto, tiny) and sharded(SingleWorld(), "table.placement=sharded")
    elastic = FakeWorld(elastic=True)
    assert not sharded(elastic, auto, tiny) and sharded(elastic, "table.placement=sharded")
    assert rank_memory(config(), 4) == rank_memory(config(), 1) // 4 > GB // 100


def test_the_plan_counts_what_the_ranks_read(data: Path) -> None:
    found = plan_run(data, config("expiry={unseen_runs: 2}"), dataclasses.replace(CLUSTER, hosts=2, per_host=1))
    assert (found.table.rows, found.table.width, found.table.slot_numbers) == (49, 5, 10)
    assert found.table.marks and found.table.local_batch == 16 and 10 < found.table.touched < 49
    larger = plan_run(data, config(), CLUSTER, rows=1_000_000)
    assert larger.table.rows == 1_000_000 and larger.table.local_batch == 1
    for wrong in (dataclasses.replace(CLUSTER, gbits=0.0), dataclasses.replace(CLUSTER, hosts=0)):
        with pytest.raises(UserError, match="must be above 0"):
            plan_run(data, config(), wrong)
    with pytest.raises(UserError, match="--ids is 0"):
        plan_run(data, config(), CLUSTER, rows=0)


@pytest.mark.parametrize("marking", [[], ["expiry={unseen_runs: 2}"], ["row_l2_per=step"]])
def test_the_plan_counts_marks_where_a_training_keeps_them(data: Path, marking: list[str]) -> None:
    schema = ResolvedSchema.load(data)
    kept = build_model(schema, config(*marking), training=True).table.last_seen is not None
    assert kept == bool(marking)
    assert table_of(config(*marking), schema, ranks=1, touched=10).marks == kept


def test_the_command_prints_the_plan(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(config().to_yaml())
    line = ["plan", "--data", str(data), "--config", str(tmp_path / "train.yaml"), "--hosts", "2", "--json"]
    result = CliRunner().invoke(app, [*line, "--memory-gb", "80", "--ids", "2000000000"])
    assert result.exit_code == 0, result.output
    assert "weights, GB" in result.output and "auto: sharded" in result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["table"]["rows"] == 2_000_000_000
    assert found["costs"]["sharded"]["weights"] == 10**9 * 5 * 4
