"""Paths with the signs of patterns in them, on local disks and on file systems of Beam."""

from __future__ import annotations

import ast
import io
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata

from afm_ctr.errors import UserError
from afm_ctr.schema import FeatureSchema
from beam_jobs import PrepareOptions, files, prepare
from tests.object_files import ObjectFiles

ROOT = Path(__file__).resolve().parents[2]

# Which functions of beam_jobs/files.py may call what: those that delete or list take care of patterns.
CALLS = {
    "set_options": {"set_options"},
    "match": {"_match"},
    "get_filesystem": {"_listed", "_deletes_patterns", "_empty_object"},
    "exists": {"_match", "exists", "_creating", "remove", "_deletes_patterns"},
    "open": {"open_raw"},
    "create": {"_stream_to"},
    "rename": {"_creating"},
    "delete": {"_delete", "_deletes_patterns"},
}


@cache
def sources() -> list[tuple[str, ast.Module]]:
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for folder in ("afm_ctr", "beam_jobs", "serving")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_beams_file_systems_are_called_in_one_module_and_with_care() -> None:
    seen: dict[str, set[str]] = {}
    for name, tree in sources():
        text = ast.dump(tree)
        if name != "beam_jobs/files.py":
            # BigQuery's module is named so that it is not imported.
            assert not re.search(r"(id|name|attr)='FileSystems?'|'apache_beam\.io\b(?!\.gcp\.bigquery')", text), (
                f"{name}: use beam_jobs.files"
            )
            continue
        found = 0
        for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "FileSystems":
                    seen.setdefault(node.attr, set()).add(function.name)
                    found += 1
        assert text.count("id='FileSystems'") == found, "FileSystems is passed on: nobody sees what is called"
    assert seen == CALLS


def test_only_one_function_expands_patterns() -> None:
    """``glob`` of a module, or of ``tf.io.gfile``; a Path's own takes patterns of ours, which are constants."""
    for name, tree in sources():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            if called in ("glob.glob", "glob.iglob", "gfile.glob", "tf.io.gfile.glob", "tf.io.matching_files"):
                assert name == "afm_ctr/io/paths.py", f"{name}: {called}"
            elif node.func.attr in ("glob", "rglob", "list_files"):
                assert isinstance(node.args[0], ast.Constant), f"{name}: {ast.unparse(node)}"


class Store(ObjectFiles):
    """``store://``. Its delete takes paths for patterns, or does not, as they do."""

    content: dict[str, bytes] = {}  # noqa: RUF012 - one store
    globs = True

    @classmethod
    def scheme(cls) -> str:
        return "store"

    def create(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> BinaryIO:
        content = self.content

        class Upload(io.BytesIO):
            def close(self) -> None:
                if not self.closed:
                    content[path] = self.getvalue()
                super().close()

        return Upload()

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, len(self.content[path]))

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            self.content[target] = self.content.pop(source)

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            found = [item.path for item in self.match([path])[0].metadata_list] if self.globs else [path]
            if not found:
                raise BeamIOError(f"nothing to delete: {path}")
            for name in found:
                if name not in self.content:
                    raise BeamIOError(f"nothing to delete: {name}")
                del self.content[name]


