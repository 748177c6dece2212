"""The whole path on synthetic logs: raw log, records, training on two ranks, export, a server, scores.

    make demo                      # or: .venv/bin/python scripts/demo.py --rows 200000 --ranks 2

Every step is a command that is printed first, so that it can be repeated by hand; all files go to demo-out/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from afm_ctr.cli.quiet_imports import CHATTER

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
console = Console(highlight=False)
os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"


def step(title: str, command: list[str]) -> dict[str, Any]:
    """Run one command of the path, show its output, and return the JSON object that it prints last."""
    console.rule(f"[bold]{title}", align="left")
    console.print("$ " + " ".join(shlex.quote(word) for word in command), style="cyan", soft_wrap=True)
    # horovodrun's launcher loads TensorFlow, whose messages would bury the rest.
    hushed = {"stderr": subprocess.STDOUT} if command[0] == "horovodrun" else {}
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT, **hushed)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        text = line.rstrip("\n")
        payload = text.partition("<stdout>:")[2] or text  # horovodrun puts "[1,0]<stdout>:" before a rank's line
        if payload.strip().startswith("{"):
            last = payload.strip()
        elif payload.strip() and not CHATTER.match(payload.encode()):
            print(text, flush=True)
    if process.wait():
        sys.exit(f"demo: '{title}' ended with {process.returncode}; the lines above say why")
    result: dict[str, Any] = json.loads(last)
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_served(process: subprocess.Popen[bytes], port: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"demo: the server ended with {process.returncode}")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    sys.exit(f"demo: the server did not listen within {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    parser.add_argument("--set", action="append", default=[], help="handed to afm-ctr train, both models")
    arguments = parser.parse_args()
    out: Path = arguments.output
    shutil.rmtree(ROOT / out, ignore_errors=True)
    (ROOT / out).mkdir(parents=True)
    start = time.monotonic()
    logs, data = f"{out}/logs.tsv.gz", f"{out}/data"

    made = step(
        "1 raw logs",
        ["afm-ctr", "make-logs", "--rows", str(arguments.rows), "--output", logs, "--malformed", "0.001"],
    )
    prepared = step(
        "2 records",
        ["afm-ctr", "prepare", "--schema", "examples/criteo/schema.yaml", "--input", logs, "--output", data,
         "--split", "tail:0.1/0.1"],
    )  # fmt: skip
    launcher = ["horovodrun", "--gloo", "-np", str(arguments.ranks), "-H", f"localhost:{arguments.ranks}"]
    if shutil.which("horovodrun") is None or arguments.ranks == 1:
        launcher = []
    models: dict[str, dict[str, Any]] = {}
    for number, (name, model) in enumerate(
        {"afm": [], "fm": ["--set", "model={name: fm, factors: 16}"]}.items(), start=3
    ):
        run = f"{out}/{name}"
        chosen = [word for value in arguments.set for word in ("--set", value)]
        trained = step(
            f"{number} training {name.upper()} on {arguments.ranks if launcher else 1} rank(s)",
            [*launcher, "afm-ctr", "train", "--data", data, "--model-dir", run, "--config",
             "examples/criteo/train.yaml", *model, *chosen],
        )  # fmt: skip
        tested = step(
            f"{number} testing {name.upper()}",
            ["afm-ctr", "evaluate", "--data", data, "--split", "test", "--model-dir", run],
        )
        models[name] = {"train": trained, "test": tested}

    step("5 SavedModel", ["afm-ctr", "export", "--model-dir", f"{out}/afm", "--export-base", f"{out}/served/afm"])
    port, rest = free_port(), free_port()
    serve = ["afm-ctr", "serve", "--model_name", "afm", "--model_base_path", str(ROOT / out / "served/afm"),
             "--port", str(port), "--rest_api_port", str(rest)]  # fmt: skip
    console.rule("[bold]6 server", align="left")
    console.print("$ " + " ".join(serve) + " &", style="cyan", soft_wrap=True)
    server = subprocess.Popen(serve, cwd=ROOT)
    try:
        wait_until_served(server, port)
        sample = ROOT / out / "ten-rows.tsv"
        first_rows(ROOT / logs, sample, 10)
        step(
            "7 scores over gRPC",
            ["afm-ctr", "score", "--target", f"localhost:{port}", "--model-name", "afm", "--schema",
             "examples/criteo/schema.yaml", "--input", f"{out}/ten-rows.tsv", "--output", f"{out}/scores.jsonl"],
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait(timeout=30)
    explained = step(
        "8 explanation",
        ["afm-ctr", "explain", "--model-dir", f"{out}/afm", "--data", data, "--output", f"{out}/explain"],
    )
    scores = [json.loads(line) for line in (ROOT / out / "scores.jsonl").read_text().splitlines()]
    show(made, prepared, models, scores, explained, time.monotonic() - start)


def first_rows(source: Path, target: Path, count: int) -> None:
    """Copy the first lines of a gz log."""
    import gzip

    with gzip.open(source, "rb") as lines, target.open("wb") as sink:
        for _, line in zip(range(count), lines, strict=False):
            sink.write(line)


def show(
    made: dict[str, Any],
    prepared: dict[str, Any],
    models: dict[str, dict[str, Any]],
    scores: list[dict[str, Any]],
    explained: dict[str, Any],
    seconds: float,
) -> None:
    console.rule("[bold]the whole path", align="left")
    table = Table(show_header=False, title_justify="left", title="rows")
    table.add_row("lines written", f"{made['rows']:,}")
    rejected = sum(prepared["rejects"].values())
    table.add_row("rows in / out / rejected", f"{prepared['rows_in']:,} / {prepared['rows_out']:,} / {rejected:,}")
    console.print(table)

    table = Table(title="models", title_justify="left")
    for heading in ("", "train rows/s", "test AUC", "test log loss"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in models.items():
        table.add_row(
            name.upper(),
            f"{result['train']['rows_per_second']:,.0f}",
            f"{result['test']['auc']:.4f}",
            f"{result['test']['log_loss']:.4f}",
        )
    if "bayes_auc" in made:
        table.add_row("the law behind the logs", "", f"{made['bayes_auc']:.4f}", f"{made['bayes_log_loss']:.4f}")
    console.print(table)

    table = Table(title="first ten scores, over gRPC", title_justify="left")
    table.add_column("row")
    table.add_column("probability", justify="right")
    for score in scores:
        table.add_row(str(score["key"]), f"{score['probability']:.6f}" if "probability" in score else score["error"])
    console.print(table)

    planted = {frozenset(pair) for pair in made["planted_pairs"]}
    table = Table(title="pairs that matter most (* planted in the logs)", title_justify="left")
    for heading in ("rank", "pair", "effect on the logit", "mean attention"):
        table.add_column(heading, justify="left" if heading == "pair" else "right")
    for rank, pair in enumerate(explained["pairs"][: len(planted) + 3], start=1):
        mark = " *" if frozenset(pair["fields"]) in planted else ""
        table.add_row(
            str(rank), " x ".join(pair["fields"]) + mark, f"{pair['effect']:.4f}", f"{pair['attention']:.4f}"
        )
    console.print(table)
    console.print(
        f"`make demo` took {seconds:.0f} s after set-up; Python {platform.python_version()}, "
        f"TensorFlow {version('tensorflow')}, Beam {version('apache-beam')}, {os.cpu_count()} cores, "
        f"{platform.machine()}, CPU only. The pairs as a page: explain/pairs.html in the same folder."
    )


if __name__ == "__main__":
    main()
