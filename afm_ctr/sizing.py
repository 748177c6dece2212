"""Training settings sized to the data: by its rows, its ids and its pairs, without training anything.

``afm-ctr init`` writes them to ``train.yaml``; ``afm-ctr train`` without ``--config`` uses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from afm_ctr.visible import counted

if TYPE_CHECKING:  # a schema's classes load NumPy, which a refused training run should not wait for
    from afm_ctr.schema import FeatureSchema
    from afm_ctr.schema.fields import OneField

_STEPS = 300  # per epoch, about
_FEW_STEPS = 64  # per epoch, below which batches are smaller than 64
_LEAST_BATCH, _LARGEST_BATCH = 16, 4096
_LARGE = 1_000_000  # rows from which a few epochs suffice, and an average of weights is not worth its memory
_OFTEN = 30  # rows per id, of the field with the most ids, from which they suffice
_SOME, _MANY = 50_000, 100_000  # rows from which pairs exceed noise in a sum of them, and in a network
_MOST_PAIRS = 400  # beyond, pooling by slot takes several times as long
_CERTAIN = 5  # deviations, from which pairs are no chance
_FAR = 18  # deviations that a weight's steps add up to, at least: most of them are noise and cancel
_BUCKETS, _PARTS_OF_TIME = 50, 24  # ids of a field whose encoding does not give their number


class Signals(NamedTuple):
    """Signals from some train rows, see :mod:`afm_ctr.pair_signal`; by default nothing is known."""

    c: float | None = None  # C that suits the weights; ``None``: unknown
    pair: float = 0.0  # certainty that pairs of ids add to a sum of weights, in deviations


UNKNOWN = Signals()


@dataclass(frozen=True)
class DataSize:
    """The size of the data, on which the settings depend."""

    rows: int  # to train on
    ids: int  # distinct ids in them, of all fields
    largest: int  # distinct ids of the field with the most
    slots: int  # filled slots per row, at most
    validated: bool = True  # whether there is a split ``valid``
    averaged: int = 0  # slots of multi-valued fields beyond the first of each: their mean counts like one
    signals: Signals = UNKNOWN

    @classmethod
    def of(
        cls, spec: FeatureSchema, rows: int, distinct: Mapping[str, int], *, validated: bool = True,
        signals: Signals = UNKNOWN,
    ) -> DataSize:  # fmt: skip
        """The size by a schema.

        Args:
            distinct: number of different cells by field name; a missing field counts by its encoding.
            signals: of some of the rows.
        """
        from afm_ctr.schema import slots_of

        ids = [_ids(field, spec, distinct.get(field.name)) for field in spec.fields]
        slots = sum(map(slots_of, spec.fields))
        averaged = sum(slots_of(field) - 1 for field in spec.fields if getattr(field, "value", None) == "mean")
        return cls(rows, sum(ids), max(ids), slots, validated, averaged, signals)

    @property
    def rows_per_id(self) -> float:
        """Mean number of rows per id of the field with the most ids, if each row has one."""
        return self.rows / max(self.largest, 1)

    @property
    def terms(self) -> int:
        """Number of terms in a logit: slots, but a mean of several values as one."""
        return self.slots - self.averaged

    @property
    def pairs(self) -> int:
        """Number of pairs of slots."""
        return self.slots * (self.slots - 1) // 2


def _ids(field: OneField, spec: FeatureSchema, distinct: int | None) -> int:
    """Approximate number of the field's ids in the rows."""
    from afm_ctr.schema import BucketEncoding, CategoricalField, CrossField, HashSpace, LibfmField, NumericField

    if isinstance(field, CategoricalField | CrossField):
        space = field.encoding or spec.spaces.get(field.space or "")
        most = space.buckets if isinstance(space, HashSpace) else getattr(space, "size", None)
        known = [number for number in (most, distinct) if number is not None]
        return max(1, min(known, default=1))
    if isinstance(field, LibfmField):
        lo, hi = field.ids
        return min(hi - lo, distinct or hi - lo)
    if isinstance(field, NumericField):
        if not isinstance(field.encoding, BucketEncoding):
            return 1
        boundaries = field.encoding.boundaries
        most = field.encoding.quantiles or (len(boundaries) + 1 if boundaries else _BUCKETS)
        return min(most, distinct or most)
    return min(_PARTS_OF_TIME, distinct or _PARTS_OF_TIME)


@dataclass(frozen=True)
class Settings:
    """The settings of a training run."""

    content: dict[str, Any]  # keys of ``train.yaml``
    why: dict[str, str]  # reasons for some of the keys' values

    def to_yaml(self) -> str:
        """``train.yaml``, with the reasons as comments."""
        lines = []
        for key, value in self.content.items():
            lines += [f"# {line}" for line in self.why.get(key, "").splitlines()]
            lines.append(f"{key}: {yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)}")
            lines[-1] = lines[-1].removesuffix("\n").removesuffix("\n...")
        return "\n".join(lines) + "\n"


