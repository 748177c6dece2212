"""Accuracy side by side: our models and FuxiCTR's on the same rows of a data set, over several seeds.

    .venv/bin/python benchmarks/quality/run.py frappe
    .venv/bin/python benchmarks/quality/run.py telco --seeds 3 --only afm fuxictr-afm
    .venv/bin/python benchmarks/quality/run.py frappe --test frappe.test.libfm

A model is a file: ``configs/<data>-<model>.yaml``. That of ours is what ``afm-ctr train --config`` takes (its seed
apart); ``fuxictr-…`` holds the settings of FuxiCTR's. ``afm-ctr prepare`` makes the data set; FuxiCTR gets the ids
and values out of it. All figures of all models are computed here, exactly, from the scores that they gave.

What is done is kept below ``--output-dir`` by model, seed and a digest of config, rows, versions and code: an
interrupted command, called again, resumes, and one with more seeds trains those that are missing. FuxiCTR lives in an
environment of its own, made at the first run (see ``benchmarks/peers.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.append(str(Path(__file__).resolve().parents[1]))

import logistic
import results as outcome
from datasets import CONFIGS, DATA, DATASETS, FIRST_SEED, ROOT, TELCO, Dataset
from jobs import PEER, Job, versions_of, work
from report import describe_machine, load, options, publish, versions
from rows import PreparedRows, export

LOGISTIC = "scikit-learn LR"
ORDER = ["lr", "fm", "afm"]  # then the others of ours, then the peers


def models_of(name: str) -> list[str]:
    """The models that have a config for a data set: ours first."""
    found = [file.stem.removeprefix(f"{name}-") for file in CONFIGS.glob(f"{name}-*.yaml")]
    place = {model: number for number, model in enumerate(ORDER)}
    return sorted(found, key=lambda model: (model.startswith(PEER), place.get(model, len(ORDER)), model))


def config_of(name: str, model: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}-{model}.yaml").read_text(encoding="utf-8"))


def title_of(model: str, config: dict[str, Any]) -> str:
    """How a table calls a model."""
    if model.startswith(PEER):
        return f"FuxiCTR {config['model']}"
    registered = config["model"]["name"]
    return model if registered == model else f"{model} (`{registered}`)"


def jobs_of(name: str, models: list[str], seeds: list[int], rows: PreparedRows, out: Path) -> list[Job]:
    """A job for each model and seed, with the names of its files."""
    configs = {model: config_of(name, model) for model in models}
    return [job_of(model, seed, config, rows, out) for model, config in configs.items() for seed in seeds]


def job_of(model: str, seed: int, config: dict[str, Any], rows: PreparedRows, out: Path) -> Job:
    """The job of a config; equal configs on equal rows are one job, whoever asks for it."""
    used = versions_of(model)
    key = f"{model}-{seed}-{outcome.digest([config, rows.digest, used])}"
    return Job(model, seed, config, out / "runs" / key, out / "results" / f"{key}.json", used)


def collect(job: Job, name: str, rows: PreparedRows) -> dict[str, Any] | None:
    """The result of a job, as far as its splits are scored; kept, so that the run's folder may be emptied."""
    kept = json.loads(job.result.read_text()) if job.result.exists() else None
    if kept is None and not (job.folder / "run.json").exists():
        return None
    if kept is None:
        head = {"data": name, "model": job.model, "seed": job.seed, "config": job.config, "rows": rows.digest}
        kept = head | json.loads((job.folder / "run.json").read_text()) | {"metrics": {}}
    for split, labels in rows.labels.items():
        scores = job.folder / f"scores-{split}.npz"
        if split not in kept["metrics"] and scores.exists():
            kept["metrics"][split] = outcome.figures(labels, outcome.read_logits(scores))
    outcome.write_json(job.result, kept)
    return kept


def missing(job: Job, name: str, rows: PreparedRows, splits: list[str]) -> bool:
    found = collect(job, name, rows)
    return found is None or any(split not in found["metrics"] for split in splits)


