"""Explains a run on a prepared data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.explain.content import describe_slot
from afm_ctr.explain.effects import FieldPairs, PairProbe, PairSums, shares
from afm_ctr.explain.explanation import Explanation, PairEffect, RowFacts
from afm_ctr.explain.trust import Agreement, agreement_of
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.evaluation import check_readable
from afm_ctr.training.model_io import Which, open_run

MOST_REQUESTS = 100  # every pair of these is kept

_Figures = Mapping[str, np.ndarray]  # of pairs, and the share of rows that have them


def explain(
    model_dir: str | Path,
    data_dir: str | Path,
    split: str = "test",
    row: int | None = None,
    output: str | Path | None = None,
    *,
    requests: int = 0,
    max_rows: int = 20_000,
    which: Which = "best",
) -> Explanation:
    """Which pairs of fields matter: what the logit loses without a pair, next to the pair's share of attention.

    The effect is exact: the pair is removed and the softmax runs over the others; for fields with several slots all
    their pairs of slots are removed at once. Attention is shown next to it because a large share of a product that is
    near zero, or always the same, does not change the ranking of rows.

    Args:
        row: explain only this row of the split (from 0, in file order).
        output: folder for tables (CSV), pictures (PNG) and one page with all of it (HTML); None writes nothing.
        requests: also explain this many rows one by one, the first of the split; not with ``row``.
        max_rows: at most this many rows, the first of the split.

    Raises:
        UserError: no such run, split or row, a foreign schema, a model without pairs, too many requests, or a
            folder that cannot be written.
    """
    if not 0 <= requests <= MOST_REQUESTS:
        raise UserError(f"explain: {requests} single rows were asked for; ask for 0 to {MOST_REQUESTS}")
    model, schema, *_ = open_run(model_dir, which)
    explanation = explain_model(model, schema, data_dir, split, row, requests=requests, max_rows=max_rows)
    if output is None:
        return explanation
    from afm_ctr.explain.page import write

    return write(explanation, schema, Path(output))


def explain_model(
    model: CTRModel,
    schema: ResolvedSchema,
    data_dir: str | Path,
    split: str,
    row: int | None = None,
    *,
    requests: int = 0,
    max_rows: int,
) -> Explanation:
    """:func:`explain` for a loaded model and the schema it was trained with; nothing is written.

    Raises:
        UserError: as :func:`explain`.
    """
    if not len(schema.pairs):
        raise UserError(f"explain: schema {schema.spec.name!r} has {schema.num_slots} slot(s) and no pairs of them")
    probe = PairProbe(model, FieldPairs.of(schema))
    if probe.effect_of is None and not probe.has_attention:
        raise UserError(f"explain: model {model.interaction_name!r} has no pairs to explain; train afm or fm")
    reader = Reader(data_dir, split, probe.rows, shuffle=False)
    check_readable(schema, reader.schema, data_dir)
    work = _Work(model, schema, probe, reader, split)
    if row is not None:
        if not 0 <= row < reader.rows:
            raise UserError(
                f"explain: row {row} is not in split {split!r}, which has the rows 0 to {reader.rows - 1}"
            )
        return work.of_row(row)
    explanation = work.of_split(max_rows)
    singles = tuple(work.of_row(number) for number in range(min(requests, explanation.rows)))
    return replace(explanation, requests=singles)


class _Work:
    """A model and the rows on which it is explained."""

    def __init__(self, model: CTRModel, schema: ResolvedSchema, probe: PairProbe, reader: Reader, split: str) -> None:
        self.model, self.schema, self.probe, self.reader, self.split = model, schema, probe, reader, split
        self._batch: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def of_split(self, max_rows: int) -> Explanation:
        probe = self.probe
        by_slot, by_field = PairSums.of(len(self.schema.pairs)), PairSums.of(len(probe.fields.names))
        with self.reader.explained():
            for step, batch in enumerate(self.reader.dataset(0)):
                rows = min(self.reader.local_rows(step), max_rows - by_slot.rows)
                if rows <= 0:
                    break
                features = batch["feature_ids"][:rows], batch["feature_vals"][:rows]
                found = probe(*features)
                by_slot.add(found)
                by_field.add(probe.by_field(found, *features) if probe.fields.several else found)
        return self._explanation(by_slot.rows, self._over_rows(by_field), self._over_rows(by_slot))

    def _over_rows(self, sums: PairSums) -> _Figures:
        probe = self.probe
        figures = {"present": sums.present / sums.rows}
        if probe.effect_of is not None:
            figures["effect"] = sums.deviation()
            figures["mean_change"] = sums.absolute / sums.rows
            figures["effect_share"] = shares(sums.absolute)
        if probe.has_contributions:
            figures["contribution"] = sums.contribution / sums.rows
        if probe.has_attention:
            figures["attention"] = sums.attention / sums.rows
        if probe.has_products:
            figures["weighted_attention"] = shares(sums.weighted)
        return figures

    def of_row(self, row: int) -> Explanation:
        step, place = divmod(row, self.reader.local_batch)
        if self._batch[0] != step:
            self._batch = step, self.reader.batch(0, step)
        batch = {name: values[place : place + 1] for name, values in self._batch[1].items()}
        features = batch["feature_ids"], batch["feature_vals"]
        by_slot = self.probe(*features)
        by_field = self.probe.by_field(by_slot, *features) if self.probe.fields.several else by_slot
        explanation = self._explanation(1, _of_one(by_field), _of_one(by_slot))
        return replace(explanation, row=self._facts(row, batch))

    def _explanation(self, rows: int, by_field: _Figures, by_slot: _Figures) -> Explanation:
        fields, schema = self.probe.fields, self.schema
        slots: tuple[PairEffect, ...] = ()
        if fields.several:
            slots = _ranked([(schema.slots[i].name, schema.slots[j].name) for i, j in schema.pairs], by_slot)
        pairs = _ranked(fields.names, by_field, [len(places) for places in fields.members])
        name, effect_of = self.model.interaction_name, self.probe.effect_of
        return Explanation(name, self.split, rows, pairs, effect_of, _agreement(by_field), slots=slots)

    def _facts(self, row: int, batch: Mapping[str, np.ndarray]) -> RowFacts:
        model, schema = self.model, self.schema
        features = {name: batch[name] for name in ("feature_ids", "feature_vals")}
        logit = float(model(features, training=False, corrected=True)[0])
        linear = model.inputs_of(features).linear.numpy()[0]
        ids, vals = (features[name][0] for name in features)
        terms = [
            (slot.name, describe_slot(schema, slot, int(feature_id), float(value)), float(term))
            for slot, feature_id, value, term in zip(schema.slots, ids, vals, linear, strict=True)
            if feature_id
        ]
        return RowFacts(
            number=row,
            key=batch["key"][0].decode("utf-8", "replace"),
            label=float(batch["label"][0]) if np.isfinite(batch["label"][0]) else None,
            logit=logit,
            score=float(model.predictions(np.float32(logit))),
            linear=tuple(sorted(terms, key=lambda term: -abs(term[2]))),
            bias=float(model.bias.numpy()) + model.bias_offset,
        )


_OF_ONE = {"effect": "changes", "contribution": "contributions", "attention": "attention"}


def _of_one(found: Mapping[str, np.ndarray]) -> _Figures:
    """The figures of a batch of one row."""
    figures = {name: found[key][0] for name, key in _OF_ONE.items() if key in found}
    if "changes" in found:
        size = np.abs(found["changes"][0].astype(np.float64))
        figures |= {"mean_change": size, "effect_share": shares(size)}
    if "weighted" in found:
        figures["weighted_attention"] = shares(found["weighted"][0].astype(np.float64))
    return {**figures, "present": found["present"][0].astype(float)}


def _ranked(
    names: Sequence[tuple[str, str]], figures: _Figures, slot_pairs: Sequence[int] | None = None
) -> tuple[PairEffect, ...]:
    """The pairs that occur in some row, by the size of the effect, or by attention for a model without effects."""
    present = figures["present"]
    leading = np.abs(figures["effect"]) if "effect" in figures else figures["attention"]
    there = np.flatnonzero(present > 0)
    places = there[np.argsort(-leading[there], kind="stable")]
    attended: dict[int, int] = {}
    if "attention" in figures:
        by_share = there[np.argsort(-figures["attention"][there], kind="stable")]
        attended = {int(pair): rank for rank, pair in enumerate(by_share, start=1)}

    def value(name: str, pair: int) -> float | None:
        return float(figures[name][pair]) if name in figures else None

    return tuple(
        PairEffect(
            rank=rank,
            fields=names[pair],
            effect=value("effect", pair),
            mean_change=value("mean_change", pair),
            effect_share=value("effect_share", pair),
            contribution=value("contribution", pair),
            attention=value("attention", pair),
            attention_rank=attended.get(int(pair)),
            weighted_attention=value("weighted_attention", pair),
            present=float(present[pair]),
            slot_pairs=1 if slot_pairs is None else slot_pairs[pair],
        )
        for rank, pair in enumerate(places.tolist(), start=1)
    )


def _agreement(figures: _Figures) -> Agreement | None:
    """Over the pairs that occur in some row: the others are 0 in both, and would make the rankings look alike."""
    if "effect" not in figures or "attention" not in figures:
        return None
    there = figures["present"] > 0
    weighted = figures["weighted_attention"][there] if "weighted_attention" in figures else None
    return agreement_of(np.abs(figures["effect"][there]), figures["attention"][there], weighted)
