"""The files by which strangers judge and join a project: they exist, and agree with the code."""

from __future__ import annotations

import re
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import yaml

import afm_ctr

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from site_links import rewrite

HASHES = "hashes-linux-x86_64-cp311.txt"


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", text, re.M)
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_hashes_are_of_the_pinned_versions(root: Path) -> None:
    text = (root / "requirements" / HASHES).read_text()
    constraints = pins((root / "requirements" / "constraints.txt").read_text())
    hashed = pins(text)
    assert {name: hashed.get(name) for name in constraints} == constraints
    assert set(hashed) - set(constraints) <= {"setuptools", "wheel"}
    assert len(re.findall(r"^    --hash=sha256:[0-9a-f]{64}$", text, re.M)) == len(hashed)


def test_hooks_are_the_linters_of_make_lint(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)
    (repository,) = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["entry"].replace(".venv/bin/", "").replace(" --force-exclude", "") for hook in repository["hooks"]}
    assert hooks == {line.strip().replace("$(BIN)/", "").removesuffix(" .") for line in lint.splitlines()}


def test_licence_and_changelog(root: Path) -> None:
    licence = (root / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert metadata("afm-ctr")["Version"] == afm_ctr.__version__
    versions = re.findall(r"^## \[(.+?)\]", (root / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == "Unreleased" and afm_ctr.__version__ in versions


def test_contributing_and_security_name_files_that_are_there(root: Path) -> None:
    for page in ("CONTRIBUTING.md", "SECURITY.md"):
        text = (root / page).read_text()
        named = re.findall(r"\]\(([^)#]+)\)|`((?:afm_ctr|beam_jobs|serving|scripts|tests|docs)/[\w/.]+)`", text)
        paths = [link or code for link, code in named]
        assert len(paths) > 3 and [path for path in paths if not (root / path).exists()] == []


def nav_pages(entries: list[Any]) -> list[str]:
    values = [next(iter(entry.values())) if isinstance(entry, dict) else entry for entry in entries]
    return [page for value in values for page in (nav_pages(value) if isinstance(value, list) else [value])]


def test_the_site_has_every_page_once_and_is_strict(root: Path) -> None:
    site = yaml.safe_load((root / "mkdocs.yml").read_text())
    pages = sorted(str(path.relative_to(root / "docs")) for path in (root / "docs").rglob("*.md"))
    assert sorted(nav_pages(site["nav"])) == pages
    assert site["strict"] is True and set(site["validation"]["links"].values()) == {"warn"}
    assert [hook for hook in site["hooks"] if not (root / hook).is_file()] == []


def test_links_out_of_docs_become_text_in_the_site() -> None:
    fenced, picture = "```\n[x](../../y)\n```\n", "![p](../../p.png)\n"
    page = f"See [setup](../../setup.py), [cells](../cells.md#a) and [here](#a).\n{fenced}{picture}"
    text = rewrite(page, "decisions/chunks.md")
    assert text == page.replace("[setup](../../setup.py)", "setup")
    linked = rewrite(page, "decisions/chunks.md", "https://example.org/afm-ctr/blob/main")
    assert linked == page.replace("../../setup.py", "https://example.org/afm-ctr/blob/main/setup.py")
