"""The batches of a model, of whatever kind the rows are that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from afm_ctr.errors import UserError

_BATCH = 1024


def as_batch(data: Any) -> dict[str, tf.Tensor]:
    """A batch as the model reads it: one of the reader as it is, or one of ``(x, label[, weight])``.

    Raises:
        UserError: there is neither.
    """
    x, label, weight = (data, None, None) if isinstance(data, Mapping) else keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(x, Mapping):
        if not tf.is_tensor(x) or x.shape.rank != 2:
            raise UserError("x must be a dict of feature_ids and feature_vals, both [batch, slots], or ids only")
        x = {"feature_ids": tf.cast(x, tf.int64), "feature_vals": tf.ones_like(x, tf.float32)}
    batch = {**x, **{name: value for name, value in (("label", label), ("weight", weight)) if value is not None}}
    for name in ("label", "weight"):
        if name in batch and batch[name].shape.rank == 2:
            batch[name] = tf.squeeze(batch[name], axis=1)
    return batch


def as_batches(x: Any, arguments: dict[str, Any], shuffle: bool = False, epochs: int | None = None) -> Any:
    """Rows in memory, or a reader's, as batches, for which Keras needs no batch size and no shuffle of its own.

    Raises:
        UserError: a DataFrame as it is.
    """
    if hasattr(x, "columns"):
        raise UserError(
            f"a {type(x).__name__} has no ids yet: give the data of afm_ctr.from_pandas(frame, schema), with the "
            "schema of the rows that the model was made for"
        )
    if not hasattr(x, "as_dataset"):
        return x
    arguments["shuffle"] = False  # of Keras: these batches come in their order
    batch_size = arguments.pop("batch_size", None)
    if not hasattr(x, "steps_per_epoch"):
        return x.as_dataset(batch_size or _BATCH, shuffle=bool(shuffle))
    if epochs is None:
        return x.as_dataset(batch_size)
    # One dataset over all epochs, of which Keras takes one after the other: each has an order of its own.
    arguments.setdefault("steps_per_epoch", -(-x.rows // (batch_size or x.batch_size)))
    return x.as_dataset(batch_size, epochs, start=(arguments.get("initial_epoch", 0), 0))
