"""The record format: one ``tf.train.Example`` per row; this module writes it, ``parsing`` reads it.

Features of a record (F = slots of the schema):

=============  =========  =====================================================================
feature_ids    int64 [F]  id of every slot, 0 = absent
feature_vals   float [F]  value of every slot, 0 where the slot is absent
label          float [1]  missing in unlabelled data
weight         float [1]  missing = 1
group          int64 [1]  Fingerprint64 of the raw group value; missing = outside group AUC
key            bytes [1]  joins a prediction to its log line
=============  =========  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from afm_ctr import native
from afm_ctr.records.framing import FramedRecords

# Feature.kind of tensorflow/core/example/feature.proto: field number and wire type 2 in one byte.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 0x0A, 0x12, 0x1A


def serialize_examples(*columns: Any, **named: Any) -> list[bytes]:
    """n serialized Examples: the records of :func:`framed_examples`, with its arguments, without the frames."""
    return list(framed_examples(*columns, **named))


def framed_examples(
    feature_ids: np.ndarray,
    feature_vals: np.ndarray,
    labels: np.ndarray | None,
    weights: np.ndarray | None,
    groups: tuple[np.ndarray, np.ndarray] | None,
    keys: Sequence[bytes],
    rows: np.ndarray | None = None,
) -> FramedRecords:
    """Rows to serialized ``tf.train.Example`` messages, framed as in a shard.

    The bytes are those of ``Example.SerializeToString(deterministic=True)`` (map entries sorted by name), written
    without building the messages: in C++ if the library is built.

    Args:
        feature_ids: int64 [n, F].
        feature_vals: float32 [n, F], finite.
        labels: float32 [n], nan = this row has no label; None = no row has one.
        weights: float32 [n], finite; None = no weight feature.
        groups: (int64 [n], bool [n]): values, and which rows have one; None = no group feature.
        keys: n byte strings.
        rows: int64 [n], the rows of ``feature_ids`` and ``feature_vals`` to take; None = all.

    Raises:
        ValueError: shapes that do not agree, rows that are not there, or values that are not finite.
    """
    ids = np.ascontiguousarray(feature_ids, dtype=np.int64)
    vals = np.ascontiguousarray(feature_vals, dtype="<f4")
    if ids.ndim != 2 or ids.shape != vals.shape or ids.shape[1] == 0:
        raise ValueError(f"feature_ids {ids.shape} and feature_vals {vals.shape} must both be [n, F], F > 0")
    if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < len(ids):
        raise ValueError(f"rows must lie in [0, {len(ids)})")
    count = len(ids) if rows is None else len(rows)
    if len(keys) != count:
        raise ValueError(f"{len(keys)} keys for {count} rows")
    labels, weights = _checked("label", labels, count), _checked("weight", weights, count)
    if weights is not None and np.isnan(weights).any():
        raise ValueError("weights must be finite")
    if groups is not None:
        groups = np.ascontiguousarray(groups[0], dtype=np.int64), np.asarray(groups[1], dtype=bool)
        if groups[0].shape != (count,) or groups[1].shape != (count,):
            raise ValueError(f"groups {groups[0].shape} and their mask {groups[1].shape} must both be [{count}]")
    if native.prepares():
        return FramedRecords(*native.frame_examples(ids, vals, labels, weights, groups, keys, rows))
    if rows is not None:
        ids, vals = ids[rows], vals[rows]
    if not np.isfinite(vals).all():
        raise ValueError("feature_vals must be finite")
    return FramedRecords.of(_records(ids, vals, labels, weights, groups, keys))


def _records(
    ids: np.ndarray,
    vals: np.ndarray,
    labels: np.ndarray | None,
    weights: np.ndarray | None,
    groups: tuple[np.ndarray, np.ndarray] | None,
    keys: Sequence[bytes],
) -> list[bytes]:
    """The records of :func:`framed_examples`, in Python."""
    columns = [
        _entries(b"feature_ids", _INT64_LIST, _varints(ids)),
        _entries(b"feature_vals", _FLOAT_LIST, _floats(vals)),
        _entries(b"key", _BYTES_LIST, keys),
    ]
    if groups is not None:
        numbers = zip(_varints(groups[0][:, None]), groups[1].tolist(), strict=True)
        columns.insert(2, _entries(b"group", _INT64_LIST, (text if there else None for text, there in numbers)))
    for name, values in ((b"label", labels), (b"weight", weights)):
        if values is not None:
            texts = zip(_floats(values[:, None]), np.isnan(values).tolist(), strict=True)
            columns.append(_entries(name, _FLOAT_LIST, (None if none else text for text, none in texts)))
    rows = map(b"".join, zip(*columns, strict=True))
    return [b"\x0a" + varint(len(row)) + row for row in rows]


@lru_cache(maxsize=4096)
def varint(value: int) -> bytes:
    """A number in base 128, as in protobuf."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(maxsize=4096)
def _head(name: bytes, kind: int, length: int) -> bytes:
    """The part of a map entry (``name`` -> Feature) before its ``length`` bytes of payload.

    The three list messages are alike on the wire: packed numbers and a single byte string are both field 1 with a
    length.
    """
    inner = b"\x0a" + varint(length)
    listed = bytes([kind]) + varint(len(inner) + length) + inner
    entry = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(listed) + length) + listed
    return b"\x0a" + varint(len(entry) + length) + entry


def _entries(name: bytes, kind: int, payloads: Iterable[bytes | None]) -> list[bytes]:
    """One map entry per row; nothing for None."""
    return [b"" if text is None else _head(name, kind, len(text)) + text for text in payloads]


def _varints(values: np.ndarray) -> list[bytes]:
    """Base-128 numbers of int64 [n, F], one byte string per row. Negative ones take ten bytes."""
    numbers = values.view(np.uint64)[..., None]
    bits = int(numbers.max(initial=0)).bit_length()
    kind = np.uint32 if bits <= 32 else np.uint64
    left = np.right_shift(numbers.astype(kind), np.arange(0, max(bits, 1), 7).astype(kind))
    used = left > 0
    used[..., 0] = True
    digits = (left & 0x7F).astype(np.uint8)
    digits[..., :-1] |= used[..., 1:].astype(np.uint8) << 7
    return _cut(digits[used].tobytes(), np.count_nonzero(used, axis=(1, 2)))


def _floats(values: np.ndarray) -> list[bytes]:
    """float32 [n, F], one byte string per row."""
    return _cut(values.tobytes(), np.full(len(values), 4 * values.shape[1]))


def _cut(text: bytes, sizes: np.ndarray) -> list[bytes]:
    """Consecutive pieces of a text, by their sizes, int64 [n]."""
    ends = np.cumsum(sizes)
    return [text[a:b] for a, b in zip((ends - sizes).tolist(), ends.tolist(), strict=True)]


def _checked(name: str, values: np.ndarray | None, rows: int) -> np.ndarray | None:
    if values is None:
        return None
    numbers = np.ascontiguousarray(values, dtype="<f4")
    if numbers.shape != (rows,):
        raise ValueError(f"{name} {numbers.shape} must be [{rows}]")
    if np.isinf(numbers).any():
        raise ValueError(f"{name} must be finite")
    return numbers
