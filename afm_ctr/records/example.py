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

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from afm_ctr import native
from afm_ctr.records.framing import FOOTER_BYTES, FramedRecords, header

# Feature.kind of tensorflow/core/example/feature.proto: field number and wire type 2 in one byte.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 0x0A, 0x12, 0x1A
# Bytes of keys, filled up to the longest of them, that are laid out at once: one long key must not cost all rows.
_MOST_KEY_BYTES = 4 << 20


class _Part(NamedTuple):
    """A piece of every row, in columns as wide as the longest: uint8 [n, w], and which bytes count: bool [n, w]."""

    bytes: np.ndarray
    used: np.ndarray | None  # None: all
    sizes: np.ndarray | int  # bytes that count, int64 [n]


def serialize_examples(*columns: Any, **named: Any) -> list[bytes]:
    """n serialized Examples: :func:`framed_examples`, with its arguments, without the frames."""
    return list(framed_examples(*columns, **named))


def framed_examples(
    feature_ids: np.ndarray,
    feature_vals: np.ndarray,
    labels: np.ndarray | None,
    weights: np.ndarray | None,
    groups: tuple[np.ndarray, np.ndarray] | None,
    keys: Sequence[bytes],
) -> FramedRecords:
    """Rows to serialized ``tf.train.Example`` messages, framed as they lie in a shard.

    The bytes are those of ``Example.SerializeToString(deterministic=True)`` (map entries sorted by name), written
    without building the messages, and for all rows at once: they are laid out in columns as wide as the longest row
    needs, and what no row fills is left out in one pass. NumPy leaves Python's lock free for most of it.

    Args:
        feature_ids: int64 [n, F].
        feature_vals: float32 [n, F], finite.
        labels: float32 [n], nan = this row has no label; None = no row has one.
        weights: float32 [n], finite; None = no weight feature.
        groups: (int64 [n], bool [n]): values, and which rows have one; None = no group feature.
        keys: n byte strings.

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
    labels, weights = _checked("label", labels, rows), _checked("weight", weights, rows)
    if weights is not None and np.isnan(weights).any():
        raise ValueError("weights must be finite")
    if groups is not None:
        groups = np.ascontiguousarray(groups[0], dtype=np.int64), np.asarray(groups[1], dtype=bool)
        if groups[0].shape != (rows,) or groups[1].shape != (rows,):
            raise ValueError(f"groups {groups[0].shape} and their mask {groups[1].shape} must both be [{rows}]")
    if native.prepares():
        return FramedRecords(*native.frame_examples(ids, vals, labels, weights, groups, keys))
    keys = list(keys)
    key_sizes = np.fromiter(map(len, keys), np.int64, rows)

    def laid_out(start: int, end: int) -> list[FramedRecords]:
        longest = int(key_sizes[start:end].max(initial=0))
        if end - start > 1 and longest * (end - start) > _MOST_KEY_BYTES:
            middle = (start + end) // 2
            return [*laid_out(start, middle), *laid_out(middle, end)]
        some = slice(start, end)
        entries = [
            *_entry(b"feature_vals", _FLOAT_LIST, _whole(vals[some])),
            *_group(groups, some),
            *_entry(b"key", _BYTES_LIST, _texts(keys[some], key_sizes[some], longest)),
            *_number(b"label", labels, some),
            *_number(b"weight", weights, some),
        ]
        return [_framed(_varints(ids[some]), entries)]

    return FramedRecords.joined(laid_out(0, rows) if rows else [])


def _framed(ids: _Part, entries: list[_Part]) -> FramedRecords:
    """Records of the ids' bytes and of the map entries that follow."""
    rows = len(ids.bytes)
    id_sizes, after = np.broadcast_to(ids.sizes, rows), sum(part.sizes for part in entries)

    def start(both: int) -> bytes:
        id_size, behind = divmod(both, 1 << 32)
        head = _head(b"feature_ids", _INT64_LIST, id_size)
        begin = b"\x0a" + varint(len(head) + id_size + behind) + head
        return header(len(begin) + id_size + behind) + begin

    starts = _by_size((id_sizes << 32) + after, start)
    footers = _Part(np.zeros((rows, FOOTER_BYTES), np.uint8), None, FOOTER_BYTES)
    parts = [starts, ids, *entries, footers]
    width = sum(part.bytes.shape[1] for part in parts)
    laid, used = np.empty((rows, width), np.uint8), np.ones((rows, width), bool)
    place = 0
    for part in parts:
        columns = slice(place, place := place + part.bytes.shape[1])
        laid[:, columns] = part.bytes
        if part.used is not None:
            used[:, columns] = part.used
    return FramedRecords.without_footers(laid[used], starts.sizes + id_sizes + after + FOOTER_BYTES)


