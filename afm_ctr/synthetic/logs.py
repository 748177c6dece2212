"""Writes the logs: tab-separated text without a header: label, 13 integers, and 26 ids of 8 hexadecimal digits."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from afm_ctr.errors import UserError
from afm_ctr.io.files import as_user_error, replacing, write_json
from afm_ctr.synthetic.truth import CATEGORIES, CELLS, COLUMNS, INTEGERS, PLANTED, Rows, Truth, token_hashes

MALFORMED_KINDS = ("column_count", "bad_number", "bad_label", "bad_utf8")
_BLOCK_ROWS = 4000  # fits in the CPU's cache
_INTEGER_WIDTH = 8  # a sign or a stray letter, then seven digits
_BINS = 1 << 16  # bins of the true logit, for the best possible AUC
_LOGIT_RANGE = 16.0


class LogsSummary(BaseModel):
    """Summary of the written logs, and the best possible metrics on them.

    ``bayes_auc`` and ``bayes_log_loss`` are those of the true logit over the well-formed rows; the AUC is computed
    from 65,536 bins of the logit and is exact to about 1e-5. ``malformed`` counts lines by the reason for which
    ``prepare`` rejects them.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    truth: str
    rows: int
    well_formed: int
    clicks: int
    malformed: dict[str, int]
    planted_pairs: list[tuple[str, str]]
    bayes_auc: float | None
    bayes_log_loss: float | None
    bytes: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def __str__(self) -> str:
        broken = ", ".join(f"{kind} {count:,}" for kind, count in self.malformed.items() if count)
        rate = f"{self.clicks / self.well_formed:.1%}" if self.well_formed else "none"
        planted = ", ".join(" x ".join(pair) for pair in self.planted_pairs)
        best = f"{self.bayes_auc:.4f}" if self.bayes_auc is not None else "undefined"
        return (
            f"{self.rows:,} lines ({self.bytes / 1e6:,.1f} MB) in {self.path}; clicks {rate}; "
            f"malformed: {broken or 'none'}\n"
            f"planted pairs: {planted}; best AUC possible: {best} (truth in {self.truth})"
        )


def make_logs(
    path: str | os.PathLike[str],
    rows: int,
    seed: int = 0,
    malformed: float = 0.0,
    *,
    ctr: float = 0.25,
    block_rows: int = _BLOCK_ROWS,
    progress: Callable[[int], None] | None = None,
) -> LogsSummary:
    """Write ``rows`` lines of Criteo-shaped logs with known effects, in constant memory.

    The lines depend only on (seed, malformed, ctr): shorter logs are a prefix of longer ones for any block size.
    Next to the logs, ``<path>.truth.json`` holds the planted pairs and their scores.

    Args:
        path: gzip if it ends in ``.gz``. Written to a temporary file and renamed.
        malformed: probability that a line is malformed: too few columns, an invalid number or label, or bytes that
            are not UTF-8.

    Raises:
        UserError: an invalid argument, or a path that cannot be written.
    """
    if rows < 1:
        raise UserError(f"make-logs: rows is {rows}; ask for at least 1")
    if seed < 0:
        raise UserError(f"make-logs: seed is {seed}; it must be 0 or more")
    if not 0.0 <= malformed <= 1.0:
        raise UserError(f"make-logs: malformed is {malformed}; it is a share of the lines, between 0 and 1")
    if not 0.0 < ctr < 1.0:
        raise UserError(f"make-logs: ctr is {ctr}; it must lie between 0 and 1")
    target = Path(path)
    truth_path = Path(f"{target}.truth.json")
    truth = Truth(seed, ctr)
    tally = _Tally()
    with as_user_error(f"make-logs: cannot write {target}"):
        with replacing(target) as plain:
            # No file name and no time in the gzip header, so that the bytes are reproducible.
            packed = gzip.GzipFile("", "wb", 1, plain, mtime=0) if target.suffix == ".gz" else nullcontext(plain)
            with packed as stream:
                _write(stream, truth, rows, malformed, max(1, block_rows), tally, progress)
            write_json(truth_path, _description(truth, rows, malformed, ctr))
        written = target.stat().st_size
    auc, log_loss = tally.best()
    return LogsSummary(
        path=str(target), truth=str(truth_path), rows=rows, well_formed=tally.well_formed, clicks=tally.clicks,
        malformed=dict(zip(MALFORMED_KINDS, tally.malformed.tolist(), strict=True)),
        planted_pairs=[(pair.first, pair.second) for pair in PLANTED],
        bayes_auc=_rounded(auc), bayes_log_loss=_rounded(log_loss), bytes=written, seed=seed,
    )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


