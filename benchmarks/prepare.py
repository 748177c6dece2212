"""From a raw log to records: ours and plain Beam, tensorflow-transform, polars, FuxiCTR, DeepCTR; rows/s.

    .venv/bin/python benchmarks/prepare.py                 # a dozen minutes, and once the peers' environments
    .venv/bin/python benchmarks/prepare.py --rows 200000 --only plain
    .venv/bin/python benchmarks/prepare.py --only          # ours alone, and its memory at four times the rows

All get the same synthetic Criteo-shaped log (13 counts, 26 categories, tab-separated, plain text) and the same cores.
Each runs as a separate process, imports included, one after the other in every round; medians over the rounds are
printed. The peak is of the memory of the process and its children, sampled every 0.2 s, shared pages counted once
(PSS); so are the CPU seconds.

Their output:

ours                    ``afm-ctr prepare`` with ``examples/criteo/schema.yaml``: buckets for counts, hashed ids for
                        categories, shuffled and checksummed TFRecord shards, statistics, rejects, a manifest
plain Beam              the same ids by a function of one row in a DoFn, one tf.Example per row, ``WriteToTFRecord``
tensorflow-transform    as many buckets by its own hash, a graph over Arrow batches of 4,096 rows in Beam, one
                        tf.Example of 40 features per row, ``WriteToTFRecord``
FuxiCTR                 its ``FeatureProcessor`` and ``build_dataset``: CSV to integer ids in a Parquet file. Its
                        ``hash_bucket`` is not implemented, so the ids are those of vocabularies, and the counts are
                        bucketed by an expression of polars, not by the Python function of its model zoo
DeepCTR                 the recipe of its documentation: pandas, one ``LabelEncoder`` per category, ``MinMaxScaler``;
                        the result stays in memory
polars                  ids by as many buckets, its own hash and expressions, streamed to one Parquet file: no
                        records, no checks, no rejects, no statistics and no splits
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from peers import environment
from report import NOTHING, Report, describe_machine, load, options, publish, versions

ROOT = Path(__file__).resolve().parents[1]
WORKERS = Path(__file__).with_name("prepare_workers.py")
SCHEMA = ROOT / "examples" / "criteo" / "schema.yaml"


class Contender(NamedTuple):
    name: str
    title: str
    environment: str | None = None  # None: this interpreter's


OURS = Contender("ours", "ours, no option")
OTHERS = [
    Contender("ours-one", "ours, one thread"),
    Contender("ours-processes", "ours, a process a core"),
    Contender("plain", "plain Beam, a row a DoFn"),
    Contender("transform", "tensorflow-transform", "transform"),
    Contender("fuxictr", "FuxiCTR 2.3.10", "fuxictr"),
    Contender("deepctr", "DeepCTR's recipe", "pandas"),
    Contender("polars", "polars, to Parquet", "polars"),
]


class Ran(NamedTuple):
    """A finished process: seconds by the clock and of CPU, the peak in bytes."""

    seconds: float
    cpu: float
    peak: int


def command_of(contender: Contender, log: Path, out: Path, cores: int) -> list[str]:
    if contender.name.startswith("ours"):
        afm_ctr = str(Path(sys.executable).with_name("afm-ctr"))
        command = [afm_ctr, "prepare", "--schema", str(SCHEMA), "--input", str(log), "--output", str(out), "--json"]
        workers = {
            "ours-one": ["--direct_num_workers=1"],
            "ours-processes": [f"--direct_num_workers={cores}", "--direct_running_mode=multi_processing"],
        }
        return command + workers.get(contender.name, [])
    interpreter = environment(contender.environment) if contender.environment else Path(sys.executable)
    return [str(interpreter), str(WORKERS), contender.name, str(log), str(out), str(cores)]


def look_at(process: psutil.Process, cpu: dict[int, float]) -> int:
    """Bytes of a process and its children, shared pages counted once; records the CPU seconds of each."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in family:
        try:
            total += member.memory_full_info().pss
            times = member.cpu_times()
        except psutil.Error:
            continue  # it has ended
        cpu[member.pid] = times.user + times.system
    return total


def measured(command: list[str], cores: list[int], log: Path) -> Ran:
    """Run a command on some cores. Raises RuntimeError, with the end of its output, if it fails."""
    started = time.monotonic()
    cpu: dict[int, float] = {}
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # Without PYTHONPATH, so that our modules do not hide the peer's.
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"RAY_DISABLE_DOCKER_CPU_WARNING": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        watched, peak, ended = psutil.Process(process.pid), 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.2):
                peak = max(peak, look_at(watched, cpu))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        code = process.wait()
        seconds = time.monotonic() - started
        ended.set()
        watcher.join()
    if code:
        lines = log.read_text(errors="replace").splitlines()[-8:]
        raise RuntimeError(f"{' '.join(command[:4])} … ended with {code}\n" + "\n".join(lines))
    return Ran(seconds, sum(cpu.values()), peak)


