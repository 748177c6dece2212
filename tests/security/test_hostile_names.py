"""Names and values out of logs never break out of a comment, a message, a terminal, a page or a CSV cell."""

from __future__ import annotations

import csv
import io
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from afm_ctr.cli import app as frame
from afm_ctr.cli.app import console, report
from afm_ctr.cli.main import main
from afm_ctr.distributed import SingleWorld, elastic
from afm_ctr.errors import UserError
from afm_ctr.explain.explanation import RowFacts
from afm_ctr.explain.tables import csv_bytes, linear_table
from afm_ctr.export.validate import validate_export
from afm_ctr.infer import infer_schema
from afm_ctr.records.manifest import Manifest
from afm_ctr.sample_rows import load_samples, save_samples
from afm_ctr.schema import read_yaml
from afm_ctr.training.checkpoint import Checkpoint, DamagedCheckpoint
from afm_ctr.visible import csv_text, visible
from afm_ctr.webpage import Page
from serving.server.__main__ import main as serving_main
from tests import prepared

# Clears a screen, two ways; line ends of YAML and JavaScript; a right-to-left override; marks without width; a tag.
HOSTILE = [
    "\x1b[2J",
    "\x9b2J",
    "\u2028",
    "\u2029",
    "\x85",
    "\u202e",
    "\u200b",
    "\r",
    "\x00",
    "\x7f",
    "\ufeff",
    "\U000e0041",
]
NAME = "na" + "".join(HOSTILE) + "me"


def is_plain(text: str) -> bool:
    return all(one.isprintable() or one in "\n\t" for one in text)


@given(st.text())
def test_a_visible_text_is_printable_and_means_the_same_in_json(text: str) -> None:
    assert visible(text).isprintable()
    assert not text.isprintable() or visible(text) == text
    written = json.dumps(text, ensure_ascii=False)
    assert json.loads(visible(written)) == text


def test_what_an_escape_looks_like() -> None:
    assert visible("a\x1b[31m\u2028\U000e0041 é") == r"a\u001b[31m\u2028\udb40\udc41 é"
    assert visible("a\nb\t", keep="\n\t") == "a\nb\t"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|'/c calc'!A0", "'=cmd|'/c calc'!A0"),
        ("+x", "'+x"),
        ("-x", "'-x"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", r"'\u0009=1"),
        ("\r=1", r"'\u000d=1"),
        ("-1.5e3", "-1.5e3"),
        ("+7", "+7"),
        ("-inf", "-inf"),
        ("-1+cmd", "'-1+cmd"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_formulas_in_csv(text: str, cell: str) -> None:
    assert csv_text(text) == cell
    ((read, number),) = csv.reader(io.StringIO(csv_bytes([], [[text, -2.5]]).decode().removeprefix("\r\n")))
    assert (read, number) == (cell, "-2.5")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_an_inferred_schema_has_no_line_of_its_own_making(kind: str, tmp_path: Path) -> None:
    injected = f"x{NAME}\u2028fields: []\x85label: {{column: evil}}"
    rows = [{"click": i % 2, injected: f"v{NAME}{i % 3}", "n": i} for i in range(60)]
    path = tmp_path / f"log.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        texts = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
        lines = [",".join(cells).replace("\r", "").replace("\0", "") for cells in texts]
        path.write_bytes("".join(line + "\n" for line in lines).encode())
    text = infer_schema([str(path)]).text
    assert is_plain(text)
    (tmp_path / "schema.yaml").write_text(text)
    for read in (read_yaml(tmp_path / "schema.yaml"), yaml.safe_load(text)):
        assert read["label"]["column"] == "click" and len(read["fields"]) >= 1


def test_messages_of_a_refused_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = f"{tmp_path}/{NAME.replace(chr(0), '')}\n.csv"
    monkeypatch.setattr(sys, "argv", ["afm-ctr", "infer-schema", "--input", path])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert is_plain(said) and said.count("\n") == 1 and r"\u001b[2J" in said and r"\u202e" in said


def test_tables_and_json_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(NAME, title=NAME)
    table.add_row(NAME)
    with console.capture() as captured:
        console.print(table)
        console.print(NAME)
        console.print(NAME, markup=False, soft_wrap=True)
    assert is_plain(captured.get()) and r"\u202e" in captured.get()
    report(True, {"name": NAME}, lambda: None)
    printed = capsys.readouterr().out
    assert is_plain(printed) and json.loads(printed) == {"name": NAME}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_command_is_doing(
    text: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line beside the spinner, or that stderr gets, which holds paths; and markup in them is text."""
    monkeypatch.setattr(type(console), "is_terminal", terminal)
    monkeypatch.setattr(console, "status", lambda what: print(what, "…", file=sys.stderr) or nullcontext())
    monkeypatch.setattr(frame, "_SECONDS_UNSAID", 0.0)
    monkeypatch.setattr(frame.threading.Timer, "start", frame.threading.Timer.run)
    with frame.working(f"scoring into [bold]{text}"):
        pass
    assert capsys.readouterr().err == f"scoring into [bold]{visible(text)} …\n"


def test_messages_of_processes_that_have_no_console(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elastic.say(SingleWorld(), "host \x1b[2J is gone")
    assert serving_main(["--model_base_path=a\x1b[2Jb"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and shown.count("\n") == 2 and "host \\u001b[2J is gone" in shown


def test_a_row_that_is_explained() -> None:
    row = RowFacts(0, NAME, 1.0, 0.0, 0.5, (("site", f"\n{NAME}", 0.25),), 0.0)
    with console.capture() as captured:
        console.print(linear_table(row, 5), width=400)
    assert is_plain(captured.get()) and r"\u000a" in captured.get()


def test_pages() -> None:
    page = Page(NAME, NAME)
    page.section(NAME, NAME)
    page.heading(NAME)
    page.paragraph(NAME)
    page.facts({NAME: NAME})
    page.table([NAME], [[NAME]], caption=NAME)
    text = page.html() if hasattr(page, "html") else str(page)
    assert is_plain(text) and r"\u202e" in text


def test_sample_rows_with_line_separators_are_read_again(tmp_path: Path) -> None:
    rows = [{"x": f"a{NAME}b".encode()}, {"x": b"c"}]
    save_samples(tmp_path, rows)
    assert load_samples(tmp_path, ["x"]) == rows


@pytest.mark.parametrize("path", ["/etc", "../other", "a/../../b", "", ".", "a//b"])
@pytest.mark.parametrize("key", ["attempt", "file"])
def test_a_manifest_names_nothing_outside_its_data_set(tmp_path: Path, key: str, path: str) -> None:
    data = prepared.write(tmp_path / "data", {"train": 4})
    content = json.loads((data / "manifest.json").read_text())
    (content if key == "attempt" else content["shards"][0])[key] = path
    (data / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{key}: .*must be a path below the data set's folder"):
        Manifest.load(data, check_files=False)


def test_what_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    deep = "[" * 100_000
    (tmp_path / "manifest.json").write_text(deep)
    with pytest.raises(UserError, match="not valid JSON"):
        Manifest.load(tmp_path)
    (tmp_path / "checkpoint.json").write_text(deep)
    with pytest.raises(DamagedCheckpoint, match="recursion"):
        Checkpoint.open(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "pairs.json").write_text(deep)
    first = validate_export(tmp_path).checks[0]
    assert not first.passed and "RecursionError" in first.detail
