"""Reading stretches of shards to arrays: the op in C++, and when it can be used."""

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
    """Whether records are read by the op: wherever its library loads.

    The environment variable ``AFM_CTR_READING`` asks for one form: ``native`` or ``python``.

    Raises:
        UserError: the variable asks for what is not there.
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
    """Records of n blocks as the rows of a batch, padded with zeros; None where the op does not take all of them.

    It takes a record whose checksums match and that is plainly a ``tf.train.Example`` of the contract, with every
    number in its range. It says nothing of the others: the reader in Python does, and knows what is right after all.
    The blocks are read on TensorFlow's threads, without Python's lock. Of the environment variable
    ``AFM_CTR_INSTRUCTIONS`` it takes ``baseline``: checksums and ids without special instructions.

    Args:
        paths: of files; of a tensor (:func:`paths_tensor`) nothing is converted at each call.
        stretches: int64 [n, 6]: the place of a block's file in ``paths``, its first byte, the byte behind its last,
            records in it, and which of them, from one to before another, are to be taken of its order.
        order: uint64 [n, 2], the keys of the blocks' orders (:meth:`afm_ctr.records.EpochOrder.keys`); [0, 2]: file
            order.
        feature_size: ids are in [0, feature_size).
        labelled: whether every row must have a label.
        binary: whether a label must be 0 or 1.

    Returns:
        ``feature_ids`` int64 [rows, F], ``feature_vals`` float32 [rows, F], ``label`` and ``weight`` float32 [rows];
        ``group`` int64 [rows] and ``has_group`` bool [rows]; ``key`` object [rows], of bytes.

    Raises:
        RuntimeError: the library cannot be used.
        tf.errors.InvalidArgumentError: there are no such stretches, or they fill more than the rows.
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
    # The same memory, where ``numpy()`` copies.
    arrays = {name: np.asarray(memoryview(getattr(found, name))) for name in names}
    if keys:
        arrays["key"] = found.key.numpy()
    return arrays


def paths_tensor(paths: Sequence[str]) -> tf.Tensor:
    """Paths as a string tensor [f]."""
    import tensorflow as tf

    with tf.init_scope(), tf.device("/CPU:0"):
        return tf.constant(paths, tf.string, shape=(len(paths),))
