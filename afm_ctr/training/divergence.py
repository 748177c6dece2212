"""The likely cause of a divergence, from the last batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.records import Reader

_STEPS = 32  # the last steps that are searched for a cause, and if they show none
_MOST_STEPS = 1000  # steps from the epoch's start
_LARGE = 100.0  # a number above this is reported
_LARGE_WEIGHT = 1e18  # a weight scales a loss and its divisor alike: it does harm only near float32's limit


class _Number(NamedTuple):
    size: float
    text: str


def largest_input(reader: Reader, epoch: int, steps_done: int) -> str:
    """A sentence on the largest number in the last steps of an epoch, or else in all of it, over all ranks' rows."""
    whole, found = reader.of_all_ranks(), _Number(0.0, "")
    # A label moves the initial bias, wherever in the epoch its row is.
    for steps in (range(max(0, steps_done - _STEPS), steps_done), range(min(_MOST_STEPS, reader.steps_per_epoch))):
        try:
            for step in steps:
                for number in _numbers(whole, whole.batch(epoch, step)):
                    found = max(found, number, key=lambda one: one.size)
        except UserError:  # an unreadable record shows no cause
            pass
        if found.size > _LARGE:
            return (
                f"the largest number that it read is {found.text}: correct the row, give the field `log`, "
                "`standardise` or buckets, or lower optimizer.learning_rate"
            )
    return f"no number that it read is above {_LARGE:g}: lower optimizer.learning_rate"


def check_scores(reader: Reader, step: int, weights: np.ndarray, scores: np.ndarray) -> None:
    """Check that every row with a weight has a finite score.

    Args:
        reader: of the split, in file order.
        weights: float ``[B]``, of its rows.
        scores: float ``[B]``.

    Raises:
        UserError: a score is not finite; it names the row and its largest value.
    """
    wrong = ~np.isfinite(scores) & (weights > 0)
    if not wrong.any():
        return
    row = int(wrong.argmax())
    batch = reader.batch(0, step)  # read again, with the keys
    value = _largest_value(reader, {name: column[row : row + 1] for name, column in batch.items()})
    remedy = (
        f"its largest number is {value.text}: correct it, or give the field `log`, `standardise` or buckets"
        if value.size > _LARGE
        else "the training diverged or the weights are damaged: a lower optimizer.learning_rate or an earlier "
        "checkpoint helps"
    )
    key = batch["key"][row].decode(errors="replace")
    raise UserError(f"split {reader.split!r}: {int(wrong.sum())} scores are not finite, row {key!r} first; {remedy}")


def _numbers(reader: Reader, batch: dict[str, np.ndarray]) -> Iterator[_Number]:
    """The largest value, label and weight of a batch."""
    yield _largest_value(reader, batch)
    weights = batch["weight"]
    labels = np.where(weights > 0, np.abs(batch["label"]), 0)
    row = int(labels.argmax())
    yield _named(labels[row], batch["label"][row], "the label", batch, row)
    row = int(weights.argmax())
    yield _named(weights[row] if weights[row] > _LARGE_WEIGHT else 0, weights[row], "the weight", batch, row)


def _largest_value(reader: Reader, batch: dict[str, np.ndarray]) -> _Number:
    counted = (batch["weight"] > 0)[:, np.newaxis] & (batch["feature_ids"] != 0)
    sizes = np.where(counted, np.abs(batch["feature_vals"]), 0)
    if not sizes.size:
        return _Number(0.0, "")
    row, slot = np.unravel_index(int(sizes.argmax()), sizes.shape)
    where = f"field {reader.schema.slots[slot].field!r}"
    return _named(sizes[row, slot], batch["feature_vals"][row, slot], where, batch, int(row))


def _named(size: float, value: float, where: str, batch: dict[str, np.ndarray], row: int) -> _Number:
    return _Number(float(size), f"{value:g}, {where} of row {batch['key'][row].decode(errors='replace')!r}")