@lru_cache(maxsize=4096)
def varint(value: int) -> bytes:
    """A number in base 128, as protobuf writes it."""
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
    inner = b"\x0a" + varint(length)
    listed = bytes([kind]) + varint(len(inner) + length) + inner
    entry = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(listed) + length) + listed
    return b"\x0a" + varint(len(entry) + length) + entry


def _by_size(sizes: np.ndarray, text: Callable[[int], bytes]) -> _Part:
    """A text a row that is a function of a number, int64 [n]; few numbers occur."""
    distinct, which = np.unique(sizes, return_inverse=True)
    texts = [text(size) for size in distinct.tolist()]
    lengths = np.array([len(one) for one in texts])
    few = _texts(texts, lengths, int(lengths.max()))
    return _Part(few.bytes[which], None if few.used is None else few.used[which], lengths[which])


def _texts(texts: Sequence[bytes], sizes: np.ndarray, longest: int) -> _Part:
    """Byte strings: [n] of some lengths."""
    filled = np.array(texts, f"S{max(longest, 1)}").view(np.uint8).reshape(len(texts), -1)[:, :longest]
    used = None if (sizes == longest).all() else np.arange(longest) < sizes[:, None]
    return _Part(filled, used, sizes)


def _whole(values: np.ndarray) -> _Part:
    """Numbers of fixed width, [n, ...]."""
    made = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    return _Part(made, None, made.shape[1])


def _varints(values: np.ndarray) -> _Part:
    """Base-128 numbers of int64 [n, F], row after row. Negative ones take ten bytes."""
    numbers: np.ndarray = values.view(np.uint64)
    largest = int(numbers.max(initial=0))
    if largest < 2**32:
        numbers = numbers.astype(np.uint32)
    # Four bytes, which hold 28 bits, are a word: little endian, the first one lowest.
    words = max(1, -(-largest.bit_length() // 28))
    made, used = (np.empty((*values.shape, words), "<u4") for _ in range(2))
    for word in range(words):
        bits = (numbers & 0x0FFFFFFF).astype(np.uint32)
        there = (numbers != 0).astype(np.uint32) if word else np.uint32(1)
        for place in (1, 2, 3):
            there = there | (numbers >= 1 << 7 * place).astype(np.uint32) << np.uint32(8 * place)
        more = (there >> np.uint32(8)) * np.uint32(0x80)
        if word + 1 < words:
            more |= (numbers >= 1 << 28).astype(np.uint32) << np.uint32(31)
        made[..., word] = more | bits & 0x7F | (bits & 0x3F80) << 1 | (bits & 0x1FC000) << 2 | (bits & 0xFE00000) << 3
        used[..., word] = there
        numbers = numbers >> 28
    kept = used.reshape(len(values), -1).view(bool)
    return _Part(made.reshape(len(values), -1).view(np.uint8), kept, np.count_nonzero(kept, axis=1))


def _entry(name: bytes, kind: int, payload: _Part) -> tuple[_Part, _Part]:
    """A map entry in two parts, the second its payload."""
    if isinstance(payload.sizes, int):
        head = np.frombuffer(_head(name, kind, payload.sizes), np.uint8)
        heads = _Part(np.broadcast_to(head, (len(payload.bytes), len(head))), None, len(head))
    else:
        heads = _by_size(payload.sizes, lambda size: _head(name, kind, size))
    return heads, payload


def _only(there: np.ndarray, parts: Sequence[_Part]) -> list[_Part]:
    """An entry that only some rows, bool [n], have."""
    if there.all():
        return list(parts)
    return [
        _Part(
            part.bytes,
            np.broadcast_to(there[:, None], part.bytes.shape) if part.used is None else part.used & there[:, None],
            np.where(there, part.sizes, 0),
        )
        for part in parts
    ]


def _checked(name: str, values: np.ndarray | None, rows: int) -> np.ndarray | None:
    if values is None:
        return None
    numbers = np.ascontiguousarray(values, dtype="<f4")
    if numbers.shape != (rows,):
        raise ValueError(f"{name} {numbers.shape} must be [{rows}]")
    if np.isinf(numbers).any():
        raise ValueError(f"{name} must be finite")
    return numbers


def _number(name: bytes, values: np.ndarray | None, some: slice) -> list[_Part]:
    """A float a row; none where it is nan."""
    if values is None:
        return []
    return _only(~np.isnan(values[some]), _entry(name, _FLOAT_LIST, _whole(values[some])))


def _group(groups: tuple[np.ndarray, np.ndarray] | None, some: slice) -> list[_Part]:
    if groups is None:
        return []
    return _only(groups[1][some], _entry(b"group", _INT64_LIST, _varints(groups[0][some, None])))
