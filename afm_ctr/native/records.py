"""Reads blocks of shards into arrays: the C++ op, and whether it can be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from afm_ctr.native.op import BUILD, INSTRUCTIONS, asked_for, load

if TYPE_CHECKING:
    import tensorflow as tf

READING = "AFM_CTR_READING"


def reads_records() -> bool:
    """Whether the op reads records: if its library loads.

    The environment variable ``AFM_CTR_READING`` chooses a form: ``native`` or ``python``.

    Raises:
        UserError: the variable chooses a form that is not available.
    """
    return asked_for(READING, "native", "python", load().reason)


def read_records(
    paths: Sequence[str] | tf.Tensor,
    stretches: np.ndarray,
    order: np.ndarray,
    *,
    rows: int,
    slots: int,
    feature_size: int,
    labelled: bool,
    binary: bool,
    groups: bool,
    keys: bool,
) -> dict[str, np.ndarray] | None:
    """Records of n blocks as the rows of a batch, padded with zeros; None if the op cannot read all of them.

    It reads records with matching checksums that are simple ``tf.train.Example`` messages of the contract with all
    numbers in range. Other records are left to the reader in Python, which reports what is wrong or accepts them.
    The blocks are read on TensorFlow's threads, without Python's GIL. ``AFM_CTR_INSTRUCTIONS=baseline`` computes
    checksums and ids without special instructions.

    Args:
        paths: paths of files; a tensor (:func:`paths_tensor`) avoids converting them at each call.
        stretches: int64 [n, 6]: the index of a block's file in ``paths``, its start and end (exclusive) in bytes, its
            number of records, and the range (end exclusive) of records to take in its order.
        order: uint64 [n, 2], the keys of the blocks' orders (:meth:`afm_ctr.records.EpochOrder.keys`); [0, 2]: file
            order.
        feature_size: ids must be in [0, feature_size).
        labelled: whether every row must have a label.
        binary: whether a label must be 0 or 1.

    Returns:
        ``feature_ids`` int64 [rows, F], ``feature_vals`` float32 [rows, F], ``label`` and ``weight`` float32 [rows];
        ``group`` int64 [rows] and ``has_group`` bool [rows]; ``key`` object [rows], of bytes.

    Raises:
        RuntimeError: the library cannot be used.
        tf.errors.InvalidArgumentError: invalid blocks, or more records than rows.
    """
    loaded = load()
    if loaded.module is None:
        raise RuntimeError(f"reading records: {loaded.reason}; build it by `{BUILD}`")
    import tensorflow as tf

    with tf.device("/CPU:0"):
        found = loaded.module.afm_ctr_read_records(
            paths=paths if isinstance(paths, tf.Tensor) else paths_tensor(paths),
            stretches=stretches,
            keys=order,
            rows=rows,
            slots=slots,
            feature_size=feature_size,
            labelled=labelled,
            binary=binary,
            with_groups=groups,
            with_keys=keys,
            portable=os.environ.get(INSTRUCTIONS) == "baseline",
        )
    if not found.good.numpy():
        return None
    names = ["feature_ids", "feature_vals", "label", "weight", *(["group", "has_group"] if groups else [])]
    # Shares the memory; ``numpy()`` would copy.
    arrays = {name: np.asarray(memoryview(getattr(found, name))) for name in names}
    if keys:
        arrays["key"] = found.key.numpy()
    return arrays


def paths_tensor(paths: Sequence[str]) -> tf.Tensor:
    """Paths as a string tensor [f]."""
    import tensorflow as tf

    with tf.init_scope(), tf.device("/CPU:0"):
        return tf.constant(paths, tf.string, shape=(len(paths),))
