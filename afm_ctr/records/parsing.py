"""Serialized records to arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from afm_ctr.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

_CONTRACT = {
    "feature_ids": "int64 [{F}]",
    "feature_vals": "float [{F}]",
    "label": "float [1] or absent",
    "weight": "float [1] or absent",
    "group": "int64 [1] or absent",
    "key": "bytes [1] or absent",
}
_ONE_GROUP = "group must be int64 [1] or absent"


class BadRecordError(UserError):
    """A record that does not follow the format."""

    def __init__(self, what: str, index: int) -> None:
        super().__init__(f"record {index} of the batch is not of this schema: {what}")
        self.what = what
        self.index = index


def parse_examples(serialized: tf.Tensor | Sequence[bytes], num_slots: int) -> dict[str, np.ndarray]:
    """Serialized Examples to arrays.

    One op without TensorFlow's Python layers over it, which cost milliseconds per batch of any size. The ``examples``
    signature reads the same features, but only those that a score needs: ids and values.

    Args:
        serialized: string [n].
        num_slots: F of the schema that wrote the records.

    Returns:
        ``feature_ids`` int64 [n, F], ``feature_vals`` float32 [n, F], ``label`` float32 [n] (nan = missing),
        ``weight`` float32 [n] (1 = missing), ``group`` int64 [n], ``has_group`` bool [n], ``key`` bytes [n] (object).

    Raises:
        BadRecordError: naming the record and the feature.
    """
    import tensorflow as tf

    with tf.device("/CPU:0"):
        records = serialized if tf.is_tensor(serialized) else tf.constant(serialized, tf.string)
        try:
            return _parse(records, num_slots)
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
            # The parser does not always name the record: parse one by one.
            for index in range(len(records)):
                try:
                    _parse(records[index : index + 1], num_slots)
                except tf.errors.InvalidArgumentError as error:
                    raise BadRecordError(_explain(str(error), num_slots), index) from None
                except UnicodeDecodeError as error:  # of TensorFlow's message, which contains bytes of the record
                    raise BadRecordError(_explain(error.object.decode(errors="replace"), num_slots), index) from None
            raise


_DENSE = ("feature_ids", "feature_vals", "key", "label", "weight")


@cache
def _constants() -> dict[str, Any]:
    import tensorflow as tf

    none = tf.zeros([0], tf.string)
    defaults = [
        tf.zeros([0], tf.int64),
        tf.zeros([0]),
        tf.constant(b""),
        tf.constant(np.nan, tf.float32),
        tf.ones([]),
    ]
    return {
        "names": none,
        "sparse_keys": none,
        "dense_keys": tf.constant(_DENSE),
        "ragged_keys": tf.constant(["group"]),
        "dense_defaults": defaults,
    }


def _parse(records: tf.Tensor, num_slots: int) -> dict[str, np.ndarray]:
    import tensorflow as tf

    found = tf.raw_ops.ParseExampleV2(
        serialized=records,
        **_constants(),
        num_sparse=0,
        sparse_types=[],
        ragged_value_types=[tf.int64],
        ragged_split_types=[tf.int64],
        dense_shapes=[[num_slots], [num_slots], [], [], []],
    )
    parsed = {name: value.numpy() for name, value in zip(_DENSE, found.dense_values, strict=True)}
    splits = found.ragged_row_splits[0].numpy()
    counts = np.diff(splits)
    if counts.size and counts.max() > 1:
        raise tf.errors.InvalidArgumentError(None, None, _ONE_GROUP)
    parsed["has_group"] = counts > 0
    parsed["group"] = np.zeros(len(counts), np.int64)
    parsed["group"][parsed["has_group"]] = found.ragged_values[0].numpy()
    return parsed


def _explain(message: str, num_slots: int) -> str:
    """What is wrong with a record, from the parser's message."""
    text = " ".join(message.split())
    name = next((n for n in _CONTRACT if re.search(rf"\b{n}\b", text)), None)
    # After these words come the bytes of a record that is not an Example, which may contain any name.
    if name is None or "Could not parse example input" in text:
        return "it is not a tf.train.Example"
    return f"{name} must be {_CONTRACT[name].format(F=num_slots)}"
