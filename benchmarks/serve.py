"""The cost of transport: the signature called in this process, the local server over gRPC and over REST.

    .venv/bin/python benchmarks/serve.py                       # makes logs, trains a Criteo-shaped AFM, exports it
    .venv/bin/python benchmarks/serve.py --export-dir served/afm/1 --schema data/schema.yaml --log logs.tsv.gz

The three ways take turns, request by request, so that other load on the machine affects all of them alike. A time is
the whole wait of a caller: from NumPy arrays to NumPy arrays.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from afm_ctr.cli.quiet_imports import load_tensorflow
from afm_ctr.rawlog import parse_log
from serving.client import Client
from serving.load.measurements import quantile
from serving.score import load_spec
from serving.server.app import LocalServer
from serving.server.flags import ServerFlags

ROOT = Path(__file__).resolve().parents[1]
AFM_CTR = Path(sys.executable).with_name("afm-ctr")
FORMS = {"serving_default": "packed ids", "examples": "tf.Examples", "raw": "raw columns"}
WAYS = ("in process", "gRPC", "REST")

Arrays = dict[str, np.ndarray]
Call = Callable[[str, Arrays], Any]


def make_model(folder: Path) -> tuple[Path, Path, Path]:
    """Export folder, schema and log of a Criteo-shaped model (39 fields, k = t = 16), made by the commands."""
    log, data, run, base = (folder / name for name in ("logs.tsv", "data", "run", "served"))
    schema, config = ROOT / "examples/criteo/schema.yaml", ROOT / "examples/criteo/train.yaml"
    for command in (
        ["make-logs", "--rows", 12_000, "--output", log],
        ["prepare", "--schema", schema, "--input", log, "--output", data, "--split", "tail:0.1/0.1"],
        ["train", "--data", data, "--model-dir", run, "--config", config, "--set", "epochs=1"],
        ["export", "--model-dir", run, "--export-base", base],
    ):
        words = [str(AFM_CTR), *map(str, command)]
        print("$ afm-ctr " + " ".join(shlex.quote(word) for word in words[1:]), file=sys.stderr, flush=True)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return base / "1", schema, log


def inputs_of(schema: Path, log: Path, data_schema: Path, rows: int) -> dict[str, Arrays]:
    """The first rows of a log as the inputs of each signature."""
    import tensorflow as tf

    from afm_ctr.features import FeatureTransform
    from afm_ctr.records import serialize_examples
    from afm_ctr.schema import ResolvedSchema

    parsed = next(parse_log(str(log), load_spec(schema), labelled=False, batch_rows=rows))
    raw = {name: np.resize(cells, rows) for name, cells in parsed.columns.items()}
    resolved = ResolvedSchema.load(data_schema)
    encoded = FeatureTransform(resolved)({name: tf.constant(cells.tolist()) for name, cells in raw.items()})
    ids, vals = encoded.feature_ids.numpy(), encoded.feature_vals.numpy()
    examples = np.empty(rows, object)
    examples[:] = serialize_examples(ids, vals, None, None, None, [b""] * rows)
    return {
        "serving_default": {"feature_ids": ids, "feature_vals": vals},
        "examples": {"examples": examples},
        "raw": raw,
    }


def in_process(folder: Path) -> Call:
    """The signature itself."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))

    def call(signature: str, inputs: Arrays) -> Any:
        tensors = {name: tf.constant(array) for name, array in inputs.items()}
        return {name: value.numpy() for name, value in loaded.signatures[signature](**tensors).items()}

    return call


def over_rest(port: int) -> Call:
    """HTTP on one connection, column form; the time includes writing and parsing JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def cell(value: Any) -> Any:
        if not isinstance(value, bytes):
            return value
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}

    def call(signature: str, inputs: Arrays) -> Any:
        if signature == "examples":
            columns = {n: [{"b64": base64.b64encode(v).decode()} for v in a.tolist()] for n, a in inputs.items()}
        else:
            columns = {n: [cell(v) for v in a.tolist()] for n, a in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns})
        connection.request("POST", "/v1/models/afm:predict", body)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            sys.exit(f"benchmark: REST said {response.status}: {text[:300]!r}")
        return {name: np.asarray(values, np.float32) for name, values in json.loads(text)["outputs"].items()}

    return call


def measure(ways: dict[str, Call], signature: str, inputs: Arrays, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way, taking turns; the first calls are not counted, and the answers must be equal."""
    answers = {name: call(signature, inputs) for name, call in ways.items() for _ in range(3)}
    for name in WAYS[1:]:
        np.testing.assert_allclose(answers[name]["logit"], answers[WAYS[0]]["logit"], atol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        order = [*order[1:], order[0]]
        for name in order:
            began = time.perf_counter()
            ways[name](signature, inputs)
            times[name].append((time.perf_counter() - began) * 1e3)
    return times


def import_times(rounds: int = 7) -> dict[str, float]:
    """Seconds to import, each in a new interpreter, minus those of an interpreter that imports nothing."""
    codes = {
        "nothing": "pass",
        "serving.client": "import serving.client",
        "tensorflow_serving.apis": "from tensorflow_serving.apis import prediction_service_pb2_grpc",
    }
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: value - middle["nothing"] for name, value in middle.items() if name != "nothing"}


