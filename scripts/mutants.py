#!/usr/bin/env python
"""Mutation testing: single changes drawn with a fixed seed, and whether the unit tests of the changed module notice.

cosmic-ray makes the mutants, in a separate virtual environment. Its own test runs would import TensorFlow each time;
here a process that has imported it forks a child for each mutant, which is written into a copy of the project.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import difflib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutants"
WARM = (
    "tensorflow",
    "keras",
    "pandas",
    "pyarrow",
    "polars",
    "sklearn.metrics",
    "apache_beam",
    "grpc",
    "hypothesis",
    "rich.table",
)

# Area -> modules, and the test files that cover them, the fastest first.
AREAS: dict[str, tuple[str, str]] = {
    "exchange": (
        "afm_ctr/distributed/exchange.py afm_ctr/distributed/optimizer.py afm_ctr/distributed/steps.py "
        "afm_ctr/training/exchange.py",
        "exchange_sums exchange_choice registry wrap_optimizer distributed",
    ),
    "optimizers": (
        "afm_ctr/optimizers/base.py afm_ctr/optimizers/rules.py",
        "optimizers wrap_optimizer",
    ),
    "embedding": ("afm_ctr/embedding.py afm_ctr/splitmix.py", "embedding models expiry"),
    "interactions": (
        "afm_ctr/interactions/blocked.py afm_ctr/interactions/choice.py afm_ctr/interactions/dropout.py "
        "afm_ctr/interactions/pooling.py",
        "dropout interactions deep_afm precision native",
    ),
    "metrics": (
        "afm_ctr/metrics/_rows.py afm_ctr/metrics/auc.py afm_ctr/metrics/calibration.py afm_ctr/metrics/constant.py "
        "afm_ctr/metrics/evaluation.py afm_ctr/metrics/group_auc.py afm_ctr/metrics/intervals.py "
        "afm_ctr/metrics/losses.py",
        "metrics intervals verdict quality",
    ),
    "splits": ("beam_jobs/splits.py beam_jobs/rows.py", "beam_splits beam_sampling beam_prepare"),
    "rejects": ("beam_jobs/rejects.py afm_ctr/rawlog/rejects.py", "rejects beam_rejects rawlog"),
    "callbacks": (
        "afm_ctr/training/callbacks.py afm_ctr/training/supervisor.py afm_ctr/distributed/callbacks.py",
        "steering stopping watchdog distributed_callbacks drift_check",
    ),
    "REST numbers": ("serving/server/rest_json.py", "serving_rest_json"),
    "retry budget": ("serving/calls.py serving/connection.py", "serving_client"),
}


@dataclass
class Mutant:
    """One change in one file."""

    area: str
    path: str
    line: int
    code: str
    change: str
    result: str = ""


def not_run(tree: ast.Module) -> set[tuple[int, int]]:
    """The places of annotations and decorators: they are not executed, or no result depends on them."""
    nodes: list[ast.AST] = []
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if found := getattr(node, name, None):
                nodes.append(found)
        nodes += getattr(node, "decorator_list", [])
    places: set[tuple[int, int]] = set()
    for node in nodes:
        assert isinstance(node, ast.expr)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            places |= {(line, column) for column in range(node.col_offset, node.end_col_offset or 0)}
    return places


def telling(operator: str) -> bool:
    """Whether an operator makes changes worth a run.

    Excluded: operators that need arguments; decorators; ``is`` for ``==``; a bit operation for arithmetic and the
    reverse, which fails on any float at once.
    """
    if any(
        part in operator for part in ("Variable", "Decorator", "_Is_Eq", "_IsNot_NotEq", "_Eq_Is", "_NotEq_IsNot")
    ):
        return False
    bits = [name in ("RShift", "LShift", "BitOr", "BitAnd", "BitXor") for name in operator.split("_")[1:]]
    return "BinaryOperator" not in operator or len(set(bits)) == 1


def draw(sample: int, seed: int, areas: list[str]) -> list[dict[str, Any]]:
    """Mutants drawn by place first, then by operator, the same number in every area. Needs cosmic-ray."""
    from cosmic_ray import plugins  # type: ignore[import-not-found]
    from cosmic_ray.ast import ast_nodes, get_ast  # type: ignore[import-not-found]
    from cosmic_ray.mutating import MutationVisitor  # type: ignore[import-not-found]

    operators = [plugins.get_operator(name)() for name in plugins.operator_names() if telling(name)]
    drawn: list[dict[str, Any]] = []
    for number, area in enumerate(areas):
        rng, modules = random.Random(f"{seed} {area}"), AREAS[area][0]
        places: dict[tuple[str, int, int], list[tuple[Any, int]]] = {}
        for path in modules.split():
            source = (ROOT / path).read_text()
            skipped = not_run(ast.parse(source))
            nodes = list(ast_nodes(get_ast(source)))
            for operator in operators:
                found = [start for node in nodes for start, _ in operator.mutation_positions(node)]
                for occurrence, start in enumerate(found):
                    if start not in skipped:
                        places.setdefault((path, *start), []).append((operator, occurrence))
        wanted = (number + 1) * sample // len(areas) - number * sample // len(areas)
        chosen: list[dict[str, Any]] = []
        for path, line, column in rng.sample(sorted(places), len(places)):
            operator, occurrence = rng.choice(places[path, line, column])
            source = (ROOT / path).read_text()
            code = MutationVisitor.mutate_code(source, operator, occurrence)
            lines = list(difflib.unified_diff(source.splitlines(), code.splitlines(), n=0, lineterm=""))[3:]
            change = "  →  ".join(text[1:].strip() for text in lines)
            with contextlib.suppress(SyntaxError):
                compile(code, path, "exec")
                chosen.append({"area": area, "path": path, "line": line, "code": code, "change": change})
            if len(chosen) == wanted:
                break
        drawn += sorted(chosen, key=lambda fields: (fields["path"], fields["line"]))
    return drawn


def tool() -> Path:
    """The Python with cosmic-ray, installed on the first run with every package's hash checked."""
    python = WORK / "venv" / "bin" / "python"
    if not (WORK / "venv" / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", WORK / "venv"], check=True)
        wanted = ROOT / "requirements" / "mutants.txt"
        subprocess.run([python, "-m", "pip", "install", "-q", "--require-hashes", "-r", wanted], check=True)
        (WORK / "venv" / ".ready").touch()
    return python


def copy(tree: Path) -> None:
    """Copy the project's files and its compiled library into a separate folder."""
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "afm_ctr" / "native").glob("_afm*")]
    for name in filter(None, listed + built):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for package in ("afm_ctr", "beam_jobs", "serving"):
        compileall.compile_dir(tree / package, quiet=2)  # once: children write none


