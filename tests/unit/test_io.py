"""Writing files whole or not at all, and paths that are never taken for patterns."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_ctr.errors import UserError
from afm_ctr.io import files, packed, paths
from afm_ctr.prediction import predict_logs
from serving.score import score_file


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": "é"})
    assert json.loads(path.read_bytes()) == {"a": "é"}
    with pytest.raises(ZeroDivisionError), files.replacing(path) as stream:
        stream.write(b"half")
        assert len(list(path.parent.iterdir())) == 2
        raise ZeroDivisionError
    assert json.loads(path.read_bytes()) == {"a": "é"} and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        files.write_text(tmp_path / "a", "x")
        with files.new_folder(tmp_path / "folder") as temporary, files.HashingWriter(temporary / "b") as writer:
            writer.write(b"x")
    assert mode(tmp_path / "a") == mode(tmp_path / "folder" / "b") == 0o666 & ~mask
    assert mode(tmp_path / "folder") == 0o777 & ~mask


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write to the folder could guess no name; and if one did, the file behind the link stays."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(files, "temporary_name", lambda name: ".tmp-guessed")
    (tmp_path / ".tmp-guessed").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_bytes(tmp_path / "a", b"theirs")
    (tmp_path / ".tmp-guessed").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        files.write_bytes(tmp_path / "a", b"theirs")
    assert victim.read_bytes() == b"mine" and not (tmp_path / "nowhere").exists()


def test_names_are_random_and_say_what_they_were_to_be() -> None:
    assert files.temporary_name("a") != files.temporary_name("a")
    assert files.target_name(files.temporary_name("a-b.json")) == "a-b.json"
    assert files.target_name("a.json") is None
    assert len(os.fsencode(files.temporary_name("é" * 127))) <= 255


def test_nobody_else_writes_to_a_temporary_file_and_renames_it() -> None:
    """One scheme of names and one way of syncing: nothing half-written, and no name that could be guessed."""
    ours = {"os.replace", "os.rename", "os.renames", "os.fsync", "shutil.move", "tempfile.mkstemp", "tempfile.mktemp",
            "tempfile.NamedTemporaryFile"}  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    for path in sorted(
        path for folder in ("afm_ctr", "beam_jobs", "serving") for path in (root / folder).rglob("*.py")
    ):
        if path.parent == root / "afm_ctr" / "io":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & ours, f"{path}: use afm_ctr.io.files"


def test_a_name_as_long_as_they_may_be(tmp_path: Path) -> None:
    files.write_text(tmp_path / ("é" * 127), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 127]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_bytes(pipe, b"rows")
        assert os.read(reader, 10) == b"rows" and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


def test_everything_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync, replace, rename = os.fsync, os.replace, os.rename

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda a, b: (synced.append(f"-> {Path(b).name}"), replace(a, b)))
    monkeypatch.setattr(os, "rename", lambda a, b: (synced.append(f"-> {Path(b).name}"), rename(a, b)))
    monkeypatch.setattr(files, "temporary_name", lambda name: f".tmp-{name}")
    files.write_bytes(tmp_path / "a", b"x")
    assert synced == [".tmp-a", "-> a", tmp_path.name]
    synced.clear()
    with files.new_folder(tmp_path / "f") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "b").write_bytes(b"x")
    assert set(synced[:3]) == {".tmp-f", "inner", "b"} and synced[3:] == ["-> f", tmp_path.name]


def test_a_folder_in_a_file_s_place_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), files.replacing(tmp_path):
        pytest.fail("the work had begun")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    log, other = tmp_path / "log.csv", tmp_path / "other"
    log.write_text("a")
    other.symlink_to(log)
    for output in (log, other, tmp_path / "." / "log.csv"):
        with pytest.raises(UserError, match="is a file that is read"):
            files.refuse_input(output, [tmp_path / "none", str(log)])
    files.refuse_input(tmp_path / "new", [log])
    files.refuse_input("/dev/null", ["/dev/null"])
    for score in (
        lambda: predict_logs(tmp_path / "run", [str(tmp_path / "*.csv")], other),
        lambda: score_file("localhost:1", "m", tmp_path / "schema.yaml", log, other),
    ):
        with pytest.raises(UserError, match="is a file that is read"):
            score()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_refusal_by_the_system_is_one_line_also_when_tensorflow_met_it(tmp_path: Path) -> None:
    import tensorflow as tf

    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    below = str(tmp_path / "file/x")
    save = {"tensor_names": ["a"], "shape_and_slices": [""], "tensors": [tf.zeros(3)]}
    ours = f": {tmp_path / 'file'} is a file"
    for write, path in (
        (lambda: Path(below).write_text(""), ours),
        (lambda: Path(below).parent.mkdir(exist_ok=True), ours),
        (lambda: os.makedirs(f"{below}/y"), ours),
        (
            lambda: (tmp_path / "link/x").mkdir(parents=True, exist_ok=True),
            f": {tmp_path / 'link'} is a link to nothing",
        ),
        (lambda: tf.io.write_file(below, b""), ""),
        (lambda: tf.raw_ops.SaveV2(prefix=below, **save), ""),
    ):
        with (
            pytest.raises(UserError, match=f"^cannot be written: Not a directory{re.escape(path)}$"),
            files.as_user_error("cannot be written"),
        ):
            write()
    with pytest.raises(tf.errors.OpError), files.as_user_error("cannot be written"):
        tf.raw_ops.SaveV2(prefix=[below, below], **save)  # a mistake of ours


def test_a_folder_is_replaced_before_the_old_one_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, there = tmp_path / "c", []
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: there.append((target / "a").read_text()))
    for text in ("old", "new"):
        with files.new_folder(target, overwrite=True) as temporary:
            (temporary / "a").write_text(text)
    assert there == ["new"]


def test_what_killed_processes_left_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-folder").mkdir()
    (tmp_path / ".tmp-1-folder" / "a").write_bytes(b"")
    (tmp_path / ".tmp-2-file").write_bytes(b"")
    (tmp_path / "kept.tmp-3").write_bytes(b"")
    (tmp_path / "link").mkdir()
    (tmp_path / ".tmp-4-link").symlink_to(tmp_path / "link")
    files.remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.tmp-3", "link"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("log[1].csv", ["log[1].csv"]),
        ("log[12].csv", ["log1.csv"]),
        ("log*.csv", ["log1.csv", "log[1].csv"]),
        ("out[1]/*.csv", ["out[1]/a.csv"]),
        ("out[12]/*.csv", ["out1/a.csv"]),
        ("out[1]/in?/*.csv", ["out[1]/in?/b.csv"]),
        ("out?/*.csv", ["out1/a.csv"]),
        ("**/b.csv", ["out1/inx/b.csv", "out[1]/in?/b.csv", "out[1]/inx/b.csv"]),
        ("nothing[1].csv", []),
    ],
)
def test_what_exists_under_the_literal_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, found: list[str]
) -> None:
    for name in ["log1.csv", "log[1].csv", "out1/a.csv", "out[1]/a.csv", "out[1]/in?/b.csv", "out[1]/inx/b.csv"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "out1" / "inx").mkdir()
    (tmp_path / "out1" / "inx" / "b.csv").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert paths.expand(pattern) == found
    assert paths.expand(str(tmp_path / pattern)) == [str(tmp_path / name) for name in found]


def test_join_and_local_path() -> None:
    assert paths.join("a/", "b", "c") == "a/b/c" and paths.join("/", "a") == "/a"
    assert paths.join("gs://bucket", "a") == "gs://bucket/a"
    assert paths.local_path("file:///a/b") == "/a/b" and paths.local_path("gs://a/b") == "gs://a/b"


ARRAYS = [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 4), np.uint64), np.array(1.5), np.array([True])]


def test_arrays_come_back_as_they_were() -> None:
    facts, arrays = packed.unpack(packed.pack({"a": [1, 0.1]}, ARRAYS))
    assert facts == {"a": [1, 0.1]}
    for found, array in zip(arrays, ARRAYS, strict=True):
        assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()


@given(st.dictionaries(st.binary(max_size=9), st.integers(0, 2**62), max_size=9))
def test_counts_come_back_as_they_were(counts: dict[bytes, int]) -> None:
    _, arrays = packed.unpack(packed.pack(None, packed.pack_pairs(list(counts), counts.values())))
    texts, numbers = packed.unpack_pairs(arrays)
    assert dict(zip(texts, numbers, strict=True)) == counts


def test_bytes_that_are_no_packed_arrays_are_refused() -> None:
    whole = packed.pack({"a": 1}, ARRAYS)
    objects = whole.replace(b'"<i8"', b'"|O8"')
    for content in (b"", b"x" * 40, whole[:-1], whole + b"x", objects, b"\x80\x04" + whole, b"\xff" * 8 + whole):
        with pytest.raises(ValueError, match="not packed arrays"):
            packed.unpack(content)
    with pytest.raises(ValueError, match="lengths do not fit"):
        packed.unpack_pairs([np.zeros(3, np.uint8), np.array([2, 2]), np.array([1, 1])])