def machine() -> str:
    """Kind of processor, number of cores, and load average."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, load average {load}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export-dir", type=Path, help="a version folder; default: make one")
    parser.add_argument("--schema", type=Path, help="its resolved schema.yaml (with --export-dir)")
    parser.add_argument("--log", type=Path, help="a raw log (with --export-dir)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256, 1024])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", action="store_true", help="serve from this process instead of one of its own")
    parser.add_argument("--json", type=Path, help="write all figures there")
    chosen = parser.parse_args()
    if chosen.export_dir and not (chosen.schema and chosen.log):
        parser.error("--export-dir needs --schema and --log")
    load_tensorflow()
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.export_dir:
            export, schema, log, resolved = chosen.export_dir, chosen.schema, chosen.log, chosen.schema.parent
        else:
            export, schema, log = make_model(Path(scratch))
            resolved = Path(scratch, "data")
        rows = inputs_of(schema, log, resolved, max(chosen.batches))
        with Server(export, chosen.threads) as server:
            run(chosen, export, rows, server)


class Server:
    """``afm-ctr serve`` on free ports, in a separate process as a real server, or in this one."""

    def __init__(self, export: Path, threads: bool):
        self._base = tempfile.TemporaryDirectory()
        os.symlink(export.resolve(), Path(self._base.name, "1"))
        self._flags = ServerFlags(model_base_path=self._base.name, model_name="afm", port=0, rest_api_port=0)
        self._local = LocalServer(self._flags, "127.0.0.1")
        self.grpc_port, self.rest_port = self._local.grpc_port, self._local.rest_port
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        if self._threads:
            self._local.start()
        else:
            self._local.stop()  # it only reserved the ports
            command = [sys.executable, "-m", "serving.server", "--model_name=afm",
                       f"--model_base_path={self._base.name}", f"--port={self.grpc_port}",
                       f"--rest_api_port={self.rest_port}"]  # fmt: skip
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
        else:
            self._local.stop()
        self._base.cleanup()


def run(chosen: argparse.Namespace, export: Path, rows: dict[str, Arrays], server: Server) -> None:
    """Print all figures to stdout."""
    figures: list[dict[str, Any]] = []
    with Client(f"127.0.0.1:{server.grpc_port}", "afm", timeout=120) as client:
        client.wait_ready(120)
        ways: dict[str, Call] = {
            "in process": in_process(export),
            "gRPC": lambda signature, inputs: client.predict(inputs, signature),
            "REST": over_rest(server.rest_port or 0),
        }
        for signature in FORMS:
            for batch in chosen.batches:
                inputs = {name: array[:batch] for name, array in rows[signature].items()}
                times = measure(ways, signature, inputs, chosen.rounds)
                line: dict[str, Any] = {"form": FORMS[signature], "batch": batch}
                for name, values in times.items():
                    line[name] = {f"p{q}": quantile(sorted(values), q) for q in (50, 99)}
                line["gRPC / in process"] = line["gRPC"]["p50"] / line["in process"]["p50"]
                figures.append(line)
                print(f"{FORMS[signature]}, batch {batch}: done", file=sys.stderr, flush=True)
    imports = import_times()
    packages = ("tensorflow", "grpcio", "protobuf", "numpy", "tensorflow-serving-api")
    print(f"$ {shlex.join([Path(sys.executable).name, *sys.argv])}")
    print(f"{machine()}; Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages))
    print(f"milliseconds, p50 / p99 of {chosen.rounds} requests each, the three ways taking turns\n")
    print("| input | rows | " + " | ".join(WAYS) + " | gRPC / in process |\n|---|--:|--:|--:|--:|--:|")
    for line in figures:
        cells = " | ".join(f"{line[way]['p50']:.2f} / {line[way]['p99']:.2f}" for way in WAYS)
        print(f"| {line['form']} | {line['batch']} | {cells} | {line['gRPC / in process']:.2f} |")
    for name, seconds in imports.items():
        print(f"\nimport {name}: {seconds:.2f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps({"figures": figures, "imports": imports}, indent=1) + "\n")


if __name__ == "__main__":
    main()
