"""Drift of a data set's fields from a baseline, from the statistics in both manifests."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import Any

from afm_ctr.statistics.data_statistics import DataStatistics, FieldStatistics

SOME, LARGE = 0.1, 0.25
MISSING_CHANGE = 0.05
NEW_SHARE = 0.05
_BINS = 10
_SIGMAS = 3.0


@dataclass(frozen=True)
class FieldDrift:
    """Drift of one field."""

    name: str
    psi: float | None  # the population stability index; ``None``: the field is in one of the data sets only
    noise: float  # upper limit of the index between two samples of the same rows (mean plus three deviations)
    buckets: int  # number of buckets compared
    missing_before: float | None  # share of rows without a value in the baseline
    missing_now: float | None  # share of rows without a value now
    # share of sampled rows with a value that is not in the baseline's list, although it is frequent enough to be
    # listed; if that list is complete: with any value that is not in it
    new_share: float
    flags: tuple[str, ...]  # anomalies, worst first


@dataclass(frozen=True)
class Drift:
    """Drift of all fields, flagged ones first, then by descending index; and the shares of positive rows."""

    fields: tuple[FieldDrift, ...]
    positive_before: float | None  # in the baseline; ``None``: unlabelled
    positive_now: float | None

    @property
    def flagged(self) -> tuple[FieldDrift, ...]:
        """The fields with flags."""
        return tuple(field for field in self.fields if field.flags)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def drift(now: DataStatistics, baseline: DataStatistics) -> Drift:
    """Compare a data set with its baseline, field by field.

    The measure is the population stability index, ``Σ (p − q) ln(p / q)`` over buckets with the shares p now and q in
    the baseline; it is the symmetrised Kullback-Leibler divergence of Jeffreys. The buckets are the values that the
    baseline lists, *all other values*, and *missing*; of numbers with more values than the list holds, the ten
    intervals between the baseline's deciles (fewer if deciles are equal), and *missing*. Shares are
    ``(n + ½) / (N + B/2)`` for B buckets, so that empty buckets do not make the index infinite. By convention, below
    0.1 is no change and above 0.25 a large one. Between two samples of the same rows, of N and M, the index is about
    ``(1/N + 1/M) χ²`` with B − 1 degrees of freedom, so a field is flagged if its index exceeds both 0.1 and that
    distribution's mean plus three deviations. Further flags: the share of missing rows changed by more than 5
    percentage points; more than 5 % of the rows have new values; the field is in only one of the two.

    Sources: Jeffreys, An invariant form for the prior probability in estimation problems, 1946; Siddiqi, Credit Risk
    Scorecards, 2006 (the index and its limits); Yurdakul, Statistical properties of population stability index, 2018
    (its distribution).
    """
    found = [_field(field, now, baseline.field(field.name), baseline) for field in now.fields]
    there = {field.name for field in now.fields}
    for field in baseline.fields:
        if field.name not in there:
            found.append(FieldDrift(field.name, None, 0.0, 0, field.missing_share, None, 0.0, ("not there now",)))
    found.sort(key=lambda field: (not field.flags, -math.inf if field.psi is None else -field.psi, field.name))
    return Drift(tuple(found), _positive(baseline), _positive(now))


def _positive(statistics: DataStatistics) -> float | None:
    if statistics.positives is None or not statistics.rows:
        return None
    return statistics.positives / statistics.rows


def _field(
    field: FieldStatistics, now: DataStatistics, before: FieldStatistics | None, baseline: DataStatistics
) -> FieldDrift:
    if before is None:
        return FieldDrift(field.name, None, 0.0, 0, None, field.missing_share, 0.0, ("not in the baseline",))
    if field.quantiles and before.quantiles and not before.complete:
        shares, old_shares = _by_deciles(field, before)
    else:
        shares, old_shares = _by_values(field, before)
    shares, old_shares = _with_missing(shares, field), _with_missing(old_shares, before)
    buckets = len(shares)
    p, q = _smoothed(shares, now.sampled), _smoothed(old_shares, baseline.sampled)
    psi = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    spread = 1 / max(now.sampled, 1) + 1 / max(baseline.sampled, 1)
    noise = spread * (buckets - 1 + _SIGMAS * math.sqrt(2 * (buckets - 1)))
    new = _new_share(field, now, before, baseline)
    flags = []
    if psi >= SOME and psi > noise:
        flags.append("large change" if psi >= LARGE else "some change")
    if abs(field.missing_share - before.missing_share) > MISSING_CHANGE:
        flags.append("more missing" if field.missing_share > before.missing_share else "less missing")
    if new > NEW_SHARE:
        flags.append("new values")
    return FieldDrift(
        field.name, psi, noise, buckets, before.missing_share, field.missing_share, new, tuple(flags)
    )  # fmt: skip


def _by_values(field: FieldStatistics, before: FieldStatistics) -> tuple[list[float], list[float]]:
    """Shares of the present values, now and before: each value that the baseline lists, and all others together.

    A listed value that the current list lacks is rarer than that list's last entry. If it was less than twice as
    frequent as that before, it counts among the others; otherwise it gets that last entry's share.
    """
    listed = {top.value: top.rows / max(field.values, 1) for top in field.top}
    last = 0.0 if field.complete or not field.top else listed[field.top[-1].value]
    now, old = [], []
    for top in before.top:
        share = top.rows / max(before.values, 1)
        if top.value in listed or share > 2 * last:
            now.append(listed.get(top.value, last))
            old.append(share)
    others, old_others = max(1.0 - sum(now), 0.0), max(1.0 - sum(old), 0.0)
    return [*now, others * bool(field.values)], [*old, old_others * bool(before.values)]


def _by_deciles(field: FieldStatistics, before: FieldStatistics) -> tuple[list[float], list[float]]:
    """Shares of the numbers between the baseline's deciles, now and before, from the lists of quantiles."""
    step = (len(before.quantiles) - 1) // _BINS
    edges = sorted(set(before.quantiles[step:-1:step]))
    return _between(field.quantiles, edges), _between(before.quantiles, edges)


def _between(quantiles: list[float], edges: list[float]) -> list[float]:
    below = [bisect_right(quantiles, edge) / len(quantiles) for edge in edges]
    return [b - a for a, b in zip([0.0, *below], [*below, 1.0], strict=True)]


def _with_missing(shares: list[float], field: FieldStatistics) -> list[float]:
    present = 1.0 - field.missing_share
    return [*(share * present for share in shares), field.missing_share]


def _smoothed(shares: list[float], rows: int) -> list[float]:
    half = 0.5 * len(shares)
    return [(share * rows + 0.5) / (rows + half) for share in shares]


def _new_share(
    field: FieldStatistics, now: DataStatistics, before: FieldStatistics, baseline: DataStatistics
) -> float:
    if not (now.sampled and baseline.sampled) or (before.quantiles and not before.complete):
        return 0.0
    listed = {top.value for top in before.top}
    # At least twice the share of its last entry: less may be chance.
    least = 0.0 if before.complete or not before.top else 2 * before.top[-1].rows / baseline.sampled
    new = sum(top.rows for top in field.top if top.value not in listed and top.rows / now.sampled > least)
    return min(new / now.sampled, 1.0)
