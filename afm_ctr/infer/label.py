"""Finds the label's column, and the texts that mean a positive label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.infer.profile import Profile
from afm_ctr.infer.texts import LABEL_NAMES, NUMBER, shown

_POSITIVE = {b"1", b"1.0", b"yes", b"y", b"true", b"t", b"click", b"clicked", b"positive", b"pos", b"+1"}
_NEGATIVE = {b"0", b"0.0", b"-1", b"-1.0", b"no", b"n", b"false", b"f", b"none", b"negative", b"neg"}
_MOST_GRADES = 12
_NEARLY = 0.98


@dataclass(frozen=True)
class LabelGuess:
    """The label."""

    profile: Profile
    schema: dict[str, Any]  # the ``label`` of a schema
    why: tuple[str, ...]  # lines of its comment
    positive: np.ndarray | None  # bool, one per sampled row; ``None``: the label is a number


def find_label(profiles: Sequence[Profile], asked: str | None, headless: bool, path: str) -> LabelGuess:
    """Find the label among the columns.

    Args:
        asked: its name in the schema or in the log; ``None``: guess.
        headless: whether the log has no column names.

    Raises:
        UserError: there is no such column, it cannot be guessed, or it cannot be a label.
    """
    if asked is not None:
        found = next((p for p in profiles if asked in (p.name, p.header)), None)
        if found is None:
            raise UserError(f"--label {asked}: {path} has no such column; it has {_columns(profiles)}")
        return _read(found, f"named by --label {asked}", path)
    by_name = {text.strip().lower(): p for p in reversed(profiles) for text in (p.name, p.header)}
    for name in LABEL_NAMES:
        profile = by_name.get(name)
        if profile is not None and (profile.distinct <= _MOST_GRADES or profile.is_numeric):
            return _read(profile, "a guess, by its name", path)
    known = [p for p in profiles if _yes_and_no(p)]
    if headless:
        known = [p for p in known if p in (profiles[0], profiles[-1])][:1]
        where = "first" if known == [profiles[0]] else "last"
        if known:
            return _read(known[0], f"a guess: the {where} column, and of two values that look like one", path)
    if len(known) == 1:
        return _read(known[0], "a guess: no other column has two values that look like a label's", path)
    which = f"; {', '.join(p.name for p in known[:6])} might be it" if known else ""
    raise UserError(
        f"{path}: no column is the label beyond doubt{which}; name it with --label COLUMN, or say --no-label: "
        f"{_columns(profiles)}"
    )


def _columns(profiles: Sequence[Profile]) -> str:
    def one(profile: Profile) -> str:
        examples = [shown(cell, 12) for cell, _ in profile.counts.most_common(2)]
        return f"{profile.name} ({', '.join([*examples, '…'][:3])})" if examples else profile.name

    return ", ".join(map(one, profiles[:12])) + (f" and {len(profiles) - 12} more" if len(profiles) > 12 else "")


def _yes_and_no(profile: Profile) -> tuple[bytes, bytes] | None:
    """The texts that mean yes and no, if nearly all rows hold one of them."""
    yes = [text for text in profile.counts if text.strip().lower() in _POSITIVE]
    no = [text for text in profile.counts if text.strip().lower() in _NEGATIVE]
    if len(yes) == len(no) == 1 and profile.counts[yes[0]] + profile.counts[no[0]] >= _NEARLY * profile.present:
        return yes[0], no[0]
    return None


def _read(profile: Profile, why: str, path: str) -> LabelGuess:
    texts = [cell for cell, _ in profile.counts.most_common()]
    if not texts:
        raise UserError(f"{path}: column {profile.name} is empty; name another with --label COLUMN, or --no-label")
    lines = [why[0].upper() + why[1:] + f". In the sample: {profile.shown_top(6)}."]
    if profile.missing:
        lines.append(_lost("have none", profile.missing, profile.rows))
    if both := _yes_and_no(profile):
        if others := profile.present - sum(profile.counts[text] for text in both):
            lines.append(_lost("have neither of the two", others, profile.rows))
        return _binary(profile, both[:1], both[1:], lines)
    if len(texts) <= 2:
        positive = [text for text in texts if text.strip().lower() in _POSITIVE]
        if len(texts) == 1:
            lines.append("LOOK AT THIS: there is one value only: nothing can be learned from such a log.")
            positive = positive or ([] if texts[0].strip().lower() in _NEGATIVE else texts)
        elif len(positive) != 1:
            positive = texts[-1:]
            lines.append("Which of the two is the positive one is a guess: the rarer.")
        negative = [text for text in texts if text not in positive] or [b"0" if b"0" not in positive else b"no"]
        return _binary(profile, positive or [b"1"], negative, lines)
    if not profile.is_numeric:
        if len(texts) > _MOST_GRADES:
            raise UserError(
                f"{path}: column {profile.name} has {len(texts)} texts in {profile.rows} rows, which is no label; "
                "name another with --label COLUMN, or say --no-label"
            )
        lines.append(f"More than two texts: {shown(texts[-1])}, the rarest, is assumed to be positive. Check it.")
        return _binary(profile, texts[-1:], texts[:-1], lines)
    if len(texts) > _MOST_GRADES:
        lines.append("Numbers: the model learns to predict them (squared loss).")
        return LabelGuess(profile, {"column": profile.name, "kind": "real"}, tuple(lines), None)
    middle = float(profile.numbers.mean())
    grades = sorted((text for text in texts if NUMBER.fullmatch(text)), key=float)
    lines.append(
        f"Grades: those above their mean, {middle:.2f}, are positive. To predict the grade: only `kind: real`."
    )
    return _binary(
        profile, [g for g in grades if float(g) > middle], [g for g in grades if float(g) <= middle], lines
    )


def _lost(why: str, count: int, rows: int) -> str:
    """The comment about rows without a label."""
    line = f"{count / rows:.2%} of the rows {why}: they will be rejected"
    if count <= 0.01 * rows:
        return f"{line}."
    return f"LOOK AT THIS: {line}, and prepare stops at more than 1 %; see its --max-reject-share."


def _binary(
    profile: Profile, positive: Sequence[bytes], negative: Sequence[bytes], lines: Sequence[str]
) -> LabelGuess:
    texts = {"positive": [t.decode() for t in positive], "negative": [t.decode() for t in negative]}
    wanted = set(positive)
    happened = np.array([cell in wanted for cell in profile.cells])
    share = f"{happened.mean():.1%} of the rows are positive."
    schema = {"column": profile.name, "kind": "binary", **texts}
    return LabelGuess(profile, schema, (*lines, share), happened)
