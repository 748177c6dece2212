"""Reading records for training: the op in C++ and the reader in Python, rows per second; and whole runs with each.

    .venv/bin/python benchmarks/input.py                              # a minute: only reading
    .venv/bin/python benchmarks/input.py --train demo-out/data        # and `afm-ctr train` on a prepared data set

Reading is timed as in training: shuffled batches of 4096 rows with the columns that a step uses, files in the page
cache, by readers without cached blocks. Both forms take turns in every round, on one core and on all of them;
medians are printed, and a ratio is of turns of the same round. They read the same arrays (compared here once).
Runs are one epoch each, one after the other in every round; their rows per second are those that ``train`` prints,
without its first step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from report import Report, describe_machine, load, options, publish, versions

from afm_ctr.records import Manifest, Reader, ShardInfo, ShardWriter, framed_examples
from afm_ctr.schema import Analysis, FeatureSchema, resolve

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("python", "native")
COLUMNS = ("feature_ids", "feature_vals", "label", "weight", "row")
SLOTS, IDS, BATCH, SHARDS, CHUNK = 39, 65_536, 4096, 4, 10_000


def make(folder: Path, rows: int) -> None:
    """A data set of 39 slots with 2.6 million ids, Zipf-distributed in each slot."""
    names = [f"c{slot}" for slot in range(SLOTS)]
    field = {"kind": "categorical", "encoding": {"kind": "ids", "size": IDS}}
    spec = {
        "name": "input",
        "format": {"kind": "delimited", "header": False, "columns": ["label", *names]},
        "label": {"column": "label", "kind": "binary"},
        "fields": [{"name": name, **field} for name in names],
    }
    schema = resolve(FeatureSchema.model_validate(spec), Analysis.empty())
    schema.save(folder)
    rng, infos = np.random.default_rng(0), []
    for shard in range(SHARDS):
        file = f"train/part-{shard:05d}.tfrecord"
        path = folder / "attempt" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        count = rows // SHARDS
        with path.open("wb") as stream:
            writer = ShardWriter(stream)
            for start in range(0, count, CHUNK):
                keys = [b"log.tsv#%d" % row for row in range(start, min(start + CHUNK, count))]
                ids = rng.zipf(1.2, size=(len(keys), SLOTS)) % IDS + 1 + np.arange(SLOTS) * IDS
                labels = rng.integers(0, 2, len(keys)).astype(np.float32)
                writer.write(framed_examples(ids, np.ones(ids.shape, np.float32), labels, None, None, keys))
            stats = writer.close()
        infos.append(
            ShardInfo(split="train", file=file, positives=0, block_records=writer.block_records, **stats._asdict())
        )
    total = count * SHARDS
    Manifest(attempt="attempt", schema_id=schema.id, shards=infos, rows_in=total, rows_out=total).save(folder)


def turn(folder: Path, form: str, epoch: int, seconds: float) -> tuple[float, float]:
    """Rows per second, and per second of CPU time, of one form over a new part of the order."""
    os.environ["AFM_CTR_READING"] = form
    reader = Reader(folder, "train", BATCH, seed=1)
    reader.batch(epoch, 0, COLUMNS)
    rows, start, cpu = 0, time.perf_counter(), time.process_time()
    for step in range(1, reader.steps_per_epoch):
        rows += len(reader.batch(epoch, step, COLUMNS)["row"])
        if time.perf_counter() - start > seconds:
            break
    return rows / (time.perf_counter() - start), rows / (time.process_time() - cpu)


def read_in_turns(folder: Path, rounds: int, seconds: float) -> None:
    """The work of a separate process on the given cores: prints the rounds' figures."""
    batches = []
    for form in FORMS:
        os.environ["AFM_CTR_READING"] = form
        batches.append(Reader(folder, "train", BATCH, seed=1).batch(0, 0, COLUMNS))
    for name in COLUMNS:
        np.testing.assert_array_equal(batches[0][name], batches[1][name], err_msg=name)
    print(json.dumps([{form: turn(folder, form, round_, seconds) for form in FORMS} for round_ in range(rounds)]))


