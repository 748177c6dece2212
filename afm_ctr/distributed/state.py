"""The variables of a training run, and their checksums."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.distributed.world import World, is_replicated, raw_variable
from afm_ctr.embedding import assign_rows
from afm_ctr.errors import RunError

_CHUNK_BYTES = 1 << 26


class DistributedError(RunError):
    """The ranks of a job do not fit together any more. The text is one line and the same on every rank."""


def training_state(model: keras.Model) -> dict[str, Any]:
    """All replicated variables of a model and its optimizer by name: weights, statistics, seeds, slots, counters.

    The variables of metrics are not included: every rank counts its own rows.
    """
    return _by_name(list(model.variables), model.optimizer)


def sharded_variables(model: keras.Model) -> list[Any]:
    """The sharded variables of a model and its optimizer; their ``shards`` tell which rows each rank holds."""
    optimizer = getattr(model, "optimizer", None)
    everything = list(model.variables) + (list(optimizer.variables) if optimizer is not None else [])
    return [variable for variable in everything if hasattr(variable, "shards")]


def agreed_state(model: keras.Model) -> dict[str, Any]:
    """The variables of :func:`training_state` that must stay bit-identical on all ranks.

    That excludes what a layer computes from its own rank's rows, such as the moving averages of BatchNormalization.
    """
    variables = [v for v in model.variables if v.trainable or v.name.endswith("seed_generator_state")]
    return _by_name(variables, model.optimizer)


def _by_name(variables: list[Any], optimizer: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for variable in variables + (list(optimizer.variables) if optimizer is not None else []):
        if is_replicated(variable):
            name = base = getattr(variable, "path", variable.name)
            number = 1
            while name in named:
                number += 1
                name = f"{base} ({number})"
            named[name] = variable
    return named


def check_alike(world: World, state: dict[str, Any]) -> None:
    """Check that all ranks hold the same variables, so that one rank's can be broadcast; all ranks must call it.

    Raises:
        DistributedError: they differ in number, shape or dtype.
    """
    kinds = [(name, tuple(v.shape), str(v.dtype)) for name, v in state.items()]
    everyone = world.allgather_object(kinds)
    for rank, theirs in enumerate(everyone):
        if len(theirs) != len(everyone[0]):
            raise DistributedError(
                f"rank 0 has {len(everyone[0])} variables and rank {rank} has {len(theirs)}: the ranks built "
                "different models"
            )
        for first, other in zip(everyone[0], theirs, strict=True):
            if first[1:] != other[1:]:  # names may differ, as Keras numbers layers
                raise DistributedError(
                    f"variable {first[0]} is {first[2]}{list(first[1])} on rank 0 and {other[2]}{list(other[1])} "
                    f"on rank {rank}: the ranks built different models"
                )


def checksum(variable: Any) -> int:
    """CRC-32 of a variable's bytes in row-major order, read block by block."""
    value = 0
    for _, block in blocks_of(variable):
        content: Any = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
        value = zlib.crc32(content, value)
    return value


def blocks_of(variable: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """The content of a variable in blocks of at most 64 MB (or one row), so that it is never held twice, with their
    places, such that ``array[place]`` and ``variable[place]`` are the block's.
    """
    raw = raw_variable(variable)
    if raw.shape.rank == 0:
        yield ..., raw.numpy()
        return
    rows, step = int(raw.shape[0]), block_rows(raw)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        # Not by a slice: for a variable with sparse updates that would copy all of it, once per block.
        yield slice(start, stop), tf.gather(raw, tf.range(start, stop)).numpy()


def block_rows(variable: tf.Variable) -> int:
    """Number of rows in a block of a variable."""
    row_bytes = max(1, variable.dtype.size * int(np.prod(variable.shape[1:])))
    return max(1, _CHUNK_BYTES // row_bytes)


def assign_blocks(variable: Any, array: np.ndarray) -> None:
    """Assign an array to a variable, block by block as :func:`blocks_of` reads it."""
    raw = raw_variable(variable)
    if raw.shape.rank == 0 or array.nbytes <= _CHUNK_BYTES:
        raw.assign(array)
        return
    step = block_rows(raw)
    for start in range(0, len(array), step):
        assign_rows(raw, start, array[start : start + step])
