"""libfm rows."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_transform import transform_row

from afm_ctr.features import FeatureTransform
from afm_ctr.schema import Analysis, FeatureSchema, ResolvedSchema, resolve


def spec_of(*fields: dict) -> FeatureSchema:
    kinds = [{"kind": "libfm", **field} for field in fields]
    return FeatureSchema.model_validate({"name": "l", "format": {"kind": "libfm"}, "label": {}, "fields": kinds})


@pytest.fixture(scope="module")
def schema() -> ResolvedSchema:
    # Not in the order of their ids, with a gap, and with room for several entries in one of them.
    return resolve(
        spec_of(
            {"name": "user", "ids": [10, 20]},
            {"name": "tags", "ids": [0, 8], "max_values": 2, "missing": "own"},
            {"name": "item", "ids": [20, 30]},
        ),
        Analysis.empty(),
    )


@pytest.fixture(scope="module")
def transform(schema: ResolvedSchema) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(
        FeatureTransform(schema), input_signature=[{"features": tf.TensorSpec([None], tf.string)}], autograph=False
    )


def test_entries_fall_to_fields_by_their_ids(transform):
    encoded = transform({"features": tf.constant([b"29:0.5 3:1 10:2 1:-1", b"3:4", b"", b"3:0 10:0"])})
    # user owns rows 1-10, tags 11-18, missing tags 19, item 20-29
    assert encoded.feature_ids.numpy().tolist() == [[1, 14, 12, 29], [0, 14, 0, 0], [0, 19, 0, 0], [0, 19, 0, 0]]
    np.testing.assert_array_equal(encoded.feature_vals, [[2, 1, -1, 0.5], [0, 4, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    assert not encoded.bad.numpy().any()


@pytest.mark.parametrize(
    ("line", "ids", "bad"),
    [
        (b"1:1 2:1 3:1 10:1", [1, 19, 0, 0], [False, True, False]),  # more tags than slots
        (b"1:1 2:0 3:1 10:1", [1, 12, 14, 0], [False, False, False]),  # an entry of value 0 takes no slot
        (b"10:1 11:1 20:1", [0, 19, 0, 20], [True, False, False]),
        (b"10:1e39 20:1", [0, 19, 0, 20], [True, False, False]),  # beyond float32
        (b"8:1 10:1", [1, 19, 0, 0], [True, False, False]),  # id 8 belongs to nobody
        (b"10:1 x", [1, 19, 0, 0], [True, False, False]),
        (b"10:1 20:", [1, 19, 0, 0], [True, False, False]),
        (b"10:1 20:nan", [1, 19, 0, 0], [True, False, False]),
        (b"10:1:1 20:1", [0, 19, 0, 20], [True, False, False]),
        (b"-10:1 20:1", [0, 19, 0, 20], [True, False, False]),
    ],
)
def test_bad_entries(transform, line, ids, bad):
    encoded = transform({"features": tf.constant([line])})
    assert encoded.feature_ids[0].numpy().tolist() == ids
    assert encoded.bad[0].numpy().tolist() == bad


ENTRY = st.tuples(st.integers(0, 32), st.sampled_from(["1", "0", "-0.0", "2.5", "1e-3", "1e39", "x", "", "1:1"]))
LINE = st.lists(ENTRY.map(lambda e: f"{e[0]}:{e[1]}") | st.sampled_from(["x", ":", "\t"]), max_size=6).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(st.lists(LINE.map(str.encode), min_size=1, max_size=8))
def test_equals_the_reference(schema, transform, lines):
    encoded = transform({"features": tf.constant(lines)})
    ids, vals, bad = zip(*(transform_row(schema, {"features": line}) for line in lines), strict=True)
    np.testing.assert_array_equal(encoded.feature_ids, ids)
    np.testing.assert_array_equal(encoded.feature_vals, np.array(vals, np.float32))
    np.testing.assert_array_equal(encoded.bad, bad)


def test_a_grown_field_reaches_its_further_range():
    parent = resolve(spec_of({"name": "a", "ids": [0, 4]}, {"name": "b", "ids": [10, 14]}), Analysis.empty())
    child = resolve(spec_of({"name": "a", "ids": [0, 6]}, {"name": "b", "ids": [10, 14]}), Analysis.empty(), parent)
    encoded = FeatureTransform(child)({"features": tf.constant([b"3:1 13:1", b"4:1", b"5:1"])})
    assert encoded.feature_ids.numpy().tolist() == [[4, 8], [9, 0], [10, 0]]
