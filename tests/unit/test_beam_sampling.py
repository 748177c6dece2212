"""Negatives of the train split that are left out before training."""

from __future__ import annotations

import numpy as np

from afm_ctr.rawlog import LineParser
from afm_ctr.schema import FeatureSchema, NegativeSampling
from beam_jobs.rows import thin
from beam_jobs.splits import SPLITS

SPEC = FeatureSchema.model_validate(
    {
        "name": "t",
        "format": {"kind": "delimited", "header": False, "columns": ["click", "a"]},
        "label": {"column": "click"},
        "fields": [{"name": "a", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}}],
    }
)
TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


def test_negatives_of_train_stay_by_the_low_bits_of_their_key() -> None:
    """rate = 0.5: the low half stays; whatever is above 2^32 of a fingerprint plays no part."""
    parsed = LineParser(SPEC).parse([b"0,x", b"0,x", b"1,x", b"0,x", b"0,x"], "f", 1)
    codes = np.array([TRAIN, TRAIN, TRAIN, TEST, TRAIN], np.int8)
    marks = iter([(5 << 32) + 2**31 - 1, 2**31, (1 << 32) - 1])

    def fingerprint(keys: object) -> np.ndarray:
        return np.fromiter((next(marks) for _ in keys), np.uint64)  # type: ignore[attr-defined]

    kept, kept_codes, out = thin(NegativeSampling(rate=0.5, correct="weights"), parsed, codes, fingerprint)
    assert kept.line_numbers.tolist() == [1, 3, 4]
    assert kept.weights.tolist() == [2, 1, 1]
    assert kept_codes.tolist() == [TRAIN, TRAIN, TEST]
    assert out == 2
