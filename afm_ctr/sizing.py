"""Training settings sized to the data: by its rows, its ids and its pairs, without training anything.

``afm-ctr init`` writes them to ``train.yaml``; ``afm-ctr train`` without ``--config`` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from afm_ctr.schema import (
    BucketEncoding,
    CategoricalField,
    CrossField,
    FeatureSchema,
    HashSpace,
    LibfmField,
    NumericField,
    slots_of,
)
from afm_ctr.schema.fields import OneField

_STEPS = 300  # of an epoch, about
_LEAST_BATCH, _LARGEST_BATCH = 64, 4096
_OFTEN = 30  # rows an id from which a network reads more than noise in products of vectors ...
_MANY = 50_000  # ... and rows
_MOST_PAIRS = 400  # beyond, pooling by slot takes several times as long
_BUCKETS, _PARTS_OF_TIME = 50, 24  # ids of a field whose encoding does not say how many


@dataclass(frozen=True)
class DataSize:
    """What the settings go by.

    Attributes:
        rows: to train on.
        ids: distinct ids in them, of all fields.
        largest: distinct ids of the field with the most.
        slots: filled slots of a row, at most.
        validated: whether there is a split ``valid``.
    """

    rows: int
    ids: int
    largest: int
    slots: int
    validated: bool = True

    @classmethod
    def of(cls, spec: FeatureSchema, rows: int, distinct: Mapping[str, int], *, validated: bool = True) -> DataSize:
        """By a schema.

        Args:
            spec: the fields.
            rows: to train on.
            distinct: different cells of a field, by its name; a field that is not there counts by its encoding.
            validated: whether there is a split ``valid``.
        """
        ids = [_ids(field, spec, distinct.get(field.name)) for field in spec.fields]
        return cls(rows, sum(ids), max(ids), sum(map(slots_of, spec.fields)), validated)

    @property
    def rows_per_id(self) -> float:
        """How many rows hold an id of the field with the most ids, on average, if each row has one."""
        return self.rows / max(self.largest, 1)

    @property
    def pairs(self) -> int:
        """Pairs of slots."""
        return self.slots * (self.slots - 1) // 2


def _ids(field: OneField, spec: FeatureSchema, distinct: int | None) -> int:
    """About how many ids of the field the rows hold."""
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
    """Of a training run.

    Attributes:
        content: keys of ``train.yaml``.
        why: what led to a key's value; not every key has a reason.
    """

    content: dict[str, Any]
    why: dict[str, str]

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

    ``row_l2`` of the weights is that of a logistic regression with C = 1, divided by the rows, as a step's loss is a
    mean. Adam's ``epsilon`` is a tenth of what one row weighs in that mean: so a rare id moves by what its rows say,
    and not as far as one of a thousand rows that agree.
    """
    batch = min(max(2 ** round(math.log2(max(size.rows / _STEPS, 1))), _LEAST_BATCH), _LARGEST_BATCH)
    steps = -(-size.rows // batch)
    figures = (
        f"{size.rows:,} rows; about {size.ids:,} ids, those of the largest field with {size.rows_per_id:,.0f} rows"
    )
    model: dict[str, Any] = {"name": "afm", "factors": 16, "attention": 16}
    if size.rows < _MANY:
        reason = f"afm, a mean of pairs: a network on them needs {_MANY:,} rows."
    elif size.rows_per_id < _OFTEN:
        reason = f"afm, a mean of pairs: a network on them needs {_OFTEN} rows an id."
    elif size.pairs > _MOST_PAIRS:
        reason = f"afm: of more than {_MOST_PAIRS} pairs of slots deep_afm takes several times as long."
    else:
        model = {"name": "deep_afm", "factors": 16, "attention": 16, "hidden": [32], "normalise": False}
        model["pooled_dropout"] = 0.3
        reason = "deep_afm: ids are seen often enough for a network on their pairs."
    rate = 0.001 if model["name"] == "deep_afm" else 0.003 if size.rows >= _MANY else 0.01
    epochs = 30 if size.rows < 1_000_000 else 8 if size.rows < 20_000_000 else 3
    content: dict[str, Any] = {
        "model": model,
        "loss": "log",
        "row_l2": {"linear": _rounded(0.5 / size.rows), "vectors": _rounded(60.0 / size.rows)},
        "row_l2_per": "step",
        "optimizer": {"name": "adam", "learning_rate": rate, "epsilon": _rounded(0.1 / batch)},
        "batch_size": batch,
        "epochs": epochs,
        "seed": 0,
    }
    why = {
        "model": f"{figures}; {size.pairs:,} pairs of slots.\n{reason}",
        "row_l2": f"Weights: 0.5 by {size.rows:,} rows, as a logistic regression with C = 1; vectors: 60 by them.",
        "optimizer": "epsilon: 0.1 by batch_size; below it an id's step goes by its gradient.",
        "batch_size": f"{steps:,} steps an epoch.",
        "epochs": "At most: early_stopping ends the run.",
    }
    if size.validated:
        content |= {
            "validation": {"split": "valid", "metric": "log_loss"},
            "early_stopping": {"patience": 3},
            "reduce_on_plateau": {"factor": 0.3, "patience": 1},
        }
        why["validation"] = "The best epoch is what is evaluated and exported."
    else:
        content |= {"epochs": min(epochs, 5), "validation": None}
        content["optimizer"] |= {"decay": "linear"}
        why |= {"epochs": "Few: no split `valid` says when to stop."}
    return Settings(content, why)


def _rounded(number: float) -> float:
    return float(f"{number:.2g}")
