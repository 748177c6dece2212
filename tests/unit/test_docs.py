"""What README and docs say to type: every command, option, file, test and name of it is there."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer import TyperException
from typer.main import get_command

from afm_ctr.cli import commands as _registered  # noqa: F401
from afm_ctr.cli.app import app
from afm_ctr.errors import UserError
from afm_ctr.io.yaml import parse_yaml
from afm_ctr.schema import FeatureSchema
from afm_ctr.training import TrainConfig
from serving.server.flags import ServerFlags
from tests.unit.test_runner_docs import unknown_to_beam

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
FOLDERS = {"tests", "scripts", "benchmarks", "examples", "afm_ctr", "beam_jobs", "serving", "docs", "deploy"}
REFERENCE = "docs/reference.md"
ENDS = {"&", "&&", "||", "|", ";", ">", ">>", "<", "2>"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str


class Line(NamedTuple):
    """A command line of a page, in words, without what stands around it in the shell; ``shown`` in a block."""

    page: str
    words: tuple[str, ...]
    shown: bool


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for language, text in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text("utf-8"), re.M | re.S):
            yield Block(str(page.relative_to(ROOT)), language, text)


def words_of(text: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a shell text."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word not in ENDS:
                command.append(word)
            elif command:
                yield tuple(command)
                command = []


def lines() -> list[Line]:
    """All commands of shell blocks, and code in running text that begins with afm-ctr."""
    found = []
    for block in blocks():
        if block.language in ("sh", "bash") or (not block.language and "afm-ctr " in block.text):
            found += [Line(block.page, words, True) for words in words_of(block.text)]
    for page in PAGES:
        prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)
        for code in re.findall(r"`((?:afm-ctr|make|(?:\.venv/bin/)?python) [^`]+)`", prose):
            found += [Line(str(page.relative_to(ROOT)), words, False) for words in words_of(code)]
    return found


LINES = lines()


def ours(program: str) -> list[Line]:
    """The lines that start a program, from its name on (``horovodrun … afm-ctr train`` starts afm-ctr)."""
    found = []
    for line in LINES:
        at = [number for number, word in enumerate(line.words) if re.fullmatch(program, word)]
        found += [line._replace(words=line.words[at[0] :])] if at else []
    return found


def problem_of(words: tuple[str, ...]) -> str | None:
    """What is wrong with an afm-ctr command line; ``…`` stands for what a reader fills in."""
    _, *rest = words
    if not rest or rest == ["--help"] or rest == ["--version"]:
        return None
    name, arguments = rest[0], [word for word in rest[1:] if word not in ("…", "...", "--help")]
    if name not in COMMANDS:
        return f"there is no command {name}"
    if name == "serve":
        known = {f"--{field.name}" for field in dataclasses.fields(ServerFlags)}
        return next((f"serve has no {one}" for one in named(arguments) if one not in known), None)
    takes = {option for parameter in COMMANDS[name].params for option in parameter.opts + parameter.secondary_opts}
    foreign = [one for one in named(arguments) if one not in takes]
    if name == "prepare":
        foreign = unknown_to_beam([word for word in arguments if word.partition("=")[0] in foreign])
    return f"{name} has no {foreign[0]}" if foreign else None


def named(arguments: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in arguments if re.match(r"--\w", word)]


def test_there_is_something_to_check() -> None:
    assert len(ours("afm-ctr")) > 50 and len(list(blocks())) > 40
    shown = {line.words[1] for line in ours("afm-ctr") if line.words[1:]}
    assert shown >= {"prepare", "train", "evaluate", "export", "serve", "score"}


@pytest.mark.parametrize("page", sorted({line.page for line in ours("afm-ctr")}))
def test_commands_and_options_are_there(page: str) -> None:
    found = [(problem_of(line.words), " ".join(line.words)) for line in ours("afm-ctr") if line.page == page]
    assert [problem for problem in found if problem[0]] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("afm-ctr trian --data d", "no command trian"),
        ("afm-ctr train --daat d", "train has no --daat"),
        ("afm-ctr prepare --schema s --flink_mastre=x", "prepare has no --flink_mastre"),
        ("afm-ctr serve --prot 8500", "serve has no --prot"),
        ("afm-ctr prepare --schema s --input 'a*' --flink_master=x --split tail:0.1/0.1", None),
    ],
)
def test_the_check_finds_mistakes(line: str, says: str | None) -> None:
    problem = problem_of(tuple(shlex.split(line)))
    assert (problem is None) if says is None else (says in str(problem))


def test_whole_lines_parse() -> None:
    """Lines of blocks that leave nothing open have values of the right kind, and all that is required."""
    parsed, wrong = 0, []
    for line in ours("afm-ctr"):
        _, name, *arguments = (*line.words, "")
        arguments = [word for word in arguments if word]
        if not line.shown or name in ("serve", "") or {"…", "...", "--help"} & set(arguments):
            continue
        try:
            COMMANDS[name].make_context(name, arguments)
            parsed += 1
        except TyperException as error:
            wrong.append((line.page, " ".join(line.words), error.format_message()))
    assert wrong == []
    assert parsed > 30


def test_scripts_and_their_options_are_there() -> None:
    """``python FILE --option``: the file is there and knows the option; ``make TARGET``; paths in running text."""
    wrong = []
    for line in ours(r"(?:.*/)?python3?"):
        file = next((word for word in line.words[1:] if word.endswith(".py")), None)
        if file is None or "…" in file:
            continue
        if not (ROOT / file).is_file():
            wrong.append((line.page, file))
            continue
        source = (ROOT / file).read_text()
        package = "".join(path.read_text() for path in (ROOT / file).parent.glob("*.py"))
        wrong += [(line.page, file, one) for one in named(list(line.words)) if f'"{one}"' not in source + package]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    wrong += [(line.page, *line.words) for line in ours("make") if line.words[1] not in targets]
    assert wrong == []


def test_files_tests_and_links_are_there() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    wrong = []
    for page in PAGES:
        text = page.read_text("utf-8")
        name = str(page.relative_to(ROOT))
        for file in re.findall(r"`([a-z_]+/[\w./-]+)`", text):
            if file.partition("/")[0] in FOLDERS and not (ROOT / file).exists():
                wrong.append((name, file))
        for test in re.findall(r"`(test_\w+)`", text):
            wrong += [(name, test)] if f"def {test}(" not in tests else []
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)", text):
            wrong += [(name, link)] if not (page.parent / link).exists() else []
        own = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.M)
        }
        wrong += [(name, link) for link in re.findall(r"\]\(#([^)]+)\)", text) if link not in own]
    assert wrong == []


@pytest.mark.parametrize("block", [block for block in blocks() if block.language == "python"], ids=lambda b: b.page)
def test_python_blocks_compile_and_import_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []
        elif isinstance(node, ast.Import):
            for one in node.names:
                importlib.import_module(one.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "distributed":
            assert hasattr(importlib.import_module("afm_ctr.distributed"), node.attr)


def test_readme_is_short_and_every_page_is_in_the_index() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages - set(re.findall(r"\]\(([\w/-]+\.md)\)", index)) == {"index.md"}


def kind_of(text: str) -> str:
    """What a block of YAML is taken for; an error if no command takes it."""
    content = parse_yaml(text, "a block")
    if "fields" in content:
        FeatureSchema.model_validate(content)
        return "schema"
    TrainConfig.parse(content, "a block")
    return "config"


def test_yaml_blocks_are_what_the_commands_take() -> None:
    """Those of docs/reference.md have a test of their own."""
    found = [kind_of(block.text) for block in blocks() if block.language == "yaml" and block.page != REFERENCE]
    assert found.count("schema") >= 1 and found.count("config") >= 2


@pytest.mark.parametrize(
    "text",
    ["epoch: 3", "fields: [{name: a, kind: number}]\nname: x", "model: {name: afm}\nmore: 1", "optimizer: {name: 3}"],
)
def test_yaml_that_no_command_takes_is_found(text: str) -> None:
    with pytest.raises((UserError, ValueError)):
        kind_of(text)


def shell_problem(text: str) -> str | None:
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    return checked.stderr if checked.returncode else None


def test_shell_blocks_are_shell() -> None:
    found = [(block.page, shell_problem(block.text)) for block in blocks() if block.language in ("sh", "bash")]
    assert len(found) >= 20
    assert [problem for problem in found if problem[1] is not None] == []
    assert shell_problem("afm-ctr train --data 'data") is not None  # or the line above shows nothing