def reading(folder: Path, cores: int, rounds: int, seconds: float) -> list[dict[str, list[float]]]:
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run(
        [sys.executable, __file__, "--worker", folder, str(rounds), str(seconds)],
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
    )
    result: list[dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return result


def spread(values: list[float], digits: int = 0) -> tuple[str, str]:
    """Median, and lowest to highest."""
    return f"{statistics.median(values):,.{digits}f}", f"{min(values):,.{digits}f} – {max(values):,.{digits}f}"


def training(data: Path, model: str, rounds: int, scratch: Path) -> list[dict[str, dict[str, Any]]]:
    """The summaries that ``train`` prints for one-epoch runs."""
    config = [
        *("--config", str(ROOT / "examples/criteo/train.yaml"), "--set", "epochs=1", "--set", f"batch_size={BATCH}"),
        *("--set", f"model={{name: {model}, factors: 16}}", "--set", "validation=null"),
        *("--set", "early_stopping=null"),
    ]
    found = []
    for round_ in range(rounds):
        said = {}
        for form in FORMS:
            command = [Path(sys.executable).with_name("afm-ctr"), "train", "--data", data]
            run = scratch / f"{model}-{form}-{round_}"
            done = subprocess.run(
                [*command, "--model-dir", run, *config, "--json"],
                stdout=subprocess.PIPE,
                env=os.environ | {"AFM_CTR_READING": form},
                check=True,
            )
            said[form] = json.loads(done.stdout.splitlines()[-1])
        found.append(said)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        read_in_turns(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
        return
    parser = options(__doc__, rounds=5)
    parser.add_argument("--train", type=Path, metavar="DATA", help="a prepared data set to train on with each form")
    arguments = parser.parse_args()
    rounds, rows, seconds = (1, 20_000, 0.2) if arguments.quick else (arguments.rounds, 400_000, 1.5)
    before, reports = load(), []
    table = Report(
        f"reading records, {SLOTS} slots, batches of {BATCH}",
        [
            "cores",
            "Python, rows/s",
            "op, rows/s",
            "lowest – highest",
            "op / Python",
            "lowest – highest",
            "CPU, op / Python",
        ],
    )
    with tempfile.TemporaryDirectory(prefix="afm-input-") as folder:
        make(Path(folder), rows)
        for cores in sorted({1, len(os.sched_getaffinity(0))}):
            found = reading(Path(folder), cores, rounds, seconds)
            python, op = ([figures[form][0] for figures in found] for form in FORMS)
            ratio = [a / b for a, b in zip(op, python, strict=True)]
            of_cpu = [figures["native"][1] / figures["python"][1] for figures in found]
            table.rows.append(
                (str(cores), spread(python)[0], *spread(op), *spread(ratio, 1), f"{statistics.median(of_cpu):.1f}")
            )
        reports.append(table)
        if arguments.train:
            runs = Report(
                f"one epoch of afm-ctr train, batches of {BATCH}, k=t=16",
                ["model", "reading in Python, rows/s", "by the op, rows/s", "op / Python", "lowest – highest"],
            )
            for model in ("fm", "afm"):
                said = training(arguments.train.resolve(), model, min(rounds, 3), Path(folder))
                speeds = [[one[form]["rows_per_second"] for one in said] for form in FORMS]
                ratio = [b / a for a, b in zip(*speeds, strict=True)]
                runs.rows.append((model, spread(speeds[0])[0], spread(speeds[1])[0], *spread(ratio, 2)))
            reports.append(runs)
    facts = [f"{describe_machine()}, load average {before} before, {load()} after", versions("tensorflow", "numpy")]
    publish(reports, arguments.output, [*facts, f"medians of {rounds} rounds, turns of {seconds} s"])


if __name__ == "__main__":
    main()
