"""What each part of AFM and of ``deep_afm`` is worth: one switch at a time, several seeds, a table.

    .venv/bin/python benchmarks/quality/ablation.py frappe
    .venv/bin/python benchmarks/quality/ablation.py frappe --seeds 1 --only "uniform attention"

A line differs from the first of its table, which is the config of ``run.py``, in what it says. Runs are kept and
taken up again as those of ``run.py`` are.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.append(str(Path(__file__).resolve().parents[1]))

import results as outcome
from datasets import DATA, DATASETS, FIRST_SEED, ROOT
from jobs import Job, work
from report import Report, describe_machine, load, options, publish, versions
from rows import PreparedRows, export
from run import collect, config_of, job_of, missing

BEGIN = "begin_with"  # no key of a config: the model whose table, trained with the same seed, a run begins with
# Model, then title and what is changed, in dotted keys.
SWITCHES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "afm": [
        ("as it is", {}),
        ("not scaled by the number of pairs (the paper's)", {"model.scale_by_pairs": False}),
        ("uniform attention", {"model.name": "afm_uniform"}),
        ("no dropout", {"model.attention_dropout": 0.0, "model.pooled_dropout": 0.0}),
        ("no average of the weights", {"optimizer.average": None}),
        ("row L2 2e-4", {"row_l2": 2e-4}),
        ("row L2 1e-6", {"row_l2": 1e-6}),
        ("initial vectors 0.01 in place of 0.1", {"model.init_stddev": 0.01}),
        ("begun with a trained FM's table (the paper's)", {BEGIN: "fm"}),
    ],
    "deep_afm": [
        ("as it is", {}),
        ("uniform attention", {"model.name": "deep_afm_uniform"}),
        ("one pooled vector for the network", {"model.name": "deep_afm_one_pool"}),
        ("no normalisation", {"model.normalise": False}),
        ("no normalisation, row L2 1e-4", {"model.normalise": False, "row_l2": 1e-4}),
        ("row L2 1e-4", {"row_l2": 1e-4}),
        ("dropout: pairs 0.1, hidden layers 0.2", {"model.attention_dropout": 0.1, "model.pooled_dropout": 0.2}),
        ("a learned number a pair in the attention", {"model.name": "deep_afm_pair_bias"}),
        ("a network of the sums alone", {"model.read_vectors": False}),
        ("no average of the weights", {"optimizer.average": None}),
        ("10 factors", {"model.factors": 10}),
        ("narrower network: 64, 64", {"model.hidden": [64, 64]}),
    ],
}


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config with other values."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        place = config
        *folders, last = key.split(".")
        for folder in folders:
            place = place[folder]
        place[last] = value
    return config


def plan(name: str, model: str, changes: dict[str, Any], seeds: range, rows: PreparedRows, out: Path) -> list[Job]:
    """The jobs of a line. The first line's are run.py's own: what one trained the other need not."""
    config = changed(config_of(name, model), changes)
    found = [job_of(model, seed, config, rows, out) for seed in seeds]
    first = config.pop(BEGIN, None)
    if first is None:
        return found
    folders = [job_of(first, seed, config_of(name, first), rows, out).folder for seed in seeds]
    return [dataclasses.replace(job, begin_with=folder) for job, folder in zip(found, folders, strict=True)]


def main() -> None:
    parser = options(__doc__, quick=False, seeds=3)
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--models", nargs="+", choices=SWITCHES, default=list(SWITCHES), help="tables to make")
    parser.add_argument("--only", nargs="+", metavar="TITLE", help="only these lines and the first")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "build/quality", help="what is kept of the runs")
    arguments = parser.parse_args()
    dataset, out = DATASETS[arguments.dataset], arguments.output_dir / arguments.dataset
    rows = export(dataset, arguments.data, out, None)
    splits = [dataset.report]
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    plans: dict[tuple[str, str], list[Job]] = {}
    for model in arguments.models:
        for title, changes in SWITCHES[model]:
            if arguments.only and changes and title not in arguments.only:
                continue
            if BEGIN in changes:
                if not dataset.keep:
                    continue  # there are no trained models to begin with
                plans[changes[BEGIN], ""] = plan(arguments.dataset, changes[BEGIN], {}, seeds, rows, out)
            plans[model, title] = plan(arguments.dataset, model, changes, seeds, rows, out)
    before = load()
    for jobs in plans.values():  # a config a worker
        left = [job for job in jobs if missing(job, arguments.dataset, rows, splits)]
        if left:
            work(left, splits, rows, dataset.keep, arguments.jobs)
    tables = []
    for model in arguments.models:
        table = Report(
            f"{model} on {arguments.dataset}, split {dataset.report}: one switch at a time",
            ["", "seeds", "AUC", "log loss", "AUC against the first", "its standard error"],
        )
        first: list[float] = []
        for title, _ in SWITCHES[model]:
            found = {
                title: [
                    result
                    for job in plans.get((model, title), ())
                    if (result := collect(job, arguments.dataset, rows))
                ]
            }
            aucs = outcome.values(found, title, "auc", dataset.report)
            if not aucs:
                continue
            first = first or aucs
            losses = outcome.values(found, title, "log_loss", dataset.report)
            apart = ["", ""]
            if aucs is not first and min(len(aucs), len(first)) > 1:
                apart = [f"{number:+.4f}" for number in outcome.difference(aucs, first)]
                apart[1] = apart[1].lstrip("+")
            cells = [str(outcome.Spread.of(values)) for values in (aucs, losses)]
            table.rows.append([title, str(len(aucs)), *cells, *apart])
        tables.append(table)
    facts = [describe_machine(), f"load average before {before}, after {load()}"]
    facts.append(versions("tensorflow", "keras", "numpy"))
    facts.append(f"seeds {seeds[0]} to {seeds[-1]}")
    publish(tables, arguments.output, facts)


if __name__ == "__main__":
    main()
