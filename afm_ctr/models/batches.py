"""Turns the inputs of ``fit``, ``evaluate`` and ``predict`` into batches of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr.errors import UserError, in_graph
from afm_ctr.forked import refuse_forked

_BATCH = 1024
_X = "x must be a dict of feature_ids and feature_vals, both [batch, slots], or ids only"


def as_batch(data: Any, num_slots: int) -> dict[str, tf.Tensor]:
    """A batch as the model reads it: one of the reader, unchanged, or one of ``(x, label[, weight])``.

    Raises:
        UserError: it is neither, or ids or values are not ``[B, num_slots]``.
    """
    x, label, weight = (data, None, None) if isinstance(data, Mapping) else keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(x, Mapping):
        if not isinstance(x, tf.Tensor) or x.shape.rank != 2:
            raise UserError(_X)
        x = {"feature_ids": x, "feature_vals": tf.ones_like(x, tf.float32)}
    batch = {**x, **{name: value for name, value in (("label", label), ("weight", weight)) if value is not None}}
    for name in ("feature_ids", "feature_vals"):
        if not isinstance(batch.get(name), tf.Tensor):
            raise UserError(f"{_X}; there is {'no' if name not in batch else 'another kind of'} {name}")
        if not batch[name].shape.is_compatible_with([None, num_slots]):
            raise UserError(
                f"{name} must be [batch, {num_slots}], got {batch[name].shape}: the model has these slots"
            )
        if batch[name].shape.rank != 2 or batch[name].shape[1] is None:  # Keras traced it after another width
            wrong = in_graph(f"{name} must be [batch, {num_slots}]: the model has these slots")
            with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(batch[name])[1:], [num_slots], wrong)]):
                batch[name] = tf.ensure_shape(batch[name], [None, num_slots])
    if not batch["feature_ids"].dtype.is_integer:
        raise UserError(f"feature_ids must be integers, got {batch['feature_ids'].dtype.name}")
    batch["feature_ids"] = tf.cast(batch["feature_ids"], tf.int64)
    for name in ("label", "weight"):
        if name in batch and batch[name].shape.rank == 2:
            batch[name] = tf.squeeze(batch[name], axis=1)
    return batch


def check_batch_size(batch_size: Any) -> None:
    """Raise UserError unless ``batch_size`` is a whole number of at least 1."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UserError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")


