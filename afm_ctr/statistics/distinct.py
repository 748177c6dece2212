"""How many distinct values there are, from summaries that are small and can be merged."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from afm_ctr.splitmix import GOLDEN, finalise

KEPT = 1024  # least hashes that are kept of a field: beyond as many values the estimate is off by about 3 %


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Integers as 64 well-mixed bits, one to one: int64 or uint64 [n] to uint64 [n]."""
    with np.errstate(over="ignore"):
        return finalise(numbers.astype(np.uint64) + np.uint64(GOLDEN))


def least_hashes(numbers: np.ndarray) -> np.ndarray:
    """The ``KEPT`` least hashes of distinct integers [n], ascending: uint64."""
    hashes = mixed(numbers)
    return np.sort(np.partition(hashes, KEPT)[:KEPT] if len(hashes) > KEPT else hashes)


def join_hashes(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The same of the integers behind both; associative and commutative."""
    return np.union1d(one, other)[:KEPT]


def count_by_hashes(hashes: np.ndarray) -> float:
    """Distinct values behind the least hashes: exact below ``KEPT``, else (k − 1) / (k-th least hash, in [0, 1)).

    Source: Bar-Yossef, Jayram, Kumar, Sivakumar, Trevisan, Counting distinct elements in a data stream, RANDOM 2002;
    the unbiased form is that of Beyer, Haas, Reinwald, Sismanis, Gemulla, SIGMOD 2007.
    """
    if len(hashes) < KEPT:
        return float(len(hashes))
    return (len(hashes) - 1) / (float(hashes[-1]) / 2.0**64)


def count_behind_buckets(used: float, buckets: int) -> float:
    """Distinct values that filled ``used`` of ``buckets`` hash buckets: ``−m ln(1 − u/m)``.

    Source: Whang, Vander-Zanden, Taylor, A linear-time probabilistic counting algorithm, ACM TODS 15 (1990).
    """
    free = max(1.0 - used / buckets, 0.5 / buckets)
    return -buckets * math.log(free)


def count_by_sample(counts: Iterable[int], share: float) -> float:
    """Distinct values of all rows by a row sample: ``√(1/q) f₁ + Σ_{j≥2} f_j``, f_j values being seen j times.

    The best guarantee that a row sample can give, and a wide one: off by at most a factor of about √(1/q).

    Args:
        counts: how often each value of the sample was seen.
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
