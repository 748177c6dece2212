"""Serialized tf.Examples to ids and values, in a graph that no row can make fail."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Tags of wire type 2 in tensorflow/core/example. Field 1: Example.features, Features.feature, the key of a map entry,
# a packed list. Field 2: the value of a map entry, Feature.float_list. Field 3: Feature.int64_list.
_FIRST, _SECOND, _THIRD = 0x0A, 0x12, 0x1A
_LENGTH = 4  # bytes of a length at most: below 2**28
_VARINT = 10  # bytes of an id at most
_REST = 1 << 14  # bytes of the label, the key and anything else next to ids and values


class Parsed(NamedTuple):
    """``ids`` int64 [B, F], ``vals`` float32 [B, F], ``ok`` bool [B]: False for a row without ids and values."""

    ids: tf.Tensor
    vals: tf.Tensor
    ok: tf.Tensor


def parse_examples(examples: tf.Tensor, slots: int) -> Parsed:
    """Parse records with ``feature_ids`` int64 [F] and ``feature_vals`` float [F].

    ``tf.io.parse_example`` fails for the whole batch when one record does not parse, and a server that batches
    requests of several callers then fails all of them. So records are first compared with the form that serializers
    write (about a millisecond for 256 records of 39 slots); only if one has another form are they parsed one by one,
    which costs tens of milliseconds.

    Args:
        examples: string [B].

    Returns:
        Zeros and ``ok`` False if a record is not an Example, or lacks such features.
    """

    def together() -> Parsed:
        parsed = tf.io.parse_example(examples, features_of(slots))
        return Parsed(parsed["feature_ids"], parsed["feature_vals"], tf.ones_like(regular))

    regular = is_regular(examples, slots)
    return Parsed(*tf.cond(tf.reduce_all(regular), together, lambda: _one_by_one(examples, slots)))


def features_of(slots: int) -> dict[str, tf.io.FixedLenFeature]:
    return {
        "feature_ids": tf.io.FixedLenFeature([slots], tf.int64),
        "feature_vals": tf.io.FixedLenFeature([slots], tf.float32),
    }


def _one_by_one(examples: tf.Tensor, slots: int) -> Parsed:
    """Parse records in a dataset, the only place in a graph where a failure can be skipped."""
    rows = tf.shape(examples, tf.int64)[0]

    def parse(row: tf.Tensor, example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        parsed = tf.io.parse_single_example(example, features_of(slots))
        return row, parsed["feature_ids"], parsed["feature_vals"]

    parsed = tf.data.Dataset.from_tensor_slices(examples).enumerate().map(parse).ignore_errors()
    none = (tf.zeros([0], tf.int64), tf.zeros([0, slots], tf.int64), tf.zeros([0, slots], tf.float32))
    at, ids, vals = parsed.batch(tf.maximum(rows, 1)).reduce(none, lambda _, found: found)
    ok = tf.scatter_nd(at[:, tf.newaxis], tf.ones_like(at, tf.int32), rows[tf.newaxis]) > 0
    # A gather, not a scatter, which adds and so changes the bits of the smallest numbers and of some NaNs.
    place = tf.where(ok, tf.cumsum(tf.cast(ok, tf.int64)) - 1, tf.shape(at, tf.int64)[0])
    one_more = [[0, 1], [0, 0]]  # zeros
    return Parsed(tf.gather(tf.pad(ids, one_more), place), tf.gather(tf.pad(vals, one_more), place), ok)


class _Span(NamedTuple):
    """For each row the bytes from ``start`` up to ``end``; both are 0 unless ``ok``."""

    start: tf.Tensor
    end: tf.Tensor
    ok: tf.Tensor


def is_regular(examples: tf.Tensor, slots: int) -> tf.Tensor:
    """Bool [B]: the records are in the form of serializers, which ``parse_example`` accepts."""
    longest = slots * (_VARINT + 4) + _REST
    texts = tf.where(tf.strings.length(examples) <= longest, examples, "")
    sizes = tf.strings.length(texts)
    data = _bytes_of(texts)
    body = _message(data, tf.zeros_like(sizes), _FIRST, sizes)

    def more(place: tf.Tensor, regular: tf.Tensor, ids: _Span, vals: _Span) -> tf.Tensor:
        return tf.reduce_any(regular & (place < body.end))

    def next_feature(place: tf.Tensor, regular: tf.Tensor, ids: _Span, vals: _Span) -> tuple[object, ...]:
        inside = regular & (place < body.end)
        entry = _message(data, place, _FIRST, body.end)
        key = _message(data, entry.start, _FIRST, entry.end)
        value = _message(data, key.end, _SECOND, entry.end)
        whole = entry.ok & key.ok & value.ok & (value.end == entry.end)
        name = tf.strings.substr(texts, tf.where(whole, key.start, 0), tf.where(whole, key.end - key.start, 0))
        regular &= whole | ~inside
        spans = []
        for wanted, known in (("feature_ids", ids), ("feature_vals", vals)):
            found = inside & whole & (name == wanted)
            regular &= ~(found & known.ok)  # a repeated name
            spans.append(_Span(*(tf.where(found, new, old) for new, old in zip(value, known, strict=True))))
        return tf.where(inside & whole, entry.end, place), regular, *spans

    absent = _Span(tf.zeros_like(sizes), tf.zeros_like(sizes), tf.zeros_like(body.ok))
    start = (body.start, body.ok & (body.end == sizes), absent, absent)
    _, regular, ids, vals = tf.while_loop(more, next_feature, start)
    return regular & _holds_ids(texts, data, ids, slots) & _holds_vals(data, vals, slots)


def _holds_ids(texts: tf.Tensor, data: tf.Tensor, feature: _Span, slots: int) -> tf.Tensor:
    """Whether a feature is one packed list of ``slots`` varints, none of them too long."""
    packed = _packed(data, feature, _THIRD)
    size = packed.end - packed.start
    closed = _bytes_of(tf.strings.substr(texts, packed.start, size)) < 0x80
    places = tf.range(tf.shape(closed)[1])
    count = tf.reduce_sum(tf.cast(closed & (places < size[:, tf.newaxis]), tf.int32), axis=1)
    endless = closed[:, _VARINT - 1 :]
    for shift in range(1, _VARINT):
        endless |= closed[:, _VARINT - 1 - shift : -shift]
    return packed.ok & (count == slots) & _at(closed, size - 1) & tf.reduce_all(endless, axis=1)


def _holds_vals(data: tf.Tensor, feature: _Span, slots: int) -> tf.Tensor:
    """Whether a feature is one packed list of ``slots`` floats."""
    packed = _packed(data, feature, _SECOND)
    return packed.ok & (packed.end - packed.start == 4 * slots)


def _packed(data: tf.Tensor, feature: _Span, kind: int) -> _Span:
    values = _message(data, feature.start, kind, feature.end)
    packed = _message(data, values.start, _FIRST, values.end)
    whole = feature.ok & values.ok & packed.ok & (values.end == feature.end) & (packed.end == values.end)
    return _Span(packed.start, packed.end, whole)


def _message(data: tf.Tensor, place: tf.Tensor, tag: int, end: tf.Tensor) -> _Span:
    """The length-delimited field at a place of each row, if it has the tag and ends within ``end``."""
    ok = (place < end) & (_at(data, place) == tag)
    size, unread = tf.zeros_like(place), tf.ones_like(ok)
    start = place + 1
    for number in range(_LENGTH):
        byte = tf.cast(_at(data, start), tf.int32)
        size += tf.where(unread, (byte & 0x7F) * (1 << 7 * number), 0)
        start += tf.cast(unread, tf.int32)
        unread &= byte >= 0x80
    ok &= ~unread & (start <= end) & (size <= end - start)
    return _Span(tf.where(ok, start, 0), tf.where(ok, start + size, 0), ok)


def _bytes_of(texts: tf.Tensor) -> tf.Tensor:
    """uint8 [B, longest], shorter ones padded with zeros; at least as wide as a varint may be."""
    width = tf.reduce_max(tf.concat([tf.strings.length(texts), [_VARINT]], 0))
    return tf.io.decode_raw(texts, tf.uint8, fixed_length=width)


def _at(data: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Each row's byte at a place, clipped to the row."""
    return tf.gather(data, tf.clip_by_value(places, 0, tf.shape(data)[1] - 1), batch_dims=1)
