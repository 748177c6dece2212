"""Examples parsed so that no row fails the others: the same as ``tf.io.parse_example``, row by row."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tensorflow as tf
from damage import damaged

from afm_ctr.export.examples import features_of, is_regular, parse_examples
from afm_ctr.records import serialize_examples

SLOTS = 3


@pytest.fixture(scope="module")
def examples() -> list[bytes]:
    """Records as our writer and as protobuf writes them; ids of one byte to ten."""
    ids = np.array([[1, 300, 1 << 40], [-1, (1 << 63) - 1, 0], [5, 6, 7]], np.int64)
    vals = np.array([[1.0, -2.5, 3.0], [0.0, 1e38, 1e-30], [1.0, 1.0, 1.0]], np.float32)
    ours = [bytes(one) for one in serialize_examples(ids, vals, None, None, None, [b"a", b"", b"\xff" * 50])]
    vals[0, 2], vals[1, 1] = np.nan, np.inf
    vals[2, :2] = np.array([0x00000060, 0x7F80A600], np.uint32).view(np.float32)  # subnormal, signalling NaN
    theirs = []
    for row, numbers in zip(ids, vals, strict=True):
        message = tf.train.Example()
        message.features.feature["feature_vals"].float_list.value.extend(numbers)
        message.features.feature["note"].bytes_list.value.append(b"feature_ids")
        message.features.feature["feature_ids"].int64_list.value.extend(row)
        theirs.append(message.SerializeToString(deterministic=True))
    return ours + theirs


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def parse(examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return (*parse_examples(examples, SLOTS), is_regular(examples, SLOTS))


def test_what_serializers_write_is_parsed_at_once(examples: list[bytes]) -> None:
    ids, vals, ok, regular = parse(tf.constant(examples))
    wanted = tf.io.parse_example(tf.constant(examples), features_of(SLOTS))
    assert tf.reduce_all(regular) and tf.reduce_all(ok)
    np.testing.assert_array_equal(ids, wanted["feature_ids"])
    assert vals.numpy().tobytes() == wanted["feature_vals"].numpy().tobytes()
    assert [part.shape[0] for part in parse(tf.constant([], tf.string))] == [0, 0, 0, 0]


def test_damaged_records_are_those_that_parse_example_refuses(examples: list[bytes]) -> None:
    rng = random.Random(3)
    records = [damaged(rng.choice(examples), rng, most=2) for _ in range(300)]
    ids, vals, ok, regular = (part.numpy() for part in parse(tf.constant([*records, examples[0]])))
    good = 0
    for row, record in enumerate(records):
        try:
            wanted = tf.io.parse_single_example(record, features_of(SLOTS))
        except Exception:  # InvalidArgumentError, or what Python makes of the bytes in its message
            assert not ok[row] and not regular[row] and not ids[row].any() and not vals[row].any(), record
            continue
        good += 1
        assert ok[row], record
        np.testing.assert_array_equal(ids[row], wanted["feature_ids"])
        assert vals[row].tobytes() == wanted["feature_vals"].numpy().tobytes()
    assert ok[-1] and 10 < good < 290
