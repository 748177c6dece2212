"""Whoever can write below --output cannot make prepare run code."""

from __future__ import annotations

import ast
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from afm_ctr.errors import RunError, UserError
from afm_ctr.records import Manifest
from afm_ctr.schema import FeatureSchema
from beam_jobs import PrepareOptions, files, prepare
from beam_jobs.runners import Engine

ROOT = Path(__file__).resolve().parents[2]
FIELDS: list[dict[str, Any]] = [
    {"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
    {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}},
]


class Attack:
    """Its pickle leaves a file behind when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def run(folder: Path, **options: Any) -> None:
    (folder / "log.csv").write_bytes(b"click,site,price\n" + b"1,a,2\n0,b,3\n" * 20)
    spec = {"name": "t", "label": {"column": "click"}, "format": {"kind": "delimited"}, "fields": FIELDS}
    inputs, output = [str(folder / "log.csv")], str(folder / "out")
    prepare(PrepareOptions(schema=FeatureSchema.model_validate(spec), inputs=inputs, output=output, **options))


def test_a_pickle_does_run_code(tmp_path: Path) -> None:
    """The attack is one: else the tests below would show nothing."""
    pickle.loads(pickle.dumps(Attack(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()


# A file of every kind that one process of a run writes and another reads.
HANDED_ON = [
    "work/count-units",
    "work/count-found",
    "work/analyse-units",
    "work/analyse-found",
    "work/counts/00000000",
    "work/vocabularies/00000000",
    "work/convert-units",
    "work/convert-found",
]


@pytest.mark.parametrize("planted", HANDED_ON)
def test_a_planted_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    attack, write, seen = pickle.dumps(Attack(tmp_path / "pwned")), files.write, list[str]()

    def hostile(path: str, content: bytes, **options: Any) -> None:
        if path.endswith(planted):
            seen.append(path)
            content = files.joined([attack]) if planted.endswith("-units") or "/counts/" in planted else attack
        write(path, content, **options)

    monkeypatch.setattr(files, "write", hostile)
    monkeypatch.setattr(Engine, "is_little", lambda engine, size: False)  # as of a log so large that workers count it
    with pytest.raises((RunError, UserError), match="is not what this run wrote") as raised:
        run(tmp_path)
    assert seen and planted in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "pwned").exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_no_module_of_the_job_reads_pickles() -> None:
    """Beam's own channel takes the task to the workers; nothing else does."""
    folders = ("beam_jobs", "afm_ctr/statistics", "afm_ctr/schema", "afm_ctr/records", "afm_ctr/rawlog", "afm_ctr/io")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle", "shelve", "marshal"} & {*names}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_an_attempt_is_its_owners_until_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    write, modes = files.write, set[int]()

    def watched(path: str, content: bytes, **options: Any) -> None:
        write(path, content, **options)
        if "/work/" in path:
            modes.add(stat.S_IMODE(next((tmp_path / "out").glob("attempt-*")).stat().st_mode))

    monkeypatch.setattr(files, "write", watched)
    before = os.umask(mask)
    try:
        run(tmp_path)
    finally:
        os.umask(before)
    assert modes == {0o700}
    out = tmp_path / "out"
    shards = [Path(manifest.path_of(out, shard)) for manifest in [Manifest.load(out)] for shard in manifest.shards]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (out, *out.glob("attempt-*"))} == {0o777 & ~mask}
    for path in (out / "manifest.json", out / "schema.yaml", out / "vocab" / "site.txt", *shards):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path
