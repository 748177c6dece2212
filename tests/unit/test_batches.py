"""What a model takes as rows: arrays and datasets, checked before Keras sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.errors import UserError
from afm_ctr.models import CTRModel

IDS = np.random.default_rng(0).integers(1, 50, (40, 6))
LABELS = (IDS[:, 0] % 2).astype(np.float32)


def make(name: str = "lr", **options: Any) -> CTRModel:
    pairs = [(i, j) for j in range(6) for i in range(j)]
    model = CTRModel(name, options, feature_size=50, num_slots=6, pairs=pairs)
    model.compile("adam")
    return model


def test_ids_alone_have_the_value_one() -> None:
    model, ids = make("fm", factors=4), IDS[:5]
    expected = model({"feature_ids": ids, "feature_vals": np.ones(ids.shape, np.float32)})
    np.testing.assert_array_equal(model(ids), expected)
    np.testing.assert_array_equal(model.predict(ids.astype("int32"), verbose=0)["logit"], expected)


def _cut(name: str) -> Any:
    return lambda x, y: ({**x, name: x[name][:, :1]}, y)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda x, y: (x["feature_ids"] + 10**6, y), {}, r"feature_ids: row 0, slot 0: \d+ is outside \[0, \d+\)$"),
        (lambda x, y: (-x["feature_ids"], y), {}, r"feature_ids: row 0, slot \d: -\d+ is outside"),
        (lambda x, y: (np.tile(x["feature_ids"], 2), y), {}, r"feature_ids must be integers \[rows, 6\], got int64"),
        (lambda x, y: (x["feature_ids"] + 0.5, y), {}, "feature_ids must be integers"),
        (lambda x, y: ([x["feature_ids"], x["feature_vals"]], y), {}, "x must be a dict of feature_ids and"),
        (lambda x, y: ({"feature_vals": x["feature_vals"]}, y), {}, "there is no feature_ids"),
        (_cut("feature_vals"), {}, r"feature_vals must be numbers \[40, 6\], got float32 \[40, 1\]"),
        (
            lambda x, y: (dict(x, feature_vals=x["feature_vals"] * np.nan), y),
            {},
            "feature_vals: row 0, .* not finite",
        ),
        (lambda x, y: (x, y + 5), {}, r"label: row 0: \d.0 is outside \[0, 1\]"),
        (lambda x, y: (x, y.astype(str)), {}, "y must be numbers"),
        (lambda x, y: (x, y[:-1]), {}, r"y must be numbers \[40\], got float32 \[39\]"),
        (lambda x, y: (x, y), {"sample_weight": np.full(40, np.nan)}, "weight: row 0: nan is not a finite number"),
        (lambda x, y: (x, y), {"sample_weight": -np.ones(40)}, "weight: row 0: -1.0 is not a finite number"),
        (lambda x, y: (x, y), {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        (lambda x, y: (x, y), {"validation_split": 1.5}, "validation_split must be between 0 and 1, got 1.5"),
        (lambda x, y: (x, y), {"validation_data": (IDS, LABELS - 1)}, "label: row"),
        (lambda x, y: (x["feature_ids"][:0], y[:0]), {}, "there are no rows"),
        (lambda x, y: (None, None), {}, "x must be a dict"),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused_in_one_line(
    change: Any, options: dict[str, Any], words: str
) -> None:
    x, y = change({"feature_ids": IDS, "feature_vals": np.ones(IDS.shape, np.float32)}, LABELS)
    with pytest.raises(UserError, match=words) as caught:
        make().fit(x, y, **options)
    assert "\n" not in str(caught.value)


def test_rows_of_weight_zero_need_no_label() -> None:
    weights, labels = np.r_[0.0, np.ones(39)], np.r_[np.nan, LABELS[1:]]
    assert np.isfinite(make().evaluate(IDS, labels, sample_weight=weights, verbose=0))


def test_ids_of_a_dataset_that_the_model_has_no_row_for_are_one_line() -> None:
    model = make()
    far = tf.data.Dataset.from_tensors((tf.fill([3, 6], 10**6), tf.ones([3])))
    for use in (model.fit, model.evaluate, model.predict):
        with pytest.raises(UserError, match=r"^a feature id is outside \[0, \d+\): ") as caught:
            use(far, verbose=0)
        assert "\n" not in str(caught.value)
