"""The variables of a model and its optimizer, divided as a checkpoint stores them."""

from __future__ import annotations

import dataclasses

import keras

from afm_ctr.embedding import EmbeddingTable
from afm_ctr.row_shards import RowShards

LAST_SEEN = "last_seen"


@dataclasses.dataclass(frozen=True)
class TableColumn:
    """One column of an embedding table, or an optimizer's slot of it."""

    table: str
    column: str
    slot: str | None  # None for the weights, else the slot's name
    variable: keras.Variable  # shape ``[V, ...]``, or this rank's rows of a sharded table
    shards: RowShards | None = None  # which rows those are; None: all

    @property
    def key(self) -> str:
        return self.column if self.slot is None else f"{self.column}.{self.slot}"


def tables_of(model: keras.Model) -> list[EmbeddingTable]:
    """The embedding tables of a model, in the order of its layers."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, EmbeddingTable)]


def is_sharded(model: keras.Model) -> bool:
    """Whether the rows of a model's table are sharded over the ranks."""
    return any(table.shards is not None for table in tables_of(model))


def split_variables(model: keras.Model) -> tuple[dict[str, list[keras.Variable]], list[TableColumn]]:
    """All state of a built model and its optimizer: ``{"model": …, "optimizer": …}`` and the tables' columns.

    Variables are identified by their place in the list, not by their path: Keras numbers its default names within a
    process, so the same layer may be ``dropout`` here and ``dropout_3`` there. Seed generators are among the model's
    variables; the metrics are not.
    """
    columns = [
        TableColumn(table.name, name, None, variable, table.shards)
        for table in tables_of(model)
        for name, variable in table.columns.items()
    ]
    columns += [
        TableColumn(table.name, LAST_SEEN, None, table.last_seen, table.shards)
        for table in tables_of(model)
        if table.last_seen is not None
    ]
    in_tables = {id(column.variable) for column in columns}
    dense = [variable for variable in model.variables if id(variable) not in in_tables]
    if getattr(model, "optimizer", None) is None:  # not compiled
        return {"model": dense, "optimizer": []}, columns
    scalars, slots = [], []
    for variable in model.optimizer.variables:
        owner = _owner(variable, columns)
        if owner is None:
            scalars.append(variable)
        else:
            slot = variable.name.removeprefix(_slot_prefix(owner.variable)).strip("_")
            slots.append(TableColumn(owner.table, owner.column, slot, variable, owner.shards))
    return {"model": dense, "optimizer": scalars}, columns + slots


def _slot_prefix(variable: keras.Variable) -> str:
    # The prefix of keras.optimizers.Optimizer.add_variable_from_reference.
    return f"{variable.path.replace('/', '_')}_"


def _owner(variable: keras.Variable, columns: list[TableColumn]) -> TableColumn | None:
    owners = [
        column
        for column in columns
        if variable.name.startswith(_slot_prefix(column.variable))
        and len(variable.shape) > 0
        and variable.shape[0] == column.variable.shape[0]
    ]
    return max(owners, key=lambda column: len(_slot_prefix(column.variable)), default=None)
