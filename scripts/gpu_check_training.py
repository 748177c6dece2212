"""Check training on a machine with NVIDIA GPUs and TensorFlow: the same runs on a CPU and on GPUs, side by side.

    .venv/bin/python scripts/gpu_check_training.py --out gpu-training.md         # minutes

It needs this package set up with TensorFlow for GPUs. On synthetic logs it trains each model on a CPU, on one GPU, on
that GPU again, again with the run killed and resumed, and, with ``horovodrun``, on two ranks that share the GPU or on
all GPUs. The losses must agree with the CPU's to five digits, those of DeepAFM to four after one epoch: its network
amplifies rounding errors, as between two CPUs. Those of runs on one GPU must be the same to the last bit, and one
model's scores on the CPU and the GPU must agree to 1e-5. It prints the output of ``afm-ctr doctor`` and ``afm-ctr
train --profile``. To check only the kernels, without TensorFlow, use ``gpu_check.py``.
Exit code: 0 all agree, 1 something does not, 2 no GPU, or a required library is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SCORES_AGREE = 1e-5
# The settings, and how far the losses may be from the CPU's.
MODELS = {
    "afm": ([], 1e-5),
    "deep_afm": (["--set", "model={name: deep_afm, factors: 16, attention: 16}", "--set", "epochs=1"], 1e-4),
    "fm": (["--set", "model={name: fm, factors: 16}"], 1e-5),
}
PRECISIONS = ("tf32", "bfloat16")
ALL = ",".join(str(number) for number in range(16))
COUNT = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
NCCL = "import horovod.tensorflow as hvd; print(int(hvd.nccl_built()))"


def environment(devices: str) -> dict[str, str]:
    """An environment that sees these GPUs, "-1" for none."""
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"CUDA_VISIBLE_DEVICES": devices, "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": path}


def run(command: list[str], devices: str, seconds: float = 1800, fails: bool = False) -> str:
    """Run a command that sees these GPUs ("-1" for none) and return its output; with ``fails`` it may fail."""
    done = subprocess.run(
        command,
        env=environment(devices),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    if done.returncode and not fails:
        last = done.stdout.strip().splitlines()[-3:]
        raise RuntimeError(f"{' '.join(command[:4])} … ended with {done.returncode}: {' / '.join(last)}")
    return done.stdout


def run_killed(command: list[str], devices: str, model_dir: Path, seconds: float = 600) -> None:
    """Kill a training run, with SIGKILL, once it has a checkpoint, and run it again to the end."""
    with subprocess.Popen(
        command, env=environment(devices), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        end = time.monotonic() + seconds
        while not any(model_dir.glob("checkpoints/*")):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise RuntimeError("the run that was to be killed ended, or made no checkpoint")
            time.sleep(0.02)
        process.kill()
    run(command, devices)


def losses(model_dir: Path) -> list[float]:
    """Every loss of every epoch, of training and of validation."""
    found = []

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(str(key), inner)
        elif "loss" in name and isinstance(value, int | float):
            found.append(float(value))

    for line in (model_dir / "history.jsonl").read_text(encoding="utf-8").splitlines():
        walk("", json.loads(line))
    return found


def differ(one: list[float], other: list[float]) -> float:
    """The largest relative difference; infinite if there is nothing to compare."""
    if not one or len(one) != len(other):
        return float("inf")
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(one, other, strict=True))


class Trainer:
    """Trains on one data set in a folder, each run in its own subfolder."""

    def __init__(self, data: Path, folder: Path, options: list[str]) -> None:
        self.data, self.folder, self.options = data, folder, options

    def target(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / name.replace(" ", "-").replace(",", "")

    def train(self, name: str, devices: str, options: list[str], launcher: list[str], kill: bool) -> list[float]:
        """Its losses. Raises RuntimeError, OSError, subprocess.TimeoutExpired: the run failed."""
        target = self.target(name)
        command = [*launcher, "afm-ctr", "train", "--data", str(self.data), "--model-dir", str(target), *self.options]
        if kill:
            run_killed([*command, *options], devices, target)
        else:
            run([*command, *options], devices)
        return losses(target)

    def scores(self, name: str, logs: Path, place: str, devices: str) -> list[float]:
        """A trained run's predictions for the rows of a log. Raises RuntimeError if it failed."""
        target, scored = self.target(name), self.folder / f"scores-{place}.jsonl"
        run(
            ["afm-ctr", "predict", "--model-dir", str(target), "--input", str(logs), "--output", str(scored)], devices
        )
        return [json.loads(line)["probability"] for line in scored.read_text(encoding="utf-8").splitlines()]