def start(tree: Path, tests: str, log: Path) -> int:
    """Fork a child that runs test files in a tree, until the first failure; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        with log.open("wb") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree)
        sys.path.insert(0, str(tree))
        import pytest

        files = [f"tests/unit/test_{name}.py" for name in tests.split()]
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_all(mutants: list[Mutant], trees: list[Path], limit: float) -> None:
    """Run every mutant, one per tree at a time; a child past the limit is killed. Sets the results."""
    waiting, running = list(enumerate(mutants)), dict[int, tuple[int, Mutant, Path, float]]()
    while waiting or running:
        free = [tree for tree in trees if tree not in {entry[2] for entry in running.values()}]
        for tree in free[: len(waiting)]:
            number, mutant = waiting.pop(0)
            if mutant.path:
                (tree / mutant.path).rename(tree / "original")
                (tree / mutant.path).write_text(mutant.code)
            log = WORK / f"{number:04d}.log"
            running[start(tree, AREAS[mutant.area][1], log)] = (number, mutant, tree, time.monotonic())
        for process, (number, mutant, tree, begun) in list(running.items()):
            over = time.monotonic() - begun > limit
            if over:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
            ended, status = os.waitpid(process, 0 if over else os.WNOHANG)
            if not ended:
                continue
            del running[process]
            code = os.waitstatus_to_exitcode(status)
            mutant.result = "time" if over else "survived" if code == 0 else "killed"
            if mutant.path:
                (tree / "original").rename(tree / mutant.path)
            where = f"{mutant.path}:{mutant.line}" if mutant.path else "unchanged"
            print(
                f"{number:4d} {mutant.result:8s} {time.monotonic() - begun:5.0f} s  {mutant.area}: {where}",
                flush=True,
            )
        time.sleep(0.1)


def main() -> int:
    """Draw, run, report; returns 1 if fewer than required are killed, or the unchanged tests fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--areas", nargs="+", default=list(AREAS), choices=list(AREAS), help="default: all")
    parser.add_argument("--sample", type=int, default=160, help="mutants in all; the same number in every area")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="test runs side by side")
    parser.add_argument(
        "--limit", type=float, default=200, help="seconds of one test run; past it a mutant counts as killed"
    )
    parser.add_argument("--at-least", type=float, default=0.97, help="share of mutants to kill")
    parser.add_argument("--draw", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.draw:
        json.dump(draw(given.sample, given.seed, given.areas), sys.stdout)
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    command = [tool(), __file__, "--draw", "--sample", str(given.sample), "--seed", str(given.seed)]
    command += ["--areas", *given.areas]
    mutants = [
        Mutant(**fields) for fields in json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    ]
    trees = [WORK / f"tree-{number}" for number in range(given.jobs)]
    for tree in trees:
        copy(tree)
    sys.dont_write_bytecode = True  # a mutant's bytecode must not be used for another file
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="2", TF_ENABLE_ONEDNN_OPTS="0")
    for name in WARM:
        __import__(name)
    unchanged = [Mutant(area, "", 0, "", "") for area in given.areas]
    run_all(unchanged, trees, given.limit)
    if failed := [mutant.area for mutant in unchanged if mutant.result != "survived"]:
        print(f"mutants: the tests fail without a change: {', '.join(failed)}; see {WORK}", file=sys.stderr)
        return 1
    run_all(mutants, trees, given.limit)
    survived = [mutant for mutant in mutants if mutant.result == "survived"]
    timed = sum(mutant.result == "time" for mutant in mutants)
    killed, share = len(mutants) - len(survived), 1 - len(survived) / len(mutants)
    lines = [f"{m.path}:{m.line}: {m.change}" for m in survived]
    lines.append(f"killed {killed} of {len(mutants)} ({share:.1%}; {timed} by the time limit), seed {given.seed}")
    (WORK / "report.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return int(share < given.at_least)


if __name__ == "__main__":
    sys.exit(main())
