"""Thinning of the negatives of the split ``train`` by a hash of the record's key."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from afm_ctr.rawlog import ParsedLines
from afm_ctr.rawlog.labels import LARGEST
from afm_ctr.schema import NegativeSampling
from beam_jobs.splits import SPLITS


def thin(
    sampling: NegativeSampling,
    parsed: ParsedLines,
    codes: np.ndarray,
    fingerprint: Callable[[Sequence[bytes]], np.ndarray],
) -> tuple[ParsedLines, np.ndarray, int]:
    """The rows that stay.

    A negative of ``train`` stays if and only if Fingerprint64 of its key, mod 2^32, is below ``rate`` · 2^32: the low
    bits, since the split rule by hash goes by the high ones. With ``correct: weights`` those that stay weigh 1/rate
    times as much; a weight beyond float32 makes a reject.

    Args:
        codes: int8 [n], the place of each row in ``SPLITS``.
        fingerprint: byte strings to uint64 [n].

    Returns:
        The rows that stay, their codes, and how many were left out (rejects are not among them).
    """
    negatives = np.flatnonzero((codes == SPLITS.index("train")) & (parsed.labels == 0))
    low = fingerprint([parsed.keys[i] for i in negatives.tolist()]) & np.uint64(0xFFFFFFFF)
    # Both sides are exact in float64.
    out = low.astype(np.float64) >= sampling.rate * 2.0**32
    stay = np.ones(len(codes), bool)
    stay[negatives[out]] = False
    if sampling.correct == "weights":
        kept = negatives[~out]
        weights = parsed.weights.astype(np.float64)
        weights[kept] /= sampling.rate
        for row in np.flatnonzero(weights > LARGEST).tolist():
            detail = f"weight {weights[row]:.3g}, with 1/rate, is beyond float32"
            parsed.rejects.append(parsed.reject(row, "bad_weight", detail))
            stay[row] = False
            weights[row] = 0
        parsed.weights = weights.astype(np.float32)
    if stay.all():
        return parsed, codes, 0
    rows = np.flatnonzero(stay)
    return parsed.take(rows), codes[rows], int(out.sum())
