"""The record: one ``tf.train.Example`` a row; here arrays become bytes, in ``parsing`` bytes become arrays.

Features of a record (F = slots of the schema):

=============  =========  =====================================================================
feature_ids    int64 [F]  id of every slot, 0 = absent
feature_vals   float [F]  value of every slot, 0 where the slot is absent
label          float [1]  missing in unlabelled data
weight         float [1]  missing = 1
group          int64 [1]  Fingerprint64 of the raw group value; missing = outside group AUC
key            bytes [1]  what joins a prediction to its log line
=============  =========  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# Feature.kind of tensorflow/core/example/feature.proto: field number and wire type 2 in one byte.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 0x0A, 0x12, 0x1A


def serialize_examples(
    feature_ids: np.ndarray,
    feature_vals: np.ndarray,
    labels: np.ndarray | None,
    weights: np.ndarray | None,
    groups: tuple[np.ndarray, np.ndarray] | None,
    keys: Sequence[bytes],
) -> list[bytes]:
    """Rows to serialized ``tf.train.Example`` messages.

    The bytes are those of ``Example.SerializeToString(deterministic=True)`` (map entries sorted by name), written
    without building the messages: a message a row in Python costs several times the rest of the job's work on it.

    Args:
        feature_ids: int64 [n, F].
        feature_vals: float32 [n, F], finite.
        labels: float32 [n], nan = this row has no label; None = no row has one.
        weights: float32 [n], finite; None = no weight feature.
        groups: (int64 [n], bool [n]): values, and which rows have one; None = no group feature.
        keys: n byte strings.

    Returns:
        n serialized Examples.

    Raises:
        ValueError: shapes that do not agree, or values that are not finite.
    """
    ids = np.ascontiguousarray(feature_ids, dtype=np.int64)
    vals = np.ascontiguousarray(feature_vals, dtype="<f4")
    if ids.ndim != 2 or ids.shape != vals.shape or ids.shape[1] == 0:
        raise ValueError(f"feature_ids {ids.shape} and feature_vals {vals.shape} must both be [n, F], F > 0")
    rows = len(ids)
    if not np.isfinite(vals).all():
        raise ValueError("feature_vals must be finite")
    if len(keys) != rows:
        raise ValueError(f"{len(keys)} keys for {rows} rows")
    id_bytes, id_ends = _varints(ids)
    val_bytes, val_width = vals.tobytes(), 4 * vals.shape[1]
    val_head = _head(b"feature_vals", _FLOAT_LIST, val_width)
    group_parts = _group_parts(groups, rows)
    label_parts = _float_parts(b"label", labels, rows)
    weight_parts = _float_parts(b"weight", weights, rows)
    if weights is not None and not all(weight_parts):
        raise ValueError("weights must be finite")
    out: list[bytes] = []
    start = 0
    for row in range(rows):
        end = id_ends[row]
        body = b"".join(
            (
                _head(b"feature_ids", _INT64_LIST, end - start),
                id_bytes[start:end],
                val_head,
                val_bytes[row * val_width : (row + 1) * val_width],
                group_parts[row],
                _head(b"key", _BYTES_LIST, len(keys[row])),
                keys[row],
                label_parts[row],
                weight_parts[row],
            )
        )
        out.append(b"\x0a" + _varint(len(body)) + body)
        start = end
    return out


@lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(maxsize=4096)
def _head(name: bytes, kind: int, length: int) -> bytes:
    """All of a map entry (``name`` -> Feature) that comes before its ``length`` bytes of payload.

    The three list messages look alike on the wire: packed numbers and a single byte string are both field 1 with a
    length.
    """
    inner = b"\x0a" + _varint(length)
    listed = bytes([kind]) + _varint(len(inner) + length) + inner
    entry = b"\x0a" + _varint(len(name)) + name + b"\x12" + _varint(len(listed) + length) + listed
    return b"\x0a" + _varint(len(entry) + length) + entry


def _varints(values: np.ndarray) -> tuple[bytes, list[int]]:
    """Base-128 numbers of int64 [n, F], row after row, and where each row ends. Negative ones take ten bytes."""
    flat = values.reshape(-1).view(np.uint64)
    largest = int(flat.max(initial=0))
    width = max(1, -(-largest.bit_length() // 7))
    left: np.ndarray = flat.astype(np.uint32 if largest < 2**32 else np.uint64)
    # Every number gets the bytes of the largest; those that it does not need are thrown out in one pass.
    spread, used = np.empty((len(flat), width), np.uint8), np.empty((len(flat), width), bool)
    used[:, 0] = True
    for place in range(width):
        spread[:, place] = left.astype(np.uint8) & np.uint8(0x7F)
        left = left >> 7
        if place + 1 < width:
            more = left != 0
            used[:, place + 1] = more
            spread[:, place] |= more.view(np.uint8) << np.uint8(7)
    ends = np.cumsum(used.reshape(*values.shape, width).sum(axis=(1, 2)))
    return spread.reshape(-1).compress(used.reshape(-1)).tobytes(), ends.tolist()


def _float_parts(name: bytes, values: np.ndarray | None, rows: int) -> list[bytes]:
    """One map entry a row; empty where there is no value (nan)."""
    if values is None:
        return [b""] * rows
    numbers = np.ascontiguousarray(values, dtype="<f4")
    if numbers.shape != (rows,):
        raise ValueError(f"{name.decode()} {numbers.shape} must be [{rows}]")
    if np.isinf(numbers).any():
        raise ValueError(f"{name.decode()} must be finite")
    head, data = _head(name, _FLOAT_LIST, 4), numbers.tobytes()
    missing = np.isnan(numbers).tolist()
    return [b"" if missing[i] else head + data[4 * i : 4 * i + 4] for i in range(rows)]


def _group_parts(groups: tuple[np.ndarray, np.ndarray] | None, rows: int) -> list[bytes]:
    if groups is None:
        return [b""] * rows
    values, present = np.ascontiguousarray(groups[0], dtype=np.int64), np.asarray(groups[1], dtype=bool)
    if values.shape != (rows,) or present.shape != (rows,):
        raise ValueError(f"groups {values.shape} and their mask {present.shape} must both be [{rows}]")
    data, ends = _varints(values[:, None])
    starts = [0, *ends[:-1]]
    return [
        _head(b"group", _INT64_LIST, end - start) + data[start:end] if there else b""
        for start, end, there in zip(starts, ends, present.tolist(), strict=True)
    ]
