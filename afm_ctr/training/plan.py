"""Memory, bytes and time per step of a table, replicated or sharded, on a number of ranks, estimated before a run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from afm_ctr import optimizers
from afm_ctr.distributed import Traffic, World, exchanged_bytes, sent_bytes
from afm_ctr.errors import UserError
from afm_ctr.models import interaction_class, parse_options
from afm_ctr.records import Reader
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.config import TrainConfig

_BATCHES = 4
_NUMBER = 4  # bytes of a weight
_SHARE = 0.8  # of the memory for the table: the rest is for the program and a step
_LATENCY = 50e-6  # seconds per message between hosts
ROWS_PER_SECOND = 50_000  # of a single rank, if not given


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Hosts, ranks and links of a cluster."""

    hosts: int
    per_host: int  # ranks per host, one per GPU if there are any
    gbits: float  # speed of a host's link, Gbit/s in each direction
    memory: int  # bytes per rank: of its GPU, or its part of the host's
    rows_per_second: float = ROWS_PER_SECOND  # of a single rank, without an exchange

    @property
    def ranks(self) -> int:
        return self.hosts * self.per_host


@dataclasses.dataclass(frozen=True)
class Table:
    """Size and use of a table on a number of ranks."""

    rows: int
    width: int  # numbers per row, over all columns
    slot_numbers: int  # numbers per row in the optimizer's slots
    marks: bool  # whether each row has a mark of 8 bytes (``expiry``, ``row_l2_per: step``)
    local_batch: int  # rows of a rank's batch
    slots: int  # per row of the data, like the pairs
    pairs: int
    touched: int  # distinct ids of a rank's batch
    copied: bool = False  # whether validation needs a second copy of the weights (``optimizer.average``)

    @property
    def row_bytes(self) -> int:
        """Bytes per row, with slots and mark."""
        return (self.width + self.slot_numbers) * _NUMBER + 8 * self.marks

    @property
    def activation_bytes(self) -> int:
        """Approximate bytes of a rank's batch: ids and values; rows, products and their gradients; pairs."""
        return self.local_batch * (12 * self.slots + _NUMBER * (4 * self.slots * self.width + 6 * self.pairs))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost per rank of one form."""

    # weights, slots, buffers: bytes of the rows that it stores, of their optimizer slots and marks, and of the other
    # memory of a step, or of validation if that is more
    weights: int
    slots: int
    buffers: int
    put: int  # bytes that it puts into a step's exchange
    sent: int  # bytes of those that it sends to others
    exchange_seconds: float  # per step, by the speed of a host's link and a delay per message
    step_seconds: float  # with the computation
    largest_rows: int  # of the largest table that fits into memory

    @property
    def memory(self) -> int:
        """Total bytes."""
        return self.weights + self.slots + self.buffers


@dataclasses.dataclass(frozen=True)
class Plan:
    """The costs of a table by form, and the form that ``auto`` chooses."""

    table: Table
    cluster: Cluster
    costs: dict[Traffic, Cost]
    chosen: Traffic

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


def plan(table: Table, cluster: Cluster) -> Plan:
    """The costs of each form.

    A gathered or summed table goes around a ring of ranks, which crosses each host's link once each way; with a
    sharded table all ranks of a host send what is for other hosts over its link. Exchange within a host costs no time
    here, and neither do the few weights outside the table.
    """
    costs: dict[Traffic, Cost] = {}
    for form in get_args(Traffic):
        ranks = cluster.ranks
        own = -(-table.rows // ranks) if form == "sharded" else table.rows
        put = exchanged_bytes(form, table.touched, table.rows, table.width, _NUMBER)
        sent = sent_bytes(form, ranks, table.touched, table.rows, table.width, _NUMBER)
        batch = table.activation_bytes
        # Memory of a step and of validation in addition to the rows: bytes per row, and constant bytes.
        step = {
            "gather": (0, batch + ranks * put),
            "reduce": (2 * _NUMBER * (table.width + 1), batch),
            "sharded": (0, batch + 2 * put),
        }[form]
        needs = [step, (table.width * _NUMBER * table.copied, batch)]
        room = round(_SHARE * cluster.memory)
        across = 0.0
        if cluster.hosts > 1:
            messages = {"gather": 2 * (ranks - 1), "reduce": 2 * (ranks - 1), "sharded": 3}[form]
            on_link = sent
            if form == "sharded":
                on_link = round(cluster.per_host * put * (ranks - cluster.per_host) / ranks)
            across = on_link * 8 / (cluster.gbits * 1e9) + messages * _LATENCY
        costs[form] = Cost(
            weights=own * table.width * _NUMBER,
            slots=own * (table.row_bytes - table.width * _NUMBER),
            buffers=max(own * of_a_row + others for of_a_row, others in needs),
            put=put,
            sent=sent,
            exchange_seconds=across,
            step_seconds=table.local_batch / cluster.rows_per_second + across,
            largest_rows=min(max(0, room - others) // (table.row_bytes + of_a_row) for of_a_row, others in needs)
            * (ranks if form == "sharded" else 1),
        )
    return Plan(table, cluster, costs, _cheapest(table, cluster, costs))


def _cheapest(table: Table, cluster: Cluster, costs: dict[Traffic, Cost]) -> Traffic:
    """Replicated if that fits and sends at most twice as much, since then a lost rank loses nothing."""
    fitting = [form for form in ("gather", "reduce") if table.rows <= costs[form].largest_rows]
    best = min(fitting, key=lambda form: costs[form].sent, default=None)  # type: ignore[index]
    if cluster.ranks == 1:
        return "gather"
    if best is None or costs[best].sent > 2 * costs["sharded"].sent:  # type: ignore[index]
        return "sharded"
    return best  # type: ignore[return-value]


def table_of(config: TrainConfig, schema: ResolvedSchema, ranks: int, touched: int, rows: int | None = None) -> Table:
    """The table of a config and a schema on a number of ranks; ``rows``: replaces the schema's."""
    kind = interaction_class(config.model.name).Options
    options = parse_options(config.model.name, kind, config.model.options)
    optimizer = optimizers.build(config.optimizer.name, learning_rate=1.0, **config.optimizer.options)
    widths = [1, options.factors] if options.factors else [1]
    return Table(
        rows=schema.feature_size if rows is None else rows,
        width=sum(widths),
        slot_numbers=sum(optimizer.slot_width(slot, width) for slot in optimizer.slots for width in widths),
        marks=config.marks_rows,
        local_batch=-(-config.batch_size // ranks),
        slots=schema.num_slots,
        pairs=len(schema.pairs),
        touched=touched,
        copied=config.optimizer.average is not None and config.validation is not None,
    )


def train_reader(data_dir: str | Path, config: TrainConfig, rank: int, ranks: int) -> Reader:
    """A reader of a rank's part of the train split."""
    split, rows = config.train_split, config.batch_size
    return Reader(data_dir, split, rows, seed=config.seed, rank=rank, size=ranks, shuffle=config.shuffle)


def touched_rows(reader: Reader) -> int:
    """Distinct ids that a rank's part of a batch reads: the mean of the first batches of the first epoch."""
    batches = range(min(_BATCHES, reader.steps_per_epoch))
    columns = ("feature_ids",)
    return int(np.mean([len(np.setdiff1d(reader.batch(0, step, columns)["feature_ids"], [0])) for step in batches]))


def plan_run(data_dir: str | Path, config: TrainConfig, cluster: Cluster, rows: int | None = None) -> Plan:
    """The plan for a run on prepared data; the first batches are counted, divided as the ranks would.

    Args:
        rows: plan for this number of ids instead of the schema's.

    Raises:
        UserError: no such data or split, a damaged record, or fewer than one rank or row.
    """
    if min(cluster.hosts, cluster.per_host) < 1 or cluster.gbits <= 0 or cluster.rows_per_second <= 0:
        raise UserError("plan: hosts, GPUs per host, Gbit/s and rows per second must be above 0")
    if rows is not None and rows < 1:
        raise UserError(f"plan: --ids is {rows}; it must be 1 or more")
    ranks = cluster.ranks
    counts = []
    for rank in range(ranks):
        reader = train_reader(data_dir, config, rank, ranks)
        counts.append(touched_rows(reader))
    return plan(table_of(config, reader.schema, ranks, max(counts), rows), cluster)


def rank_memory(config: TrainConfig, local_size: int) -> int:
    """Bytes that a rank may use: by ``table.memory_gb``, else this machine's, divided by its ranks.

    Raises:
        UserError: it computes on a GPU, and the config does not give the GPU's memory.
    """
    if config.table.memory_gb is not None:
        return round(config.table.memory_gb * 1e9)
    if tf.config.get_visible_devices("GPU"):
        raise UserError("table.placement auto: set table.memory_gb to a GPU's memory")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_size


def is_to_be_sharded(config: TrainConfig, reader: Reader, world: World) -> bool:
    """Whether the ranks shard the table, by ``table.placement``; ``auto`` uses the plan. All ranks must call it.

    In an elastic job, where the number of ranks changes, ``auto`` is ``replicated``.

    Raises:
        UserError: see :func:`rank_memory`.
    """
    placement = config.table.placement
    if placement != "auto" or world.elastic or world.size == 1:
        return placement == "sharded"
    memory = world.agree(rank_memory(config, world.local_size), "min")
    touched = world.agree(touched_rows(reader))
    hosts = -(-world.size // world.agree(world.local_size))
    cluster = Cluster(hosts, -(-world.size // hosts), 10.0, memory)
    return plan(table_of(config, reader.schema, world.size, touched), cluster).chosen == "sharded"