def settings_for(size: DataSize) -> Settings:
    """The settings for data of this size.

    ``row_l2`` of the weights is that of a logistic regression, divided by the rows, as a step's loss is a mean. Its C
    was tried on rows (:mod:`afm_ctr.penalty`), or else is 10 / slots^1.5, at most 1: the more weights a logit adds
    up, the smaller each must be. For the same reason the rate is divided by the slots; but C is the variance that a
    weight is expected to have, and all steps of a weight add up to 18 deviations, if no step moves a logit by more
    than 1. The rate falls linearly to 0, and ``afm`` validates averages over an epoch: in a run that jumps, the best
    epoch is one whose mean prediction happens to suit the rows of ``valid``. Adam's ``epsilon`` is 0.03 of what one
    row weighs in the mean: a rare id moves by what its rows show, not as far as one of many that agree.
    """
    usual = max(2 ** round(math.log2(max(size.rows / _STEPS, 1))), 64)
    batch = max(min(usual, 2 ** int(math.log2(max(size.rows / _FEW_STEPS, 1))), _LARGEST_BATCH), _LEAST_BATCH)
    steps = -(-size.rows // batch)
    figures = (
        f"{counted(size.rows, 'row')}; about {counted(size.ids, 'id')}, those of the largest field with "
        f"{counted(round(size.rows_per_id), 'row')}"
    )
    choice = _choose(size)
    c, reason = _c(size)
    epochs = choice.epochs if size.rows < _LARGE else 8 if size.rows < 20_000_000 else 3
    far = 2 * _FAR * c**0.5 / (steps * epochs)  # it falls to 0: half of this on average
    rate = max(choice.rate, min(far, 1 / size.terms, 0.1))
    optimizer = {"name": "adam", "learning_rate": _rounded(rate), "epsilon": _rounded(0.03 / batch)}
    if choice.model["name"] == "afm" and size.rows < _LARGE:
        optimizer["average"] = round(1 - 1 / max(steps, 2), 4)
    content: dict[str, Any] = {
        "model": choice.model,
        "loss": "log",
        "row_l2": {"linear": _rounded(0.5 / c / size.rows), "vectors": _rounded(choice.penalty / size.rows)},
        "row_l2_per": "step",
        "optimizer": {**optimizer, "decay": "linear"},
        "batch_size": batch,
        "epochs": epochs,
        "seed": 0,
    }
    why = {
        "model": f"{figures}; {size.pairs:,} pairs of slots.\n{choice.reason}",
        "row_l2": f"Weights: 0.5 / C by the rows, of a logistic regression with C = {c:.2g}, {reason};\n"
        f"vectors: {choice.penalty:.3g} by the rows.",
        "optimizer": "The rate falls to 0 at the end. epsilon: 0.03 by batch_size; below it an id's step goes by its "
        "gradient.",
        "batch_size": f"{counted(steps, 'step')} an epoch.",
        "epochs": "At most: early_stopping may end the run.",
    }
    if size.validated:
        content |= {
            "validation": {"split": "valid", "metric": "log_loss"},
            "early_stopping": {"patience": max(2, epochs // 3)},
        }
        why["validation"] = "The best epoch is what is evaluated and exported."
    else:
        few = min(epochs, 5) if choice.model["name"] == "deep_afm" else epochs
        content |= {"epochs": few, "validation": None}
        why["epochs"] = "No split `valid` says when to stop."
    return Settings(content, why)


def _c(size: DataSize) -> tuple[float, str]:
    """C of the weights, and its origin."""
    if size.signals.c is not None:
        return size.signals.c, "the best on rows that it had not seen"
    return min(10 / size.terms**1.5, 1.0), "10 / slots^1.5, at most 1"


class _Choice(NamedTuple):
    """A model with its reason, the vectors' penalty over all rows, the rate, and the epochs for a small log."""

    model: dict[str, Any]
    reason: str
    penalty: float
    rate: float
    epochs: int = 30


def _choose(size: DataSize) -> _Choice:
    """The model for data of this size."""
    # Noise in pairs of ids grows with the root of the rows: the penalty must be stronger.
    noise = size.slots * size.rows**0.5 / 80
    summed: dict[str, Any] = {"name": "fm", "factors": 16, "init_stddev": 0.1}
    if size.rows < _MANY and size.signals.pair > _CERTAIN:
        reason = f"fm, a sum of pairs: rows that share a pair of ids agree by {size.signals.pair:.0f} deviations."
        return _Choice(summed, reason, noise, 0.1 / size.terms, 15)
    if size.rows < _SOME:
        reason = f"below {_SOME:,} rows they"
    elif size.rows_per_id < _OFTEN:
        reason = f"below {_OFTEN} rows an id they"
    elif size.pairs > _MOST_PAIRS:
        reason = f"of more than {_MOST_PAIRS} deep_afm takes several times as long, and a sum"
    elif size.rows < _MANY:
        return _Choice(
            summed, f"fm, a sum of pairs: a network on them needs {_MANY:,} rows.", noise, 0.1 / size.terms, 15
        )
    else:
        model = {"name": "deep_afm", "factors": 16, "attention": 16, "hidden": [32], "normalise": False}
        reason = "deep_afm: ids are seen often enough for a network on their pairs."
        return _Choice(model | {"pooled_dropout": 0.3}, reason, 60.0, 0.001)
    return _Choice(
        {"name": "afm", "factors": 16, "attention": 16},
        f"afm, a mean of pairs: {reason} would learn noise. The penalty leaves it near a logistic regression.",
        60.0,
        0.15 / size.terms,
    )


def _rounded(number: float) -> float:
    return float(f"{number:.2g}")
