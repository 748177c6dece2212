"""Writes a report on a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from afm_ctr.errors import UserError
from afm_ctr.explain import explain_model
from afm_ctr.explain.page import add_map, add_pairs, add_trust
from afm_ctr.metrics import Interval
from afm_ctr.models import CTRModel
from afm_ctr.records import Reader
from afm_ctr.report import about, quality
from afm_ctr.report.baseline import Baseline
from afm_ctr.report.conclusion import conclusion
from afm_ctr.report.record import Judged, RunRecord
from afm_ctr.report.scored import score_split
from afm_ctr.report.slices import chosen_fields, slices_of, slots_of
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.evaluation import SMALLEST_BATCH, scoring_batch
from afm_ctr.training.model_io import Which, open_run
from afm_ctr.training.verdict import no_better_than_constant, warnings_of
from afm_ctr.webpage import Page, file_of

PAGE = "report.html"
EXPLAINED_ROWS = 5_000

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class ReportSummary:
    """Result of :func:`report`."""

    output: str
    split: str | None  # the split that the model was evaluated on, if any
    checkpoint: str
    metrics: dict[str, Interval]  # values with the ends of their intervals, by name
    warnings: list[str]  # problems of the model, one line each
    verdict: str  # the first paragraph of the page; empty without anything to judge by
    baseline: dict[str, Any] | None = None  # the baseline run and this run's gains, if one was given

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**dataclasses.asdict(self), "metrics": {name: i._asdict() for name, i in self.metrics.items()}}


def report(
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    *,
    slices: Sequence[str] | None = None,
    baseline: str | Path | None = None,
    which: Which = "best",
    progress: Progress = lambda stage, done, total: None,
) -> ReportSummary:
    """Write one page about a run, finished or in progress. In one process, on one rank.

    Sections without data, labels, epochs or pairs say so on the page. Memory: see
    :class:`~afm_ctr.report.scored.ScoredSplit`.

    Args:
        data_dir: the data set to evaluate on; None: the run's own, if it still exists.
        split: the split to evaluate on; None: ``test``, or else the run's validation split.
        output: path of the page; None: ``report.html`` in the run's folder.
        slices: the fields to slice by; None: all.
        baseline: another run, such as one of the ``lr`` model, to compare with on the same rows.

    Raises:
        UserError: no run or no checkpoint; data, split or field that does not exist; another schema; a baseline that
            cannot be compared; a damaged file; a page that cannot be written.
    """
    folder = Path(model_dir)
    target = file_of(folder / PAGE if output is None else output)
    record, schema = RunRecord.load(folder), ResolvedSchema.load(folder)
    names = chosen_fields(schema, slices)
    judged = Judged.find(record, schema, data_dir, split)
    if baseline is not None and judged.split is None:
        raise UserError(f"--baseline {baseline}: there are no rows to compare on. {judged.why_not}")
    model, schema, _, checkpoint = open_run(folder, which)
    reader = None if judged.split is None else _open_split(record, judged)
    best = checkpoint.state.get("best")

    page = Page(
        f"Training run {folder.resolve().name}",
        f"model {model.interaction_name}, {checkpoint.folder.name} ("
        + ("best by validation" if which == "best" and best is not None else "latest")
        + f" checkpoint), schema {schema.spec.name}"
        + (f", judged on split {judged.split} of {judged.folder}" if judged.split else ""),
    )
    scored = None
    if reader is not None:
        rows = reader.rows
        scored = score_split(model, reader, slots_of(schema, names), lambda done: progress("scoring", done, rows))
    compared = None
    if baseline is not None and reader is not None and scored is not None:
        compared = Baseline.score(
            Path(baseline),
            which,
            str(judged.folder),
            reader,
            scored,
            lambda done: progress("scoring the baseline", done, rows),
        )
    warnings = warnings_of(record.config, record.history)
    if scored is not None and scored.figures is not None:
        judged_here = no_better_than_constant(scored.figures, str(judged.split))
        warnings += [judged_here] if judged_here is not None and judged_here not in warnings else []
    metrics = quality.intervals_of(scored) if scored is not None and scored.labels is not None else {}
    verdict = conclusion(scored, metrics, record.config, record.history, compared)
    if verdict:
        page.paragraph(f"Verdict: {verdict}")
    for text in warnings:
        page.paragraph(f"Warning: {text}.")
    if scored is not None:
        quality.add_metrics(page, scored, metrics)
        if compared is not None:
            quality.add_baseline(page, scored, compared)
    else:
        page.section("Metrics")
        page.paragraph(judged.why_not)
    page.facts(_checkpoint_facts(checkpoint.position, best))
    about.add_curves(page, record, best)
    if scored is not None:
        quality.add_calibration(page, scored)
        progress("slicing by field", 0, 0)
        quality.add_slices(page, scored, slices_of(scored, schema, names), named=bool(slices))
    if reader is not None:
        progress("explaining", 0, 0)
        _add_explanation(page, judged, model, schema)
    about.add_speed(page, record)
    about.add_data(page, record, judged)
    about.add_config(page, record.config)
    about.add_surroundings(page, record)
    path = page.write(target)
    versus = None if compared is None else compared.to_json()
    return ReportSummary(str(path), judged.split, checkpoint.folder.name, metrics, warnings, verdict, versus)


def _open_split(record: RunRecord, judged: Judged) -> Reader:
    """Open the split with the batches of ``evaluate``, so that scores are bit-identical."""
    assert judged.folder is not None and judged.manifest is not None and judged.split is not None
    batch = scoring_batch(judged.manifest.split_rows(judged.split), max(record.config.batch_size, SMALLEST_BATCH))
    return Reader(judged.folder, judged.split, batch, shuffle=False)


def _checkpoint_facts(position: Any, best: dict[str, Any] | None) -> dict[str, str | int | None]:
    done = f"after step {position.step:,}, {position.epoch} whole epochs"
    if position.step_in_epoch:
        done += f" and {position.step_in_epoch:,} steps"
    chosen = (
        "no epoch was validated"
        if best is None
        else f"{best['metric']} {best['value']:.6f}, epoch {best['epoch'] + 1}"
    )
    return {"checkpoint": done, "best on validation": chosen}


def _add_explanation(page: Page, judged: Judged, model: CTRModel, schema: ResolvedSchema) -> None:
    assert judged.folder is not None and judged.split is not None
    try:
        found = explain_model(model, schema, judged.folder, judged.split, max_rows=EXPLAINED_ROWS)
    except UserError as error:
        page.section("Explanations")
        page.paragraph(f"Nothing can be said of pairs: {error}.")
        return
    add_trust(page, found)
    if not found.pairs:
        return
    add_pairs(page, found)
    page.paragraph(f"Looked at: the first {found.rows:,} rows of {judged.split}. afm-ctr explain looks at more.")
    add_map(page, found, schema)