def places(gpus: list[str]) -> dict[str, tuple[str, list[str], bool]]:
    """How each model is trained: the GPUs it sees, the launcher, whether the run is killed."""
    found: dict[str, tuple[str, list[str], bool]] = {
        "CPU": ("-1", [], False),
        "1 GPU": (gpus[0], [], False),
        "1 GPU, again": (gpus[0], [], False),
        "1 GPU, killed": (gpus[0], [], True),
    }
    if not shutil.which("horovodrun", path=environment("")["PATH"]):
        return found
    if len(gpus) > 1:
        found[f"{len(gpus)} GPUs"] = (",".join(gpus), ["horovodrun", "-np", str(len(gpus))], False)
    elif run([sys.executable, "-c", NCCL], "-1").split()[-1] == "0":  # NCCL needs a GPU per rank
        found["2 ranks, 1 GPU"] = (gpus[0], ["horovodrun", "-np", "2"], False)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a Markdown file for what was found")
    parser.add_argument("--rows", type=int, default=50_000, help="of the synthetic logs")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--set", action="append", default=[], help="handed to afm-ctr train")
    parser.add_argument("--on-cpu", action="store_true", help="try this script itself: a CPU in the GPU's place")
    arguments = parser.parse_args()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    found = int(run([sys.executable, "-c", COUNT], ",".join(named) or ALL).split()[-1])
    if not found and not arguments.on_cpu:
        print("gpu_check_training: TensorFlow finds no GPU here", file=sys.stderr)
        return 2
    gpus = ["-1"] if arguments.on_cpu else (named or [str(number) for number in range(found)])[:found]
    lines = ["```", run(["afm-ctr", "doctor"], gpus[0], fails=True).strip(), "```", ""]
    lines += ["| model | where | losses | difference from the CPU | from 1 GPU |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        folder = Path(name)
        logs, data = folder / "logs.tsv.gz", folder / "data"
        run(["afm-ctr", "make-logs", "--rows", str(arguments.rows), "--output", str(logs)], "-1")
        prepare = ["--schema", "examples/criteo/schema.yaml", "--input", str(logs), "--split", "tail:0.1/0.1"]
        run(["afm-ctr", "prepare", *prepare, "--output", str(data)], "-1")
        options = ["--config", "examples/criteo/train.yaml", "--set", "checkpoint.every_steps=20"]
        options += [word for value in arguments.set for word in ("--set", value)]
        trainer = Trainer(data, folder, options)
        fine = True
        with ThreadPoolExecutor(arguments.jobs) as pool:
            runs: dict[tuple[str, str], Future[list[float]]] = {}
            for model in arguments.only:
                for place, (devices, launcher, kill) in places(gpus).items():
                    chosen = [*MODELS[model][0], *(["--set", "drift_check.every_steps=1"] if launcher else [])]
                    name = f"{model}-{place}"
                    runs[model, place] = pool.submit(trainer.train, name, devices, chosen, launcher, kill)
                for precision in PRECISIONS if model == "afm" else ():
                    chosen, name = ["--set", f"precision={precision}"], f"{model}-{precision}"
                    runs[model, precision] = pool.submit(trainer.train, name, gpus[0], chosen, [], False)
            for (model, place), future in runs.items():
                try:
                    have = future.result()
                except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                    lines.append(f"| {model} | {place} | **failed: {error}** | | |")
                    fine = False
                else:
                    cpu, gpu = runs[model, "CPU"], runs[model, "1 GPU"]
                    from_cpu = differ([] if cpu.exception() else cpu.result(), have)
                    from_gpu = differ([] if gpu.exception() else gpu.result(), have)
                    same_place = place.startswith("1 GPU")
                    fine &= place in PRECISIONS or (from_cpu <= MODELS[model][1] and not (same_place and from_gpu))
                    digits = ", ".join(f"{x:.6f}" for x in have)
                    lines.append(f"| {model} | {place} | {digits} | {from_cpu:.0e} | {from_gpu:.0e} |")
                print(lines[-1], flush=True)
            try:
                name = f"{arguments.only[0]}-1 GPU"
                wanted = [(name, logs, "CPU", "-1"), (name, logs, "GPU", gpus[0])]
                on_cpu, on_gpu = pool.map(lambda one: trainer.scores(*one), wanted)
                apart = differ(on_cpu, on_gpu)
                lines += ["", f"{len(on_cpu):,} scores on CPU and GPU: largest relative difference {apart:.0e}"]
                fine &= apart <= SCORES_AGREE
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                lines += ["", f"scores: **failed: {error}**"]
                fine = False
        profile = ["--data", str(data), "--model-dir", str(folder / "profile"), *options]
        try:
            text = run(["afm-ctr", "train", *profile, "--set", "epochs=1", "--profile", "20"], gpus[0]).strip()
        except RuntimeError as error:
            text, fine = str(error), False
        lines += ["", "```", text, "```"]
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
