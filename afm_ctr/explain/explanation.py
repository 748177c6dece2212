"""The result of an explanation: effects and shares of pairs, of a split and of single rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from afm_ctr.explain.effects import EffectOf
from afm_ctr.explain.trust import Agreement

_LITTLE = 1e-3  # of a logit; it moves a probability by a quarter of it at most


@dataclass(frozen=True)
class PairEffect:
    """One pair of fields, or of slots. Figures that the model does not define are None."""

    rank: int  # by the size of ``effect``, 1 is the largest; by ``attention`` for a model without effects
    fields: tuple[str, str]  # names of the two fields, or slots
    # over a split the standard deviation of the change, for one row the change itself. The change is what the logit
    # loses when the pair is removed (and the others share its attention); for a model that does not define that, what
    # the pair adds to the logit.
    effect: float | None
    mean_change: float | None  # mean absolute change
    # share of the pairs' movement of the logit: sum of the pair's absolute changes over the rows, divided by that sum
    # over all pairs
    effect_share: float | None
    contribution: float | None  # the pair's part of the logit, mean over the rows; None if pairs do not add up
    # mean share of attention (over the rows that have the pair its mean would be larger by 1 / ``present``); None for
    # a model without attention
    attention: float | None
    attention_rank: int | None  # by ``attention``
    # share of the pooling: sum over the rows of the attention times the length of the pair's product ‖u_i ⊙ u_j‖,
    # divided by that sum over all pairs; None as ``attention``
    weighted_attention: float | None
    present: float  # share of the rows that have both; of fields with several slots, any of their pairs
    slot_pairs: int = 1  # its number of pairs of slots: more than 1 if a field takes several values

    @property
    def name(self) -> str:
        return " x ".join(self.fields)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self), "fields": list(self.fields)}


@dataclass(frozen=True)
class RowFacts:
    """One row of the split."""

    number: int  # its index in the split, from 0
    key: str  # joins it to its log line
    label: float | None  # None if there is none
    logit: float  # as served
    score: float  # probability, or score under squared loss
    # for every present slot its name, its content, and its own term of the logit, largest first
    linear: tuple[tuple[str, str, float], ...]
    bias: float  # the rest of the logit that belongs to no slot

    @property
    def title(self) -> str:
        label = "" if self.label is None else f", label {self.label:g}"
        return f"row {self.number} ({self.key}{label}): {self.score:.6f}"


@dataclass(frozen=True)
class Explanation:
    """The pairs by rank, and the rows they were measured on."""

    model: str
    split: str
    rows: int  # number of rows that were read
    pairs: tuple[PairEffect, ...]  # all pairs of fields that occur in some row, by rank
    # meaning of the effects: ``removal`` of the pair, its ``contribution``, or None: no effects
    effect_of: EffectOf | None
    agreement: Agreement | None  # of the rankings by effect and by attention; None if one of them is missing
    row: RowFacts | None = None  # of an explanation of a single row
    requests: tuple[Explanation, ...] = ()  # single rows of the split, explained one by one
    files: tuple[str, ...] = ()
    slots: tuple[PairEffect, ...] = ()  # if a field has several slots, all pairs of slots by rank; else empty

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, between the size of effects and attention; None if undefined."""
        return None if self.agreement is None else self.agreement.correlation

    @property
    def largest(self) -> float | None:
        """The size of the largest effect; None without effects."""
        return max((abs(pair.effect) for pair in self.pairs if pair.effect is not None), default=None)

    @property
    def comparison(self) -> Agreement | None:
        """The agreement, if the ranking by effect is one of more than noise."""
        return self.agreement if (self.largest or 0.0) >= _LITTLE else None

    @property
    def has_attention(self) -> bool:
        return bool(self.pairs) and self.pairs[0].attention is not None

    @property
    def has_contributions(self) -> bool:
        return bool(self.pairs) and self.pairs[0].contribution is not None

    @property
    def title(self) -> str:
        if self.row is None:
            return f"pairs of {self.model} on {self.rows:,} rows of {self.split}"
        return f"{self.model}, {self.split}, {self.row.title}"

    def missing(self) -> list[str]:
        """What the model does not define for its pairs, or has not learnt about them, one sentence each."""
        if not self.pairs:
            return ["No row that was looked at has two slots present: there are no pairs to explain."]
        sentences = []
        if self.effect_of is None:
            sentences.append(
                f"Model {self.model!r} tells neither what the logit loses without a pair nor what a pair adds to it: "
                "the pairs are in order of attention, which is no measure of effect."
            )
        elif self.effect_of == "contribution":
            sentences.append(
                f"Model {self.model!r} cannot tell what the logit loses without a pair: its effects are what the "
                "pairs add to the logit."
            )
        elif not self.has_contributions:
            sentences.append(
                f"The pairs of model {self.model!r} do not add up to the logit, so none has a contribution of its "
                "own: its effect is the change of the logit when it is taken out."
            )
        if self.largest is not None and self.largest < _LITTLE:
            sentences.append(
                f"The pairs hardly move the logit here: the largest effect is {self.largest:.1g}. Their order and "
                "their shares say nothing."
            )
        if not self.has_attention:
            sentences.append(f"Model {self.model!r} has no attention: there is no share to compare effects with.")
        return sentences

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain data with the first ``top`` pairs, of the split and of each request."""
        return {
            "model": self.model,
            "split": self.split,
            "rows": self.rows,
            "pairs": [pair.to_json() for pair in self.pairs[:top]],
            "pairs_in_all": len(self.pairs),
            "slots": [pair.to_json() for pair in self.slots[:top]],
            "effect_of": self.effect_of,
            "rank_correlation": self.rank_correlation,
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "missing": self.missing(),
            "row": None if self.row is None else asdict(self.row),
            "requests": [request.to_json(top) for request in self.requests],
            "files": list(self.files),
        }
