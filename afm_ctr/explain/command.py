"""Explains a run on a prepared data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.explain.content import describe_slot
from afm_ctr.explain.effects import PairProbe, PairSums
from afm_ctr.explain.explanation import Explanation, PairEffect, RowFacts, rank_correlation
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training import load_model
from afm_ctr.training.build import Which
from afm_ctr.training.evaluate import check_readable

_BATCH_ROWS = 512  # a batch holds several float tensors of [rows, pairs, factors]


def explain(
    model_dir: str | Path,
    data_dir: str | Path,
    split: str = "test",
    row: int | None = None,
    output: str | Path | None = None,
    *,
    max_rows: int = 20_000,
    which: Which = "best",
) -> Explanation:
    """Which pairs of slots matter: what the logit loses without a pair, beside the pair's share of attention.

    The effect is exact: the pair is taken out and the softmax runs over the others. Attention is shown beside it
    because a large share of a product that is near zero, or always the same, does nothing to the ranking of rows.

    Args:
        model_dir: folder of a training run.
        data_dir: a prepared data set of its schema.
        split: which split of it.
        row: explain this row of the split (from 0, in file order) alone.
        output: folder for a CSV file with all pairs and for pictures; None writes nothing.
        max_rows: at most so many rows, the first of the split.
        which: ``best`` or ``latest`` checkpoint.

    Raises:
        UserError: no such run, split or row, a foreign schema, or a model without pairs.
    """
    model, schema, _ = load_model(model_dir, which)
    if not len(schema.pairs):
        raise UserError(f"explain: schema {schema.spec.name!r} has {schema.num_slots} slot(s) and no pairs of them")
    probe = PairProbe(model)
    if not (probe.has_changes or probe.has_attention):
        raise UserError(f"explain: model {model.interaction_name!r} has no pairs to explain; train afm or fm")
    reader = Reader(data_dir, split, _BATCH_ROWS, shuffle=False)
    check_readable(schema, reader.schema, data_dir)
    if row is None:
        explanation = _of_split(model, schema, probe, reader, split, max_rows)
    else:
        explanation = _of_row(model, schema, probe, reader, split, row)
    return explanation if output is None else _written(explanation, schema, Path(output))


def _of_split(
    model: CTRModel, schema: ResolvedSchema, probe: PairProbe, reader: Reader, split: str, max_rows: int
) -> Explanation:
    sums = PairSums.of(len(schema.pairs))
    try:
        for step, batch in enumerate(reader.dataset(0)):
            rows = min(reader.local_rows(step), max_rows - sums.rows)
            if rows <= 0:
                break
            sums.add(probe(batch["feature_ids"][:rows], batch["feature_vals"][:rows]))
    except Exception as error:
        mistake = reader.mistake_behind(error)
        if mistake is None:
            raise
        raise mistake from error
    effect = sums.deviation() if probe.has_changes else None
    attention = sums.attention / sums.rows if probe.has_attention else None
    pairs = _ranked(schema, effect, effect, sums.absolute / sums.rows, attention, sums.present / sums.rows)
    return Explanation(model.interaction_name, split, sums.rows, pairs, _agreement(effect, attention))


def _of_row(
    model: CTRModel, schema: ResolvedSchema, probe: PairProbe, reader: Reader, split: str, row: int
) -> Explanation:
    if not 0 <= row < reader.rows:
        raise UserError(f"explain: row {row} is not in split {split!r}, which has the rows 0 to {reader.rows - 1}")
    step, place = divmod(row, _BATCH_ROWS)
    batch = {name: values[place : place + 1] for name, values in reader.batch(0, step).items()}
    found = {name: values[0] for name, values in probe(batch["feature_ids"], batch["feature_vals"]).items()}
    change, attention = found.get("changes"), found.get("attention")
    size = None if change is None else np.abs(change)
    pairs = _ranked(schema, size, change, size, attention, found["present"].astype(float))
    features = {name: batch[name] for name in ("feature_ids", "feature_vals")}
    logit = float(model(features, training=False, corrected=True)[0])
    linear = model.inputs_of(features).linear.numpy()[0]
    terms = [
        (slot.name, describe_slot(schema, slot, int(ids), float(vals)), float(term))
        for slot, ids, vals, term in zip(
            schema.slots, batch["feature_ids"][0], batch["feature_vals"][0], linear, strict=True
        )
        if ids
    ]
    facts = RowFacts(
        number=row,
        key=batch["key"][0].decode("utf-8", "replace"),
        label=float(batch["label"][0]) if np.isfinite(batch["label"][0]) else None,
        logit=logit,
        score=float(model.predictions(np.float32(logit))),
        linear=tuple(sorted(terms, key=lambda term: -abs(term[2]))),
        bias=float(model.bias.numpy()) + model.bias_offset,
    )
    return Explanation(model.interaction_name, split, 1, pairs, _agreement(size, attention), facts)


def _ranked(
    schema: ResolvedSchema,
    order: np.ndarray | None,
    effect: np.ndarray | None,
    mean_change: np.ndarray | None,
    attention: np.ndarray | None,
    present: np.ndarray,
) -> tuple[PairEffect, ...]:
    """The pairs that some row has, by ``order``, or by attention for a model that knows no effects."""
    leading = order if order is not None else attention
    assert leading is not None
    there = np.flatnonzero(present > 0)
    places = there[np.argsort(-leading[there], kind="stable")]
    attended = {}
    if attention is not None:
        by_share = there[np.argsort(-attention[there], kind="stable")]
        attended = {int(pair): rank for rank, pair in enumerate(by_share, start=1)}

    def value(values: np.ndarray | None, pair: int) -> float | None:
        return None if values is None else float(values[pair])

    names = [slot.name for slot in schema.slots]
    return tuple(
        PairEffect(
            rank=rank,
            fields=(names[schema.pairs[pair, 0]], names[schema.pairs[pair, 1]]),
            effect=value(effect, pair),
            mean_change=None if effect is None else value(mean_change, pair),
            attention=value(attention, pair),
            attention_rank=attended.get(int(pair)),
            present=float(present[pair]),
        )
        for rank, pair in enumerate(places.tolist(), start=1)
    )


def _agreement(effect: np.ndarray | None, attention: np.ndarray | None) -> float | None:
    return None if effect is None or attention is None else rank_correlation(effect, attention)


def _written(explanation: Explanation, schema: ResolvedSchema, folder: Path) -> Explanation:
    from afm_ctr.explain import pictures

    stem = "pairs" if explanation.row is None else f"row-{explanation.row.number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files: list[Any] = [folder / f"{stem}.csv"]
        explanation.write_csv(files[0])
        files.append(pictures.save(pictures.bars_figure(explanation), folder / f"{stem}-bars.png"))
        files.append(pictures.save(pictures.heat_map_figure(explanation, schema), folder / f"{stem}-map.png"))
    except OSError as error:
        raise UserError(f"explain: cannot write to {folder}: {error.strerror or error}") from error
    return replace(explanation, files=tuple(str(file) for file in files))
