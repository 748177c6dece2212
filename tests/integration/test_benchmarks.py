"""The benchmarks at tiny sizes: they run and print and write their tables. How fast anything is, nobody asks here."""

from __future__ import annotations

import argparse
import importlib.util
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(FOLDER))

import hosts  # noqa: E402
import namespaces  # noqa: E402
import page  # noqa: E402
from report import Report, publish  # noqa: E402

from afm_ctr import native  # noqa: E402

needs_horovod = pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed")
needs_namespaces = pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not())


def run(folder: Path, script: str, *options: object, timeout: float = 300) -> list[list[list[str]]]:
    """The tables that a benchmark wrote: rows of cells, heads first."""
    output = folder / "table.md"
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--quick", "--output", str(output), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    text = output.read_text(encoding="utf-8")
    assert f"benchmarks/{script}.py --quick" in text
    assert "cores used" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in t.splitlines()] for t in tables]
    return [[table[0], *table[2:]] for table in rows]


@pytest.mark.soak
def test_planted_pairs(tmp_path: Path) -> None:
    [table] = run(tmp_path, "planted_pairs", timeout=1800)
    (row,) = table[1:]
    places = [list(map(int, cell.split("/"))) for cell in row[1:5]]
    assert all(1 <= rank <= 741 for pair in places for rank in pair)
    assert len({ranks[0] for ranks in places}) == 4 and 0 < float(row[-2]) < 1


def test_interaction(tmp_path: Path) -> None:
    yardstick, plot = tmp_path / "yardstick", tmp_path / "figures" / "plot.png"
    yardstick.write_text("#!/bin/sh\necho threads 1 ex/s 7; echo threads 2 ex/s 11; echo threads 2 ex/s 12\n")
    yardstick.chmod(0o755)
    [table] = run(tmp_path, "interaction", "--plot", plot, "--limit-program", yardstick)
    assert [row[:2] for row in table] == [["slots", "batch"], ["3", "64"], ["6", "64"]]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(native.load().module is None, reason=f"reading records: {native.load().reason}")
def test_input(tmp_path: Path) -> None:
    [table] = run(tmp_path, "input")
    assert table[0][0] == "cores" and table[1][0] == "1"
    assert all(float(row[4]) > 0 for row in table[1:])


def test_table_size(tmp_path: Path) -> None:
    [table] = run(tmp_path, "table_size", "--optimizers", "adam", "ftrl")
    assert [row[0] for row in table] == ["optimizer", "adam", "ftrl"]
    assert all(float(row[3]) > 0 for row in table[1:])


def test_tables_become_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("title", ["name", "ms"], [["a", "1"]], ["a note"])
    publish([report], tmp_path / "out.md", ["a fact"])
    text = (tmp_path / "out.md").read_text()
    assert "**title**\n\n| name | ms |\n| :-- | --: |\n| a | 1 |\n\na note\n" in text
    assert text.startswith("    python benchmarks/") and "- a fact\n" in text
    assert "title" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.md"]


def test_links_are_read() -> None:
    assert hosts.parse_link("2.5") == namespaces.Link("2.5 Gbit/s", 2_500_000_000, 0.0)
    assert hosts.parse_link("10/0.2") == namespaces.Link("10 Gbit/s, 0.2 ms", 10**10, 0.2)
    assert hosts.parse_link("free").rate is None
    for wrong in ("fast", "-1", "0", "1/x", "1/-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            hosts.parse_link(wrong)


def test_the_speed_at_which_one_form_overtakes_another() -> None:
    # 10 ms + 0.1 Gbit against 30 ms + 0.02 Gbit: equal where 80 ms·Gbit/s / speed is 20 ms, at 4 Gbit/s.
    constant, bits = {"raw": 0.010, "gather": 0.030, "reduce": 9.0}, {"raw": 0.1, "gather": 0.02, "reduce": 0.1}
    constant["sharded"], bits["sharded"] = 9.0, 0.1
    links = [namespaces.Link("slow", 10**9), namespaces.Link("fast", 10**10), namespaces.Link("free")]
    found: list[dict[str, Any]] = [
        {"link": n, "ids": 5, "form": form, "kind": "exchange", "seconds": constant[form] + bits[form] / gbit}
        for n, gbit in ((0, 1.0), (1, 10.0))
        for form in constant
    ]
    said = hosts.crossings({"found": found}, {"ids": [5], "forms": list(constant)}, links)
    assert said == ["5 ids: gather beats raw below about 4.0 Gbit/s, not above."]


def test_the_page_has_a_place_for_every_table() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for name, [script, *_] in page.BENCHMARKS.items():
        assert (FOLDER / script).exists()
        section = page.as_section(
            f"    python benchmarks/{script} --memory --output /x/y.md\n\n| {name} |\n", "d/a.png"
        )
        filled = page.put(page.put(text, name, "| before |"), name, section)
        assert (
            f"    python benchmarks/{script} --memory\n\n| {name} |\n\n![rows a second by slots](figures/a.png)\n<!--"
            in filled
        )
        assert "| before |" not in filled and filled.count("<!-- end -->") == len(page.BENCHMARKS)
    with pytest.raises(ValueError, match="no place for the table other"):
        page.put(text, "other", "")


@pytest.mark.soak
def test_memory(tmp_path: Path) -> None:
    [table] = run(tmp_path, "interaction", "--memory")
    assert table[1][0] == "plain" and "arithmetic" in table[1][1]
    assert 0 < float(table[2][1]) < 3


@pytest.mark.soak
@needs_horovod
def test_ranks(tmp_path: Path) -> None:
    [table] = run(tmp_path, "ranks", timeout=600)
    assert len(table) == 5 and table[-1][0].startswith("two ranks, the same local batch")


@pytest.mark.soak
@needs_horovod
@needs_namespaces
def test_hosts(tmp_path: Path) -> None:
    wire, times = run(tmp_path, "hosts", "--links", "1", "free/0.2", timeout=600)
    raw, gather = float(wire[1][3]), float(wire[1][4])
    assert 0 < gather < raw
    assert [row[0] for row in times[1:]] == ["1 Gbit/s", "not limited, 0.2 ms"]
    assert not listed()


@pytest.mark.soak
@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hosts_leave_nothing_when_stopped(number: signal.Signals) -> None:
    command = [sys.executable, str(FOLDER / "hosts.py"), "--quick"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        stem = f"{namespaces.PREFIX}-{process.pid}"
        deadline = time.monotonic() + 120
        while not any(name.startswith(f"{stem}-h2") for name in listed()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert not [name for name in listed() if name.startswith(stem)]


def listed() -> list[str]:
    """The namespaces of labs."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line.startswith(namespaces.PREFIX)]


@pytest.mark.soak
def test_the_peers_run(tmp_path: Path) -> None:
    from peers import place

    peers = ("deepctr", "fuxictr")
    if not all((place(name)[0] / "installed.txt").exists() for name in peers):
        pytest.skip(f"{', '.join(peers)}: not installed; benchmarks/train_step.py does that")
    [table] = run(tmp_path, "step_matrix", timeout=900)
    assert table[1][:2] == ["3", "64"] and all(float(cell) > 0 for cell in table[1][5:7])
