"""Run the training benchmarks one after the other and write their tables and plots into docs/benchmarks.md.

    sudo .venv/bin/python benchmarks/page.py                       # all: about twenty minutes on an idle machine
    .venv/bin/python benchmarks/page.py --only table_size ranks

Each table replaces the previous one at once. If one cannot be made (``hosts`` without root, for instance) the old one
stays, and the exit code is 1; also if a benchmark reports that an aim was not met.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
FIGURES = "docs/figures"
BENCHMARKS = {  # by the name of the table in the page
    "train_step": ["train_step.py"],
    "step_matrix": ["step_matrix.py", "--plot", f"{FIGURES}/step.png"],
    "interaction": ["interaction.py", "--plot", f"{FIGURES}/interaction.png"],
    "memory": ["interaction.py", "--memory"],
    "table_size": ["table_size.py"],
    "ranks": ["ranks.py"],
    "hosts": ["hosts.py"],
}


def put(page: str, name: str, table: str) -> str:
    """The page with this table between its marks."""
    marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(page):
        raise ValueError(f"the page has no place for the table {name}")
    return marks.sub(lambda found: found[1] + table.strip("\n") + "\n" + found[2], page, count=1)


def as_section(output: str, plot: str | None) -> str:
    """The output of a benchmark, without the name of its output file, and its plot."""
    text = re.sub(r"^(    python \S+.*?) --output \S+", r"\1", output, count=1, flags=re.MULTILINE)
    return text + (f"\n![rows a second by slots](figures/{Path(plot).name})\n" if plot else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="TABLE")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; give another page with it")
    arguments = parser.parse_args()
    if arguments.quick and arguments.page.resolve() == PAGE:
        parser.error("--quick makes figures that mean nothing: give a copy of the page by --page")
    wrong = []
    with tempfile.TemporaryDirectory(prefix="afm-page-") as folder:
        for name in arguments.only:
            script, *options = BENCHMARKS[name]
            output, start = Path(folder) / f"{name}.md", time.monotonic()
            plot = options[1] if "--plot" in options and not arguments.quick else None
            command = [sys.executable, f"benchmarks/{script}", *(["--quick"] if arguments.quick else options)]
            if arguments.quick and "--memory" in options:
                command.append("--memory")
            code = subprocess.run([*command, "--output", str(output)], cwd=FOLDER.parent).returncode
            if output.exists():
                section = as_section(output.read_text(encoding="utf-8"), plot)
                page = put(arguments.page.read_text(encoding="utf-8"), name, section)
                arguments.page.write_text(page, encoding="utf-8")
            if code:
                wrong.append(f"{name} ended with {code}" + ("" if output.exists() else ": its table is as before"))
            print(f"== {name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
