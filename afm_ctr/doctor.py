"""What is installed, what is missing, and the command that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

from afm_ctr.installed import version_of
from afm_ctr.native import nvrtc

BUILD_HOROVOD = "python scripts/build_horovod.py"
BUILD_NATIVE = "python scripts/build_native.py"

# (distribution, what for, extra that brings it; "" is the base install)
_PACKAGES = [
    ("numpy", "arrays", ""),
    ("pydantic", "schema and config", "cli"),
    ("protobuf", "messages of the client", ""),
    ("grpcio", "scoring client", ""),
    ("tensorflow", "training, export, transform", "train"),
    ("keras", "training", "train"),
    ("google-crc32c", "checksums of records", "train"),
    ("matplotlib", "pictures of explain", "train"),
    ("tensorboard", "learning curves", "train"),
    ("apache-beam", "prepare", "beam"),
    ("tensorflow-serving-api", "serve", "serving"),
    ("grpcio-health-checking", "serve", "serving"),
]

# Run in a separate process: a library built for another TensorFlow may crash the process that loads it.
_PROBE_HOROVOD = """
import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
assert float(hvd.allreduce(tf.constant(1.0), op=hvd.Sum)) == float(hvd.size())
print("gloo" if hvd.gloo_built() else "-", hvd.nccl_built() or "-")
"""
_PROBE_POOLING = "from afm_ctr import native; print(native.describe())"
PROBE_SECONDS = 180  # timeout of a probe
_PROBE_GPU = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``ok``, the thing, its version or state, and the command that fixes it (or '')."""

    ok: bool
    what: str
    state: str
    remedy: str = ""
    optional: bool = False


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HOROVOD_")}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    command = [sys.executable, "-c", code]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {PROBE_SECONDS} s")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _horovod(tensorflow: str | None) -> Finding:
    version = version_of("horovod")
    if tensorflow is None:
        return Finding(version is None, "horovod", "not checked: needs TensorFlow", "", optional=True)
    if version is None:
        return Finding(False, "horovod", "not installed: one process only", BUILD_HOROVOD, optional=True)
    probe = run_code(_PROBE_HOROVOD)
    if "ModuleNotFoundError" in probe.stderr:
        return Finding(False, "horovod", f"{version}: {_last_line(probe.stderr)}", "pip install '.[horovod]'")
    if probe.returncode:
        return Finding(
            False,
            "horovod",
            f"{version} does not fit TensorFlow {tensorflow}: {_last_line(probe.stderr)}",
            f"{BUILD_HOROVOD} --rebuild",
        )
    gloo, nccl = _last_line(probe.stdout).split()
    backends = " and ".join(name for name in (gloo.capitalize(), f"NCCL {nccl}") if not name.endswith("-"))
    return Finding(True, "horovod", f"{version}, fits TensorFlow {tensorflow}, {backends}")


def _gpu(horovod: Finding) -> Finding:
    probe = run_code(_PROBE_GPU)
    count = _last_line(probe.stdout) if probe.returncode == 0 else "0"
    if count in ("0", "no output"):
        return Finding(True, "gpu", "none seen by TensorFlow: runs on the CPU", optional=True)
    if horovod.ok and "NCCL" not in horovod.state:
        return Finding(False, "gpu", f"{count}, but Horovod was built without NCCL", f"{BUILD_HOROVOD} --gpu")
    return Finding(True, "gpu", count)


def pooling() -> Finding:
    """Which implementation of attentional pooling training uses; on a GPU its kernels are compiled once."""
    probe = run_code(_PROBE_POOLING)
    state = _last_line(probe.stdout if probe.returncode == 0 else probe.stderr)
    if probe.returncode:
        state = f"TensorFlow form: {state}"
    ok = state.startswith("fused")
    remedy = nvrtc.INSTALL if nvrtc.MISSING in state else BUILD_NATIVE
    return Finding(ok, "attentional pooling", state, "" if ok else remedy, optional=True)


def examine() -> list[Finding]:
    """All findings; takes a few seconds, as TensorFlow and Horovod are loaded in separate processes."""
    python_fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    remedy = "" if python_fits else "use Python 3.11, 3.12 or 3.13"
    findings = [Finding(python_fits, "python", platform.python_version(), remedy)]
    for distribution, purpose, extra in _PACKAGES:
        version = version_of(distribution)
        remedy = f"pip install '.[{extra}]'" if extra else "pip install ."
        if version:
            findings.append(Finding(True, distribution, version))
        else:
            findings.append(Finding(False, distribution, f"missing: {purpose}", remedy, optional=bool(extra)))
    tensorflow = version_of("tensorflow")
    horovod = _horovod(tensorflow)
    findings.append(horovod)
    if tensorflow:
        findings.append(_gpu(horovod))
        findings.append(pooling())
    for name, purpose in [
        ("g++", "building Horovod and the ops"),
        ("cmake", "building Horovod"),
        ("make", "building Horovod"),
    ]:
        path = shutil.which(name)
        findings.append(Finding(bool(path), name, path or f"missing: {purpose}", f"install {name}", optional=True))
    server = shutil.which("tensorflow_model_server")
    findings.append(
        Finding(True, "tensorflow_model_server", server or "not on the PATH: afm-ctr serve stands in", optional=True)
    )
    return findings


def as_json(findings: list[Finding]) -> dict[str, object]:
    return {"ok": all(f.ok or f.optional for f in findings), "findings": [asdict(f) for f in findings]}
