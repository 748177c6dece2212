"""The files by which strangers judge and join a project: they exist, and agree with the code."""

from __future__ import annotations

import os
import re
import subprocess
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


def test_all_tests_can_be_collected_at_once(root: Path) -> None:
    """``make soak`` does so, and pytest refuses two test files of one name."""
    names = sorted(path.name for path in (root / "tests").rglob("test_*.py"))
    assert len(names) > 100 and names == sorted(set(names))


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


def newest_python(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(root / "scripts" / "newest_python.sh"), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def supported_pythons(root: Path) -> list[str]:
    (found,) = re.findall(r"^PYTHONS = \[(.+)\]$", (root / "setup.py").read_text(), re.M)
    return [version.strip('"') for version in found.split(", ")]


def test_make_takes_the_newest_python_that_starts(root: Path, tmp_path: Path) -> None:
    def stand_in(place: str, code: str) -> str:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return str(path)

    folders = {"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv")}
    stand_in("bin/python3.13", "exit 127")  # a shim of pyenv whose version is not chosen
    old, new = (stand_in(f"bin/python{v}", f'case "$*" in *{v}*) echo $0; esac') for v in ("3.11", "3.12"))
    assert newest_python(root, **folders).stdout.strip() == new
    newest = stand_in("pyenv/versions/3.13.1/bin/python", 'case "$*" in *3.13*) echo $0; esac')
    assert newest_python(root, **folders).stdout.strip() == newest
    assert newest_python(root, old, **folders).returncode == 0  # the one that is named, though not the newest
    assert newest_python(root, sys.executable).stdout.strip() == sys.executable


def test_no_python_to_be_used_is_one_line(root: Path, tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)}
    for arguments in ((), ("python3.9",)):
        refused = newest_python(root, *arguments, **nothing)
        assert refused.returncode == 2 and refused.stdout == ""
        assert len(refused.stderr.splitlines()) == 1 and all(v in refused.stderr for v in supported_pythons(root))


def test_supported_pythons_are_the_same_everywhere(root: Path) -> None:
    versions = supported_pythons(root)
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in versions
    script = (root / "scripts" / "newest_python.sh").read_text()
    assert re.findall(r'^supported="(.+)"$', script, re.M) == [" ".join(reversed(versions))]
    stop = f"3.{int(versions[-1].split('.')[1]) + 1}"
    assert f'python_requires=">={versions[0]},<{stop}"' in (root / "setup.py").read_text()
    assert f"Python {', '.join(versions[:-1])} or {versions[-1]}" in (root / "README.md").read_text()


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
