"""Check training on a machine with NVIDIA GPUs and TensorFlow: the same runs on a CPU and on GPUs, side by side.

    .venv/bin/python scripts/gpu_check_training.py --out gpu-training.md         # minutes

It needs this package set up with TensorFlow for GPUs. On synthetic logs it trains AFM and DeepAFM on a CPU, on one
GPU, and, where there are several and ``horovodrun``, on all of them, and compares the losses of the epochs, which
shall agree to five digits. It prints what ``afm-ctr doctor`` and ``afm-ctr train --profile`` say. For the kernels
alone, without TensorFlow: ``gpu_check.py``.
Exit code: 0 all agree, 1 something does not, 2 no GPU, or something that it needs is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
AGREE = 1e-5
MODELS = {"afm": [], "deep_afm": ["--set", "model={name: deep_afm, factors: 16, attention: 16}"]}
ALL = ",".join(str(number) for number in range(16))
COUNT = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"


def run(command: list[str], devices: str, seconds: float = 1800) -> str:
    """Run a command that sees these GPUs ("-1" for none) and give back what it prints."""
    env = os.environ | {
        "CUDA_VISIBLE_DEVICES": devices,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    done = subprocess.run(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
    )
    if done.returncode:
        last = done.stdout.strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(command[:4])} … ended with {done.returncode}: {' '.join(last)}")
    return done.stdout


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a Markdown file for what was found")
    parser.add_argument("--rows", type=int, default=50_000, help="of the synthetic logs")
    parser.add_argument("--set", action="append", default=[], help="handed to afm-ctr train")
    parser.add_argument("--on-cpu", action="store_true", help="try this script itself: a CPU in the GPU's place")
    arguments = parser.parse_args()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    found = int(run([sys.executable, "-c", COUNT], ",".join(named) or ALL).split()[-1])
    if not found and not arguments.on_cpu:
        print("gpu_check_training: TensorFlow finds no GPU here", file=sys.stderr)
        return 2
    gpus = ["-1"] if arguments.on_cpu else (named or [str(number) for number in range(found)])[:found]
    lines = ["```", run(["afm-ctr", "doctor"], gpus[0]).strip(), "```", ""]
    lines += ["| model | where | losses | largest difference from the CPU |", "|---|---|---|---|"]
    fine = True
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        logs, data = f"{folder}/logs.tsv.gz", f"{folder}/data"
        schema = "examples/criteo/schema.yaml"
        run(["afm-ctr", "make-logs", "--rows", str(arguments.rows), "--output", logs], "-1")
        prepare = ["--schema", schema, "--input", logs, "--output", data, "--split", "tail:0.1/0.1"]
        run(["afm-ctr", "prepare", *prepare], "-1")
        places: dict[str, tuple[list[str], str]] = {"CPU": ([], "-1"), "1 GPU": ([], gpus[0])}
        if len(gpus) > 1 and shutil.which("horovodrun", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"):
            places[f"{len(gpus)} GPUs"] = (["horovodrun", "-np", str(len(gpus))], ",".join(gpus))
        for model, settings in MODELS.items():
            chosen = ["--config", "examples/criteo/train.yaml", *settings, "--set", "drift_check.every_steps=1"]
            chosen += [word for value in arguments.set for word in ("--set", value)]
            reference: list[float] = []
            for place, (launcher, devices) in places.items():
                target = Path(folder) / f"{model}-{place}".replace(" ", "-")
                try:
                    run([*launcher, "afm-ctr", "train", "--data", data, "--model-dir", str(target), *chosen], devices)
                    have = losses(target)
                except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                    lines.append(f"| {model} | {place} | **failed: {error}** | |")
                    print(lines[-1], flush=True)
                    fine = False
                    continue
                reference = reference or have
                difference = differ(reference, have)
                fine &= difference <= AGREE
                lines.append(f"| {model} | {place} | {', '.join(f'{x:.6f}' for x in have)} | {difference:.0e} |")
                print(lines[-1], flush=True)
        profile = ["--data", data, "--model-dir", f"{folder}/profile", "--config", "examples/criteo/train.yaml"]
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
