"""Suggests fields for a column, with reasons."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from afm_ctr.infer.profile import Profile
from afm_ctr.infer.texts import LABEL_NAMES, WEIGHT_NAMES, shown
from afm_ctr.infer.timestamps import (
    Moments,
    are_durations,
    are_moments,
    finer_unit,
    has_hour,
    looks_like_moments,
    names_things,
    time_format,
)
from afm_ctr.statistics.distinct import count_by_sample

LEAKS, ODD = 0.98, 0.9  # AUC of a single column
_UNIQUE = 0.99
_FEW = 20  # integers with at most this many distinct values are categories
_UNSEEN = 0.01  # maximum probability of a new value for a vocabulary
_LARGEST = 1e9  # larger integers with many distinct values are hashes or ids
_MANY_NEW = 0.1  # minimum probability of a new value for integers to be a quantity
_LONGEST_LIST = 10_000
_MOST_BUCKETS = 1_000_000
_GROUP_NAME = re.compile(r"^(user|uid|user_?id|member_?id|customer_?id|visitor_?id|cookie(_?id)?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Suggestion:
    """The fields to write for a column."""

    profile: Profile
    why: tuple[str, ...]  # comment lines with the evidence
    fields: tuple[dict[str, Any], ...]
    left_out: str | None = None  # why the fields are only written as a comment
    key: bool = False  # whether the column identifies rows
    warnings: tuple[str, ...] = field(default=())


def suggest(profile: Profile, total: int | None) -> Suggestion:
    """Suggest fields for a column; ``total``: rows of all files, if known."""
    moment = time_format(profile.counts)
    warnings = []
    if moment is not None:
        there = [cell for cell in profile.cells if cell.strip()]
        is_moment, warning = are_moments(moment, profile.header, there)
        warnings += [warning] if warning else []
        moment = moment if is_moment else None
    facts = [_facts(profile, total, with_numbers=moment is None)]
    if profile.auc is not None and ODD <= profile.auc < LEAKS:
        warnings.append(f"alone it has an AUC of {profile.auc:.3f}: is it known before the label is?")
    warnings += _by_name(profile)
    if not profile.present or (profile.distinct == 1 and moment is None):
        what = "always empty" if not profile.present else f"always {shown(next(iter(profile.counts)))!r}"
        if profile.missing and profile.present:
            what += " or empty"
        else:
            return Suggestion(profile, tuple(facts), (_hashed(profile, 1000),), f"constant: {what}")
    if profile.auc is not None and profile.auc >= LEAKS:
        why, fields = _encoding(profile, total)
        problem = f"gives the label away: alone it has an AUC of {profile.auc:.3f}"
        return Suggestion(profile, (*facts, *why), fields, problem)
    if moment is not None:
        return _time(profile, facts, moment, tuple(warnings))
    if (unreadable := _rewritten_first(profile)) is not None:
        why, fields = _words(profile, total)
        return Suggestion(profile, (*facts, *why), fields, unreadable)
    fractions = profile.is_numeric and not profile.is_whole
    unique = _is_unique(profile) and not fractions and profile.separator is None
    if unique and not (_may_be_quantity(profile) and not profile.is_sorted):
        fields = (_hashed(profile, _MOST_BUCKETS),)
        problem = f"nearly every row has a different value ({profile.distinct} in {profile.present})"
        return Suggestion(profile, tuple(facts), fields, problem, key=not profile.missing)
    why, fields = _encoding(profile, total)
    if unique:
        warnings.append(
            f"nearly every row has a different value: if it identifies the row, use `key: {profile.name}`"
        )
    elif len(fields) > 1:
        warnings.append("categories, or a quantity? It is below as both; remove one")
    return Suggestion(profile, (*facts, *why), fields, warnings=tuple(warnings))


def _rewritten_first(profile: Profile) -> str | None:
    """Recognise cells that no field can read, and say how to write them; ``None`` for other cells."""
    several = profile.distinct > _FEW
    if several and not profile.is_numeric and (dressed := profile.dressed):
        return f"numbers with {dressed}, and prepare reads only plain ones; write them plain"
    if (printed := profile.printed) is not None:
        return f"lists or objects as a program prints them: {printed}; write values with a mark between them: x|y"
    if several and not names_things(profile.header) and (unit := finer_unit(list(profile.counts))):
        return f"moments in {unit} since 1970, and a time field reads seconds or milliseconds; write those"
    if several and are_durations(profile.header, list(profile.counts)):
        return "durations such as 3:45, and a numeric field reads plain numbers; write them in seconds"
    if several and not profile.is_numeric and looks_like_moments(list(profile.counts)):
        return "moments in a form that no time field reads; write them as 2014-10-21 07:05:00, or as epoch seconds"
    return None


def _by_name(profile: Profile) -> list[str]:
    """Warnings about a column that, by its name, may not be a feature."""
    name = profile.header.strip().lower()
    if name in LABEL_NAMES and profile.distinct <= 12:
        return ["by its name it is another label: is it known before the label is?"]
    if name in WEIGHT_NAMES and profile.is_numeric:
        return [f"by its name it says how much a row counts: then `weight: {profile.name}`, and no field"]
    return []


def _facts(profile: Profile, total: int | None, with_numbers: bool) -> str:
    parts = []
    if profile.missing:
        parts.append(f"{profile.missing / profile.rows:.1%} missing")
    parts.append(f"{profile.distinct:,} distinct" + _in_all(profile, total))
    if with_numbers and profile.is_numeric and len(profile.numbers):
        ends = [profile.quantile(share) for share in (0, 0.01, 0.5, 0.99, 1)]
        parts.append(" … ".join(map(shown_number, ends)) + " (0, 1, 50, 99, 100 %)")
    if profile.distinct and (not profile.is_numeric or profile.distinct <= _FEW):
        parts.append(profile.shown_top())
    if profile.auc is not None:
        parts.append(f"own AUC {profile.auc:.2f}")
    return "; ".join(parts)


def shown_number(number: float) -> str:
    """A number with four significant digits, or all digits before the point."""
    return f"{number:.10g}" if number % 1 == 0 else f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}"


def _in_all(profile: Profile, total: int | None) -> str:
    if total is None or total <= profile.rows * 1.01:
        return ""
    estimate = estimated(profile, total)
    return f" (perhaps {_rounded(estimate):,} in all)" if estimate > 1.1 * profile.distinct else ""


def estimated(profile: Profile, total: int | None) -> float:
    """Estimated number of distinct values in all rows."""
    share = min(1.0, profile.rows / total) if total else 1.0
    return count_by_sample(profile.counts.values(), share)


def _rounded(number: float) -> int:
    scale = 10 ** max(int(math.log10(max(number, 1))) - 1, 0)
    return int(number / scale) * scale


def _encoding(profile: Profile, total: int | None) -> tuple[list[str], tuple[dict[str, Any], ...]]:
    """Comment lines and fields for a column of numbers or words; two fields if integers may be either."""
    whole = profile.is_numeric and bool((profile.numbers % 1 == 0).all())  # including 3.0
    if not profile.is_numeric or (whole and names_things(profile.header)):
        return _words(profile, total)
    found = _number(profile)
    either = found is None and _may_be_quantity(profile)
    if found is None and not either:
        return _words(profile, total)
    why, encoding = found or _spread(profile)
    if profile.not_numbers:
        why += f" Cells that are no numbers: {profile.not_numbers}; prepare will reject those rows."
    missing = {"missing": "own"} if profile.missing else {}
    number = {"name": profile.name, "kind": "numeric", "encoding": encoding, **missing}
    if not either or _is_unique(profile):
        return [why], (number,)
    reasons, (words,) = _words(profile, total)
    return [why, *reasons], (number, words | {"name": f"{profile.name}_id", "column": profile.name})


def _may_be_quantity(profile: Profile) -> bool:
    """Whether integers with many distinct values may be a quantity, such as an income, by their size and name."""
    small = profile.is_whole and max(-profile.quantile(0), profile.quantile(1)) < _LARGEST
    many = profile.distinct > _FEW and profile.once > _MANY_NEW * profile.present
    return small and many and not names_things(profile.header)


def _is_unique(profile: Profile) -> bool:
    return profile.present >= 100 and profile.distinct >= _UNIQUE * profile.present


def _spread(profile: Profile) -> tuple[str, dict[str, Any]]:
    """The encoding of numbers that are not counts, and why."""
    if profile.quantile(0) >= 0 and profile.quantile(0.99) > 10 * max(profile.quantile(0.5), 1e-12):
        return (
            "Numbers with a long tail: the logarithm, then mean 0 and deviation 1.",
            {"kind": "value", "log": True, "standardise": True},
        )
    return "Numbers: ten buckets of equal share, each with a vector.", {"kind": "buckets", "quantiles": 10}


def _number(profile: Profile) -> tuple[str, dict[str, Any]] | None:
    """The encoding of numbers, and why; ``None``: the integers are categories."""
    least, middle, most = (profile.quantile(share) for share in (0, 0.5, 1))
    if not profile.is_whole:
        return _spread(profile)
    if profile.distinct <= _FEW:
        return None
    low = sum(least <= number <= least + _FEW for number in set(profile.numbers.tolist()))
    if -10 <= least <= 2 and most > 20 * (abs(middle) + 1) and low > _FEW / 2:
        return (
            "Counts with a long tail: up to 2 each its own bucket, above by floor((ln x)^2).",
            {"kind": "buckets", "log_square": True},
        )
    dense = profile.distinct >= 0.5 * (profile.quantile(0.99) - profile.quantile(0.01) + 1)
    if profile.distinct <= 256 and dense:
        return (
            "Whole numbers that fill their range: a quantity; ten buckets of equal share.",
            {"kind": "buckets", "quantiles": 10},
        )
    return None


def _words(profile: Profile, total: int | None) -> tuple[list[str], tuple[dict[str, Any], ...]]:
    why: list[str] = []
    several: dict[str, Any] = {}
    estimate, unseen, listed = estimated(profile, total), profile.once / max(profile.present, 1), profile.distinct
    if profile.is_numeric:
        few = "Few whole numbers: each with a vector of its own."
        what = "column's name" if names_things(profile.header) else "values"
        many = f"Whole numbers; by the {what} they name things and are no quantity."
        why.append(few if listed <= _FEW else many)
    if profile.separator is not None:
        mark, pieces, size = profile.separator
        why.append(
            f"Several values a cell, {mark!r} between them: {pieces:,} distinct ones make up the "
            f"{profile.distinct:,} distinct cells; 99 % of the cells have at most {size}."
        )
        several = {"separator": mark, "max_values": size}
        estimate, unseen, listed = float(pieces), 0.0, pieces
    missing = {"missing": "own"} if profile.missing else {}
    base = {"name": profile.name, "kind": "categorical"}
    if listed <= _LONGEST_LIST and unseen <= _UNSEEN:
        rare = {"min_count": 2} if listed > 100 else {}
        why.append("A vocabulary" + ("." if several else f"; chance of a new value {unseen:.2%}."))
        return why, ({**base, "encoding": {"kind": "vocabulary", **rare}, **several, **missing},)
    buckets = _buckets(estimate)
    why.append(
        f"Hashed; chance of a new value {unseen:.1%}; {buckets:,} buckets"
        + (
            f", some {buckets / max(estimate, 1):.0f} a value."
            if buckets < _MOST_BUCKETS
            else ", the most by default."
        )
    )
    return why, ({**base, "encoding": {"kind": "hash", "buckets": buckets}, **several, **missing},)


def _buckets(distinct: float) -> int:
    """About five buckets per value, so that few values collide; 1, 2 or 5 times a power of ten."""
    wanted = max(5 * distinct, 1000)
    for power in range(3, 7):
        for factor in (1, 2, 5):
            if factor * 10**power >= wanted:
                return min(factor * 10**power, _MOST_BUCKETS)
    return _MOST_BUCKETS


def _hashed(profile: Profile, buckets: int) -> dict[str, Any]:
    return {"name": profile.name, "kind": "categorical", "encoding": {"kind": "hash", "buckets": buckets}}


def _time(profile: Profile, facts: Sequence[str], moments: Moments, warnings: tuple[str, ...]) -> Suggestion:
    missing = {"missing": "own"} if profile.missing else {}
    form, first, last = moments.form, moments.first, moments.last
    base = {"kind": "time", "column": profile.name, "format": form, **missing}
    what = f"{'A time of day' if form == 'clock' else 'A moment'} ({form}), {moments.span}."
    why = [*facts, " ".join(filter(None, [what, moments.zone_note]))]
    parts = []
    if has_hour(form) and (first.date(), first.hour) != (last.date(), last.hour):
        parts.append("hour")
    if first.date() != last.date():
        parts.append("weekday")
    fields = tuple({"name": f"{profile.name}_{part}", **base, "part": part} for part in parts)
    if fields:
        return Suggestion(profile, tuple(why), fields, warnings=warnings)
    part = "hour" if has_hour(form) else "weekday"
    field_ = {"name": f"{profile.name}_{part}", **base, "part": part}
    return Suggestion(profile, tuple(why), (field_,), f"constant in the sample: one {part} only")


def is_group(profile: Profile) -> bool:
    """Whether a column, by its name, identifies the user of a row."""
    return _GROUP_NAME.match(profile.header) is not None
