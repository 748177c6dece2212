"""How ranks exchange the gradient of a table: chosen once, before the first step, by the rows that batches touch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from afm_ctr.distributed import Form, Traffic, World, exchanged_bytes
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.training.plan import touched_rows
from afm_ctr.training.progress import Say

# The cost of a gathered row relative to a summed row of a dense table: it is hashed and merged, and lies anywhere in
# memory. Measured with two ranks on CPUs of one machine: both forms took as long at 0.2 to 0.35 of the rows.
_GATHERED_ROW = 3.0


@dataclasses.dataclass(frozen=True)
class TableExchange:
    """The choice for one table, and the figures behind it."""

    table: str
    columns: tuple[str, ...]  # names of the columns of its rows
    rows: int
    touched: int  # distinct rows that a rank's part of a batch reads, at most over the ranks
    form: Traffic  # the chosen form, or ``sharded``
    gather_bytes: int  # bytes that a rank puts into a step's exchange in that form
    reduce_bytes: int
    sharded_bytes: int  # the same for a sharded table

    @property
    def step_bytes(self) -> int:
        """Bytes that a rank puts into a step's exchange."""
        return {"gather": self.gather_bytes, "reduce": self.reduce_bytes, "sharded": self.sharded_bytes}[self.form]

    def to_json(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {**dataclasses.asdict(self), "columns": list(self.columns)}

    def __str__(self) -> str:
        other = ("gathered", self.gather_bytes) if self.form == "reduce" else ("dense", self.reduce_bytes)
        return (
            f"{self.table}/{'+'.join(self.columns)}: {self.touched:,} of {self.rows:,} rows touched per step: "
            f"{self.form}, {_megabytes(self.step_bytes)} per rank and step ({other[0]} {_megabytes(other[1])})"
        )


def choose_exchange(
    model: CTRModel, reader: Reader, world: World, wanted: Literal["auto", "gather", "reduce"], say: Say
) -> list[TableExchange]:
    """Choose the form for each table, set it on its variables, and report it in one line per table.

    It counts the first batches of the first epoch, whatever step the run resumes at: so the choice is the same in
    every session with the same number of ranks. All ranks must call it; all get the same.

    Args:
        model: the columns of its tables get the attribute ``exchange``, before a step is traced.
        world: the ranks. With a single process nothing is read, chosen or reported.

    Raises:
        UserError: damaged records.
    """
    if world.size == 1:
        return []
    touched = world.agree(touched_rows(reader))
    table = model.table
    rows, width = table.feature_size, sum(table.widths.values())
    item = model.bias.value.dtype.size
    sizes = [exchanged_bytes(form, touched, rows, width, item) for form in get_args(Traffic)]
    chosen: Traffic = "sharded"
    if table.shards is None:
        chosen = cheapest(world.size, touched, rows) if wanted == "auto" else wanted
        for variable in table.columns.values():
            variable.exchange = chosen
    choice = TableExchange(table.name, tuple(table.widths), rows, touched, chosen, *sizes)
    say(str(choice))
    return [choice]


def cheapest(ranks: int, touched: int, rows: int) -> Form:
    """The cheaper form: gathering all ranks' rows, or summing the whole table around a ring."""
    gathered = (ranks - 1) * touched * _GATHERED_ROW
    return "gather" if gathered <= 2 * (ranks - 1) / ranks * rows else "reduce"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