@pytest.fixture(params=["local", "globbing store", "literal store"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder or prefix on each kind of file system."""
    Store.content = {}
    Store.globs = request.param == "globbing store"
    files._PATTERNS.clear()
    return str(tmp_path) if request.param == "local" else "store://bucket/x"


# Each name as a pattern matches the second one; the first two also match themselves.
NEIGHBOURS = [("out?", "out1"), ("out*", "out-old"), ("out[1]", "out1"), ("o[!x]t[1-3]", "out2"), ("out[", "out")]


@pytest.mark.parametrize(("name", "neighbour"), NEIGHBOURS)
def test_a_name_with_signs_of_patterns_is_a_name(base: str, name: str, neighbour: str) -> None:
    folder, other = f"{base}/{name}", f"{base}/{neighbour}"
    files.write(f"{other}/a/x.json", b"other")
    files.write(f"{other}/{name}", b"other")
    before = files.sizes(other)
    assert not files.exists(f"{folder}/a/x.json") and files.names(folder) == [] and files.sizes(folder) == {}
    files.remove(f"{folder}/a/x.json")
    files.remove(folder)
    assert files.sizes(other) == before
    files.write(f"{folder}/a/x.json", b"first")
    files.write(f"{folder}/a/x.json", b"second")
    files.write(f"{folder}/{neighbour}", b"mine")
    assert files.read(f"{folder}/a/x.json") == b"second" and files.exists(f"{folder}/a/x.json")
    assert files.sizes(folder) == {"a/x.json": 6, neighbour: 4} and files.folders(folder, "a") == ["a"]
    assert files.names(f"{folder}/a") == ["x.json"]
    assert files.match(f"{folder}/a/x.json") == [(f"{folder}/a/x.json", 6)]
    assert files.match(f"{folder}/a/*.json") == [(f"{folder}/a/x.json", 6)]
    with files.local_copies(f"{folder}/a/x.json") as (copy,):
        assert Path(copy).read_bytes() == b"second"
    files.remove(f"{folder}/a/x.json")
    assert files.sizes(folder) == {neighbour: 4} and files.sizes(other) == before
    files.remove(folder)
    assert files.sizes(folder) == {} and files.sizes(other) == before


def test_what_a_dead_process_left_is_found_under_the_literal_name(base: str) -> None:
    files.write(f"{base}/out1/.tmp-1-a.json", b"")
    files.write(f"{base}/out[1]/.tmp-2-b.json", b"")
    assert files.half_written(f"{base}/out[1]") == {f"{base}/out[1]/.tmp-2-b.json": "b.json"}
    assert files.names(f"{base}/out[1]") == []


@pytest.mark.parametrize("name", ["out[1]", "*"])
def test_prepare_leaves_the_neighbours_of_its_output_alone(base: str, tmp_path: Path, name: str) -> None:
    spec = {"name": "t", "label": {"column": "y"}, "format": {"kind": "delimited"}}
    field = {"name": "s", "kind": "categorical", "encoding": {"kind": "vocabulary"}}
    schema = FeatureSchema.model_validate(spec | {"fields": [field]})
    log = tmp_path / "log[1].csv"
    log.write_bytes(b"y,s\n1,a\n0,b\n")
    (tmp_path / "log1.csv").write_bytes(b"y,s\n1,other\n")

    def run(output: str) -> int:
        options = PrepareOptions(schema=schema, inputs=[str(log)], output=output, overwrite=True)
        return prepare(options).rows_out

    def sizes(folder: str) -> dict[str, int]:
        return files.sizes(f"{base}/{folder}")

    assert run(f"{base}/out1") == 2
    before = sizes("out1")
    assert run(f"{base}/{name}") == 2 and sizes("out1") == before
    first = sizes(name)
    assert run(f"{base}/{name}") == 2 and sizes("out1") == before  # this time it replaces one
    second = sizes(name)
    assert len(first) == len(second) == len(before) == 5
    assert {path for path in second if "attempt" not in path} == {path for path in before if "attempt" not in path}
    assert not any(".tmp-" in path or "work" in path for path in second)


@pytest.mark.parametrize(
    ("folder", "there", "fails"),
    [("s3://b/f", False, True), ("gs://b/f", False, True), ("hdfs://f", True, True), ("hdfs://f", False, False)],
)
def test_a_listing_that_fails_is_no_empty_folder(
    folder: str, there: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(start: str) -> Any:
        raise BeamIOError("List operation failed", {start: PermissionError(13, "Access denied")})

    monkeypatch.setattr(files, "_listed", listed)
    monkeypatch.setattr(files, "exists", lambda path: there)
    if not fails:
        assert files.names(folder) == [] and files.sizes(folder) == {}
        return
    for look in (files.names, files.sizes, files.remove, lambda path: files.folders(path, "attempt-")):
        with pytest.raises(UserError, match=rf"^{folder}: cannot be listed: Access denied$"):
            look(folder)


def test_a_folder_where_a_worker_of_a_dead_run_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, remove = tmp_path / "attempt-1", shutil.rmtree
    files.write(f"{folder}/work/a", b"early")

    def busy(path: Path) -> None:
        files.write(f"{folder}/work/b", b"late")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    files.remove(str(folder))
    assert files.sizes(str(tmp_path)) == {"attempt-1/work/b": 4}