def regression(data: Path, folder: Path) -> dict[str, Any]:
    """The result of scikit-learn's logistic regression, which has no seed."""
    found = logistic.fit(data / TELCO, folder / "split.txt")
    metrics = {"test": outcome.figures(found["labels"], found["logits"])}
    return {"metrics": metrics, "seconds": found["seconds"], "versions": ""}


def pairs_of(models: list[str]) -> list[tuple[str, str]]:
    """Whom to compare: ours with each other's FM and AFM, and with the peers'."""
    ours = [model for model in models if not model.startswith(PEER) and model != "lr"]
    peers = [model for model in models if model.startswith(PEER)]
    return [(one, other) for one in ours for other in ["fm", *peers] if one != other]


def compare(name: str, dataset: Dataset, arguments: argparse.Namespace) -> bool:
    """Train what is not trained, print the tables; whether all that is asked is met."""
    out = arguments.output_dir / name
    rows = export(dataset, arguments.data, out, arguments.test)
    models = [model for model in models_of(name) if not arguments.only or model in arguments.only]
    seeds = list(range(FIRST_SEED, FIRST_SEED + (arguments.seeds or dataset.seeds)))
    jobs = jobs_of(name, models, seeds, rows, out)
    report = [split for split in rows.ours if split == dataset.report or split.startswith("file-")]
    wanted = [split for split in rows.ours if split != "train"]
    before = load()
    work([job for job in jobs if missing(job, name, rows, wanted)], wanted, rows, dataset.keep, arguments.jobs)
    found: dict[str, list[dict[str, Any]]] = {}
    used = set()
    for job in jobs:
        result = collect(job, name, rows)
        if result is not None:
            found.setdefault(job.model, []).append(result)
            used.add(result["versions"])
            if not dataset.keep and not missing(job, name, rows, wanted):
                shutil.rmtree(job.folder, ignore_errors=True)
    titles = {model: title_of(model, config_of(name, model)) for model in models}
    if name == "telco":
        found[LOGISTIC] = [regression(arguments.data, out)]
        titles[LOGISTIC] = LOGISTIC
    tables, met = [], True
    for split in report:
        checks, passed = outcome.table_of_checks(dataset, found, split)
        tables += [
            outcome.table_of_models(name, dataset, found, titles, split),
            outcome.table_of_differences(pairs_of(models), found, split),
            checks,
        ]
        met &= passed
    facts = [describe_machine(), f"load average before {before}, after {load()}", "; ".join(sorted(used))]
    facts.append(versions("numpy", "scikit-learn"))
    facts.append(f"{', '.join(f'{len(labels):,} rows {split}' for split, labels in rows.labels.items())}")
    facts.append(f"seeds {seeds[0]} to {seeds[-1]}")
    publish(tables, arguments.output, facts)
    return met


def main() -> None:
    parser = options(__doc__, quick=False)
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--seeds", type=int, metavar="N", help="how many (default: what the aims are stated for)")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="only these models")
    parser.add_argument("--test", metavar="FILE", help="score this file, too, with the models as chosen")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side, sharing the cores")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "build/quality", help="what is kept of the runs")
    parser.add_argument("--check", action="store_true", help="exit 1 unless every aim is met")
    arguments = parser.parse_args()
    dataset = DATASETS[arguments.dataset]
    unknown = set(arguments.only or ()) - set(models_of(arguments.dataset))
    if unknown:
        parser.error(f"--only: no config for {', '.join(sorted(unknown))}; there are: {models_of(arguments.dataset)}")
    if arguments.test and not dataset.keep:
        parser.error(f"--test: trained models of {arguments.dataset} are not kept")
    absent = [path for path in dataset.paths(arguments.data) if not path.exists()]
    if absent:
        print(f"skipped: {', '.join(map(str, absent))} is not there")
        return
    met = compare(arguments.dataset, dataset, arguments)
    sys.exit(arguments.check and not met)


if __name__ == "__main__":
    main()