def as_batches(
    x: Any, y: Any, arguments: dict[str, Any], model: Any, shuffle: bool = False, epochs: int | None = None
) -> tuple[Any, Any]:
    """x and y for Keras: rows in memory, or a reader's, as batches; arrays after a check.

    Args:
        x: as in :meth:`CTRModel.fit`.
        arguments: of Keras; changed to match.
        epochs: of a reader; None: one, of any number.

    Raises:
        UserError: a raw DataFrame, no rows, or invalid arrays or arguments.
    """
    refuse_forked()
    batch_size = arguments.get("batch_size")
    if batch_size is not None:
        check_batch_size(batch_size)
    if hasattr(x, "columns"):
        raise UserError(
            f"a {type(x).__name__} has no ids yet: give the data of afm_ctr.from_pandas(frame, schema), with the "
            "schema of the rows that the model was made for"
        )
    if x is None:
        raise UserError(_X)
    if not hasattr(x, "as_dataset"):
        return _of_keras(x, y, arguments, model)
    if x.schema.num_slots != model.num_slots or x.schema.feature_size > model.feature_size:
        raise UserError(
            f"the rows have {x.schema.num_slots} slots and {x.schema.feature_size:,} ids, the model "
            f"{model.num_slots} and {model.feature_size:,}: read them by the schema that the model was made for"
        )
    for name, given in (("y", y), ("sample_weight", arguments.get("sample_weight"))):
        if given is not None:
            raise UserError(f"{name}: the rows of a {type(x).__name__} have their own; give arrays to have others")
    if arguments.get("validation_split"):
        raise UserError("validation_split is for arrays; give validation_data, such as data.take(slice(-500, None))")
    arguments["shuffle"] = False  # Keras must not shuffle: the batches are in order
    arguments.pop("batch_size", None)
    classes = arguments.pop("class_weight", None)
    if not hasattr(x, "steps_per_epoch"):
        if not len(x):
            raise UserError("there are no rows")
        return _by_class(x.as_dataset(batch_size or _BATCH, shuffle=bool(shuffle)), classes), None
    if epochs is None:
        return x.as_dataset(batch_size), None
    # One dataset over all epochs, from which Keras takes one after the other: each has its own order.
    arguments.setdefault("steps_per_epoch", -(-x.rows // (batch_size or x.batch_size)))
    return _by_class(x.as_dataset(batch_size, epochs, start=(arguments.get("initial_epoch", 0), 0)), classes), None


def _by_class(batches: tf.data.Dataset, classes: Mapping[int, float] | None) -> tf.data.Dataset:
    """Batches whose weights are multiplied by those of Keras' ``class_weight``."""
    if not classes or "label" not in batches.element_spec:
        return batches
    no, yes = (float(classes.get(label, 1.0)) for label in (0, 1))

    def weighted(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        weight = tf.where(tf.equal(batch["label"], 1), yes, no)
        return {**batch, "weight": weight * batch["weight"] if "weight" in batch else weight}

    return batches.map(weighted)


def as_validation(given: Any, batch_size: int | None, model: Any) -> Any:
    """``validation_data`` of Keras: rows as :func:`as_batches` takes them, or ``(x, y[, weight])`` of arrays."""
    arguments = {"batch_size": batch_size}
    if not isinstance(given, tuple):
        return as_batches(given, None, arguments, model)[0]
    x, y, weight = keras.utils.unpack_x_y_sample_weight(given)
    arguments["sample_weight"] = weight
    x, y = as_batches(x, y, arguments, model)
    return (x, y) if weight is None else (x, y, arguments["sample_weight"])


def _of_keras(x: Any, y: Any, arguments: dict[str, Any], model: Any) -> tuple[Any, Any]:
    """x and y; arrays after a check of their numbers."""
    if isinstance(x, tf.data.Dataset) and isinstance(x.element_spec, Mapping) and arguments.get("class_weight"):
        x = _by_class(x, arguments.pop("class_weight"))
    held = x if isinstance(x, Mapping) else {"feature_ids": x}
    if not all(isinstance(values, list | np.ndarray | tf.Tensor) for values in held.values()):
        return x, y
    split = arguments.get("validation_split") or 0.0
    if not 0 <= split < 1:
        raise UserError(f"validation_split must be between 0 and 1, got {split!r}")
    held = {name: np.asarray(values) for name, values in held.items()}
    if "feature_ids" not in held:
        raise UserError(f"{_X}; there is no feature_ids")
    ids = held["feature_ids"]
    if ids.dtype.kind not in "iu" or ids.ndim != 2 or ids.shape[1] != model.num_slots:
        shape = f"[rows, {model.num_slots}]"
        raise UserError(f"feature_ids must be integers {shape}, got {ids.dtype} {list(ids.shape)}; {_X}")
    if not len(ids):
        raise UserError("there are no rows")
    _refuse("feature_ids", ids, (ids < 0) | (ids >= model.feature_size), f"outside [0, {model.feature_size})")
    if "feature_vals" in held:
        values = _numbers("feature_vals", held["feature_vals"], ids.shape)
        _refuse("feature_vals", values, (ids != 0) & ~np.isfinite(values), "not finite")
    weight = held.get("weight", arguments.get("sample_weight"))
    counts = np.ones(len(ids), bool)
    if weight is not None:
        weight = _numbers("weight" if "weight" in held else "sample_weight", weight, (len(ids),))
        _refuse("weight", weight, ~(np.isfinite(weight) & (weight >= 0)), "not a finite number of at least 0")
        counts = weight > 0
    label = held.get("label", y)
    if label is not None:
        label = _numbers("label" if "label" in held else "y", label, (len(ids),))
        if model.label_kind == "real":
            _refuse("label", label, counts & ~np.isfinite(label), "not finite")
        else:  # also refuses nan
            _refuse("label", label, counts & ~((label >= 0) & (label <= 1)), "outside [0, 1]")
    if arguments.get("sample_weight") is not None:
        arguments["sample_weight"] = weight
    return held if isinstance(x, Mapping) else ids, label if y is not None else y


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The values as float32 of a shape; ``[n, 1]`` counts as ``[n]``."""
    found = np.asarray(values)
    if found.dtype.kind not in "biuf" or found.shape not in (shape, (*shape, 1)):
        raise UserError(f"{name} must be numbers {list(shape)}, got {found.dtype} {list(found.shape)}")
    return found.reshape(shape).astype(np.float32, copy=False)


def _refuse(name: str, values: np.ndarray, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        where = f"row {place[0]}" + (f", slot {place[1]}" if len(place) > 1 else "")
        raise UserError(f"{name}: {where}: {values[tuple(place)]} is {what}")