def write_log(path: Path, rows: int) -> None:
    command = [
        str(Path(sys.executable).with_name("afm-ctr")),
        "make-logs",
        "--rows",
        str(rows),
        "--output",
        str(path),
    ]
    subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL)


def compare(
    contenders: list[Contender], log: Path, folder: Path, cores: list[int], rounds: int
) -> dict[str, list[Ran]]:
    """The runs of every contender, taking turns; without the peers that cannot be installed."""
    taken: dict[str, list[Ran]] = {}
    left_out: set[str] = set()
    for number in range(rounds):
        for contender in contenders:
            if contender.name in left_out:
                continue
            out = folder / contender.name
            try:
                command = command_of(contender, log, out, len(cores))
                run = measured(command, cores, folder / f"{contender.name}.log")
                taken.setdefault(contender.name, []).append(run)
            except RuntimeError as error:
                if contender is OURS:
                    raise
                print(f"left out: {contender.title}: {error}")
                left_out.add(contender.name)
            shutil.rmtree(out, ignore_errors=True)
            shown = f"{taken[contender.name][-1].seconds:.1f} s" if contender.name in taken else "left out"
            print(f"round {number + 1} of {rounds}: {contender.title}: {shown}, load average {load()}", flush=True)
    return taken


def table_of(contenders: list[Contender], taken: dict[str, list[Ran]], rows: int, cores: int) -> Report:
    columns = ["", "rows/s", "lowest – highest", "seconds", "CPU seconds", "peak, GB", "ours / it"]
    report = Report(f"raw log to ids, {rows:,} rows of 39 columns, {cores} cores", columns)
    ours = [run.seconds for run in taken[OURS.name]]
    for contender in contenders:
        if contender.name not in taken:
            report.rows.append([contender.title, *["left out"] * (len(columns) - 1)])
            continue
        runs = taken[contender.name]
        seconds = [run.seconds for run in runs]
        ratio = statistics.median(it / mine for it, mine in zip(seconds, ours, strict=True))
        report.rows.append(
            [
                contender.title,
                f"{rows / statistics.median(seconds):,.0f}",
                f"{rows / max(seconds):,.0f} – {rows / min(seconds):,.0f}",
                f"{statistics.median(seconds):.1f}",
                f"{statistics.median(run.cpu for run in runs):.1f}",
                f"{max(run.peak for run in runs) / 1e9:.2f}",
                NOTHING if contender is OURS else f"{ratio:.1f}",
            ]
        )
    return report


def memory_table(few: int, rows: int, peaks: dict[int, int]) -> Report:
    report = Report("memory of ours by the number of rows", ["rows", "peak, GB", "of the first"])
    for count in (few, rows):
        report.rows.append([f"{count:,}", f"{peaks[count] / 1e9:.2f}", f"{peaks[count] / peaks[few]:.2f}"])
    return report


def main() -> None:
    parser = options(__doc__, rows=1_000_000, rounds=3, cores=2)
    parser.add_argument("--memory", type=int, default=4, help="ours again with so many times the rows; 0: not")
    parser.add_argument("--only", nargs="*", choices=[other.name for other in OTHERS], metavar="PEER")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = 20_000, 1
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    others = [other for other in OTHERS if arguments.only is None or other.name in arguments.only]
    before = load()
    with tempfile.TemporaryDirectory(prefix="afm-prepare-") as name:
        folder = Path(name)
        log = folder / "log.tsv"
        write_log(log, arguments.rows)
        taken = compare([OURS, *others], log, folder, cores, arguments.rounds)
        reports = [table_of([OURS, *others], taken, arguments.rows, len(cores))]
        if arguments.memory:
            many = arguments.rows * arguments.memory
            write_log(log, many)
            larger = compare([OURS], log, folder, cores, 1)[OURS.name][0]
            peaks = {arguments.rows: max(run.peak for run in taken[OURS.name]), many: larger.peak}
            reports.append(memory_table(arguments.rows, many, peaks))
            reports[-1].notes.append(
                f"{many:,} rows took {larger.seconds:.1f} s: {many / larger.seconds:,.0f} rows/s"
            )
    facts: list[Any] = [
        describe_machine(len(cores)),
        f"load average {before} before, {load()} after",
        f"{arguments.rounds} rounds, taking turns; whole processes, imports included",
        versions("afm-ctr", "apache-beam", "tensorflow", "numpy"),
        *(f"{other.title}: {peer_versions(other)}" for other in others if other.environment and other.name in taken),
    ]
    publish(reports, arguments.output, facts)


def peer_versions(contender: Contender) -> str:
    assert contender.environment is not None
    names = {
        "fuxictr": ["polars", "ray", "pyarrow"],
        "polars": ["polars"],
        "pandas": ["pandas", "scikit-learn"],
        "transform": ["tensorflow-transform", "apache-beam", "tensorflow"],
    }[contender.environment]
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    found = subprocess.run([str(environment(contender.environment)), "-c", code], capture_output=True, check=True)
    return ", ".join(f"{package} {text}" for package, text in json.loads(found.stdout).items())


if __name__ == "__main__":
    main()
