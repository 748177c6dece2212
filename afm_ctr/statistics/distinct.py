"""Numbers of distinct values, estimated from small mergeable summaries."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from afm_ctr.splitmix import GOLDEN, finalise

KEPT = 1024  # smallest hashes to keep per field; with more values the estimate has an error of about 3 %


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Hash integers one to one to 64 well-mixed bits: int64 or uint64 [n] to uint64 [n]."""
    with np.errstate(over="ignore"):
        return finalise(numbers.astype(np.uint64) + np.uint64(GOLDEN))


def least_hashes(numbers: np.ndarray) -> np.ndarray:
    """The ``KEPT`` smallest hashes of distinct integers [n], ascending: uint64."""
    hashes = mixed(numbers)
    return np.sort(np.partition(hashes, KEPT)[:KEPT] if len(hashes) > KEPT else hashes)


def join_hashes(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Merge the smallest hashes of two sets of integers; associative and commutative."""
    return np.union1d(one, other)[:KEPT]


def count_by_hashes(hashes: np.ndarray) -> float:
    """Distinct values by their smallest hashes: exact below ``KEPT``, else (k − 1) / (k-th smallest hash, in [0, 1)).

    Source: Bar-Yossef, Jayram, Kumar, Sivakumar, Trevisan, Counting distinct elements in a data stream, RANDOM 2002;
    the unbiased form is that of Beyer, Haas, Reinwald, Sismanis, Gemulla, SIGMOD 2007.
    """
    if len(hashes) < KEPT:
        return float(len(hashes))
    return (len(hashes) - 1) / (float(hashes[-1]) / 2.0**64)


def count_behind_buckets(used: float, buckets: int) -> float:
    """Distinct values that occupy ``used`` of ``buckets`` hash buckets: ``−m ln(1 − u/m)``.

    Source: Whang, Vander-Zanden, Taylor, A linear-time probabilistic counting algorithm, ACM TODS 15 (1990).
    """
    free = max(1.0 - used / buckets, 0.5 / buckets)
    return -buckets * math.log(free)


def count_by_sample(counts: Iterable[int], share: float) -> float:
    """Distinct values of all rows from a row sample: ``√(1/q) f₁ + Σ_{j≥2} f_j``, where f_j values occur j times.

    The error is at most a factor of about √(1/q), the best guarantee that a row sample allows.

    Args:
        counts: occurrences of each value in the sample.
        share: q, the share of rows sampled.

    Source: Charikar, Chaudhuri, Motwani, Narasayya, Towards estimation error guarantees for distinct values, PODS
    2000.
    """
    once = more = 0
    for count in counts:
        if count == 1:
            once += 1
        else:
            more += 1
    return math.sqrt(1.0 / share) * once + more if share else 0.0