class _Tally:
    """Counts over the whole log, in constant memory."""

    def __init__(self) -> None:
        self.well_formed = 0
        self.clicks = 0
        self.malformed = np.zeros(len(MALFORMED_KINDS), np.int64)
        self._bins = np.zeros((2, _BINS), np.int64)
        self._loss = 0.0

    def add(self, rows: Rows, kinds: np.ndarray) -> None:
        self.malformed += np.bincount(kinds[kinds >= 0], minlength=len(MALFORMED_KINDS))
        good = kinds < 0
        logit, clicks = rows.logit[good], rows.clicks[good]
        self.well_formed += len(clicks)
        self.clicks += int(clicks.sum())
        place = np.clip((logit + _LOGIT_RANGE) * (_BINS / (2 * _LOGIT_RANGE)), 0, _BINS - 1).astype(np.int64)
        for label in (0, 1):
            self._bins[label] += np.bincount(place[clicks == bool(label)], minlength=_BINS)
        self._loss += float(np.sum(np.logaddexp(0.0, np.where(clicks, -logit, logit))))

    def best(self) -> tuple[float | None, float | None]:
        """AUC (ties within a bin count half) and mean log loss of the true logit; None if undefined."""
        negatives, positives = self._bins
        if not self.well_formed:
            return None, None
        loss = self._loss / self.well_formed
        if not negatives.sum() or not positives.sum():
            return None, loss
        below = np.cumsum(negatives) - negatives
        wins = np.sum(positives * (below + 0.5 * negatives))
        return float(wins / (int(negatives.sum()) * int(positives.sum()))), loss


def _write(
    stream: IO[bytes] | gzip.GzipFile, truth: Truth, rows: int, malformed: float, block: int, tally: _Tally,
    progress: Callable[[int], None] | None,
) -> None:  # fmt: skip
    for first in range(0, rows, block):
        count = min(block, rows - first)
        made, draws = truth.rows(first, count)
        health = draws.health()
        # The low bits choose the kind; the number's magnitude decides whether the line is malformed.
        kinds = np.where(health < malformed * 2.0**32, (health & 3).astype(np.int64), -1)
        stream.write(render(made, kinds))
        tally.add(made, kinds)
        if progress is not None:
            progress(first + count)


def render(rows: Rows, kinds: np.ndarray) -> bytes:
    """The lines of ``rows`` as bytes; ``kinds`` [n] is the kind of malformed line, -1 for well-formed.

    Every cell has a fixed width in a matrix of bytes; zeros are removed at the end in one pass.
    """
    count = len(kinds)
    out = np.zeros((count, 1 + INTEGERS * (1 + _INTEGER_WIDTH) + CATEGORIES * 9 + 1), np.uint8)
    out[:, 0] = rows.clicks + ord("0")
    out[:, -1] = ord("\n")
    numbers = out[:, 1 : 1 + INTEGERS * (1 + _INTEGER_WIDTH)].reshape(count, INTEGERS, 1 + _INTEGER_WIDTH)
    words = out[:, 1 + INTEGERS * (1 + _INTEGER_WIDTH) : -1].reshape(count, CATEGORIES, 9)
    numbers[:, :, 0] = ord("\t")
    words[:, :, 0] = ord("\t")
    _render_integers(rows.integers, rows.present[:, :INTEGERS], numbers[:, :, 1:])
    hashes = np.stack([token_hashes(c, rows.categories[:, c]) for c in range(CATEGORIES)], axis=1)
    digits = _HEXADECIMAL[hashes.astype(">u4").view(np.uint8)].view(np.uint8).reshape(count, CATEGORIES, 8)
    words[:, :, 1:] = digits * rows.present[:, INTEGERS:, None]

    broken = {kind: np.flatnonzero(kinds == index) for index, kind in enumerate(MALFORMED_KINDS)}
    words[broken["column_count"], -1, 0] = 0  # merges the last two cells
    numbers[broken["bad_number"], 0, 1] = ord("x")
    out[broken["bad_label"], 0] = ord("?")
    words[broken["bad_utf8"], 0, 1:3] = (0xFF, 0xFE)
    return out.tobytes().translate(None, b"\0")


_HEXADECIMAL = np.frombuffer(b"".join(b"%02x" % value for value in range(256)), np.uint16)


def _render_integers(values: np.ndarray, present: np.ndarray, out: np.ndarray) -> None:
    """Write the decimal digits of ``values`` [n, c], |value| < 10^7, to ``out`` uint8 [n, c, 8]; the rest stays 0."""
    rest = np.abs(values).astype(np.uint32)
    out[:, :, 0] = np.where((values < 0) & present, ord("-"), 0)
    for place in range(out.shape[2] - 1, 0, -1):
        shown = present if place == out.shape[2] - 1 else present & (rest > 0)
        higher = rest // np.uint32(10)
        out[:, :, place] = np.where(shown, rest - higher * np.uint32(10) + ord("0"), 0)
        rest = higher


def _description(truth: Truth, rows: int, malformed: float, ctr: float) -> dict[str, Any]:
    scores = {}
    for name, values in truth.scores.items():
        column = COLUMNS.index(name) - INTEGERS
        tokens = token_hashes(column, np.arange(len(values)))
        scores[name] = {f"{token:08x}": round(float(score), 6) for token, score in zip(tokens, values, strict=True)}
    return {
        "seed": truth.seed,
        "rows": rows,
        "malformed": malformed,
        "ctr": ctr,
        "bias": truth.bias,
        "cells": CELLS,
        "planted_pairs": [
            {"pair": f"{p.first} x {p.second}", "first": p.first, "second": p.second, "strength": p.strength}
            for p in PLANTED
        ],
        "scores": scores,
    }
