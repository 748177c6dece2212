"""Training in processes of their own: who runs when, how far it is, what went wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import ENVIRONMENTS, environment
from rows import PreparedRows

import afm_ctr

PEER = "fuxictr-"
_FOLDER = Path(__file__).parent
_PAUSE = 0.5
# The parts of the package that a trained weight or its score depends on.
_TRAINS = (
    "embedding.py",
    "interactions",
    "models",
    "native",
    "optimizers",
    "records",
    "sparse_gradients.py",
    "training",
)


@dataclass(frozen=True)
class Job:
    """A model to be trained with a seed.

    Attributes:
        model: by the name of its config.
        seed: of initial values, order and dropout.
        config: what the worker is given.
        folder: of the run.
        result: the file of its figures.
        versions: of what it runs on.
        begin_with: the folder of a run whose table and bias it begins with; None: with its own initial values.
    """

    model: str
    seed: int
    config: dict[str, Any]
    folder: Path
    result: Path
    versions: list[str]
    begin_with: Path | None = None


def versions_of(model: str) -> list[str]:
    """What a result depends on besides config and rows: packages, and the code that trains."""
    if model.startswith(PEER):
        return [*ENVIRONMENTS["fuxictr"], f"code {code_digest(_FOLDER / 'fuxictr_worker.py')}"]
    packages = [f"{name}=={version(name)}" for name in ("afm-ctr", "tensorflow", "keras")]
    package = Path(afm_ctr.__file__).parent
    return [*packages, f"code {code_digest(*(package / name for name in _TRAINS), _FOLDER / 'ours_worker.py')}"]


def code_digest(*paths: Path) -> str:
    """A digest of source files, and of those below folders: a result of other code is not taken for one of this."""
    files = sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    found = hashlib.sha256()
    for file in files:
        if file.suffix in (".py", ".cc", ".h"):
            content = file.read_bytes()
            found.update(f"{file.name} {len(content)}\n".encode() + content)
    return found.hexdigest()[:12]


class Worker:
    """A process that trains one model with one seed after the other."""

    def __init__(self, jobs: list[Job], splits: list[str], rows: PreparedRows, keep: bool, threads: int) -> None:
        self.jobs, model = jobs, jobs[0].model
        peer = model.startswith(PEER)
        interpreter = environment("fuxictr") if peer else Path(sys.executable)
        script = _FOLDER / ("fuxictr_worker.py" if peer else "ours_worker.py")
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
        task = {
            "name": f"config of {model}",
            "config": jobs[0].config,
            "runs": [
                {"seed": job.seed, "folder": str(job.folder), "begin_with": job.begin_with and str(job.begin_with)}
                for job in jobs
            ],
            "score": splits,
            "rows": rows.peers if peer else rows.ours,
            "fields": rows.fields,
            "data": str(rows.data),
            "keep": keep,
            "threads": threads,
        }
        self.log = jobs[0].folder / "worker.log"
        quiet = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [str(interpreter), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"),
            text=True,
            env=quiet | {"OMP_NUM_THREADS": str(threads)},
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(task))
        self.process.stdin.close()
        self._seen: dict[Path, int] = {}

    def tell(self) -> None:
        """Print the epochs that have ended since."""
        for job in self.jobs:
            files = [job.folder / "history.jsonl", job.folder / "model" / "history.jsonl"]  # the peer's, or ours
            epochs = [line for file in files if file.exists() for line in file.read_text().splitlines()]
            before = self._seen.get(job.folder, len(epochs))
            self._seen[job.folder] = max(len(epochs), before)
            for line in epochs[before:]:
                epoch = json.loads(line)
                auc = f", validation AUC {epoch['val_auc']:.5f}" if epoch.get("val_auc") else ""
                print(f"{job.model}, seed {job.seed}, epoch {epoch['epoch'] + 1}{auc}", flush=True)

    def ended(self) -> bool:
        code = self.process.poll()
        if code:
            lines = self.log.read_text(errors="replace").splitlines()[-8:]
            print(f"{self.jobs[0].model}: its process ended with {code}\n" + "\n".join(lines), file=sys.stderr)
        return code is not None


def work(jobs: list[Job], splits: list[str], rows: PreparedRows, keep: bool, side_by_side: int) -> None:
    """Do the jobs; one that fails is reported and left out.

    Args:
        jobs: what is not done yet.
        splits: to be scored.
        rows: of the data set.
        keep: whether our trained models stay.
        side_by_side: processes at a time. One: a process trains all seeds of a model; more: one seed each.
    """
    if side_by_side > 1:
        waiting = [[job] for job in jobs]
    else:
        waiting = [[job for job in jobs if job.model == model] for model in dict.fromkeys(job.model for job in jobs)]
    threads = max(len(os.sched_getaffinity(0)) // side_by_side, 1)
    running: list[Worker] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended too
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                running.append(Worker(waiting.pop(0), splits, rows, keep, threads))
            time.sleep(_PAUSE)
            for worker in running:
                worker.tell()
            running = [worker for worker in running if not worker.ended()]
    finally:
        for worker in running:
            worker.process.terminate()
            worker.process.wait()
