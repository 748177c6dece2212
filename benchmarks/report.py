"""Shared code of the benchmarks: tables for the screen and, as Markdown, for a file; machine and versions."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NOTHING = "–"
FOLDER = Path(__file__).resolve().parent


def describe_machine(cores: int | None = None) -> str:
    """Such as "AMD EPYC (AVX-512), 2 of 2 cores used, 24 GB"."""
    file = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    best = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    used = len(os.sched_getaffinity(0)) if cores is None else cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    name = facts.get("model name", platform.machine())
    return f"{name} ({best}), {used} of {os.cpu_count()} cores used, {memory:.0f} GB"


def versions(*names: str) -> str:
    """Versions of Python and of installed distributions."""
    found = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def command() -> str:
    """The command line of this run, as it can be repeated."""
    script = Path(sys.argv[0]).resolve()
    inside = script.is_relative_to(FOLDER)
    name = script.relative_to(FOLDER) if inside else script.name
    return shlex.join(["python", f"benchmarks/{name}", *sys.argv[1:]])


def options(purpose: str | None, *, quick: bool = True, **sizes: Any) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; some have no quick form.

    Args:
        purpose: the script's docstring.
        quick: whether there is ``--quick``.
        sizes: further options by their defaults: a number, or a list of them.
    """
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in sizes.items():
        several = isinstance(default, list)
        kind = type(default[0] if several else default)
        parser.add_argument(f"--{name}", type=kind, nargs="+" if several else None, default=default)
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the tables there too, as Markdown")
    if quick:
        parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    return parser


@dataclass
class Report:
    """One table, with the notes that a reader needs to judge it.

    Attributes:
        title: of the table.
        columns: their names; the first is left-aligned, the others right-aligned.
        rows: cells as text, one list per row of the table.
        notes: sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def print(self) -> None:
        table = Table(title=self.title, title_justify="left")
        for place, name in enumerate(self.columns):
            table.add_column(name, justify="right" if place else "left", no_wrap=not place)
        for row in self.rows:
            table.add_row(*row)
        console = Console(width=None if sys.stdout.isatty() else 180)
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False, highlight=False)

    def markdown(self) -> str:
        marks = [":--"] + ["--:"] * (len(self.columns) - 1)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, marks, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, "", *(f"{note}\n" for note in self.notes)])


def publish(reports: Sequence[Report], output: Path | None, facts: Sequence[str]) -> None:
    """Print the tables and write them to ``output``, if given, below the command and its environment.

    Args:
        reports: the tables.
        output: a Markdown file, replaced as a whole.
        facts: machine, versions, rounds: one line each.
    """
    print(f"\n$ {command()}")
    for fact in facts:
        print(fact)
    for report in reports:
        report.print()
    if output:
        head = f"    {command()}\n\n" + "".join(f"- {fact}\n" for fact in facts)
        text = "\n".join([head, *(report.markdown() for report in reports)])
        temporary = output.with_name(f".{output.name}.tmp")
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
        temporary.replace(output)
