"""Compiled code that others may have written is not run: the library of ops, and what the build scripts cached."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from afm_ctr.io.ownership import DIGEST_SUFFIX, adopt, record_digest, why_not_ours
from afm_ctr.native import library, op, plain

ROOT = Path(__file__).resolve().parents[2]
STRANGER = 65_534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A file as a build leaves it."""
    tmp_path.chmod(0o755)
    file = tmp_path / "_afm.so"
    file.write_bytes(b"\x7fELF")
    file.chmod(0o775)
    record_digest(file)
    return file


def test_what_was_built_here_is_ours(built):
    assert why_not_ours(built) is None and not built.stat().st_mode & 0o022
    link = built.with_name("link.so")
    link.symlink_to(built)
    assert why_not_ours(link) is None


def foreign(place: Callable[[Path], Path], uid: int) -> Callable[[Path], None]:
    return lambda file: os.chown(place(file), uid, -1)


def mode(place: Callable[[Path], Path], bits: int) -> Callable[[Path], None]:
    return lambda file: place(file).chmod(bits)


def group(file: Path) -> None:
    os.chown(file, -1, STRANGER)
    file.chmod(0o775)


def itself(file: Path) -> Path:
    return file


def folder(file: Path) -> Path:
    return file.parent


def digest(file: Path) -> Path:
    return file.with_name(file.name + DIGEST_SUFFIX)


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        pytest.param(foreign(itself, STRANGER), "belongs to user 65534", marks=needs_root),
        pytest.param(foreign(folder, STRANGER), "belongs to user 65534", marks=needs_root),
        pytest.param(foreign(digest, STRANGER), "does not belong to this user", marks=needs_root),
        pytest.param(group, "can be written by other users", marks=needs_root),
        (mode(itself, 0o757), "can be written by other users"),
        (mode(folder, 0o777), "can be written by other users"),
        (lambda file: file.write_bytes(b"\x7fELF, and more"), "is not what was built"),
        (lambda file: digest(file).unlink(), "has no digest next to it"),
        (lambda file: digest(file).write_bytes(b"\xff" * 64), "is not what was built"),
    ],
)
def test_what_others_may_have_written_is_not(built, attack, why, monkeypatch):
    attack(built)
    assert why in (why_not_ours(built) or "")
    monkeypatch.setattr(op, "library_path", lambda: built)
    monkeypatch.setattr(plain, "plain_library", lambda _: built)
    for reason in (op.open_library().reason, plain.open_library()[1]):
        assert reason.startswith("not trusted: ") and why in reason


@needs_root
def test_who_wrote_the_python_code_may_have_built_the_library(built):
    os.chown(built, STRANGER, -1)
    assert why_not_ours(built, trusted=[STRANGER]) is None
    assert library.why_not_trusted(built) is not None


@needs_root
def test_a_file_without_a_digest_is_adopted_only_if_it_is_ours(built):
    digest(built).unlink()
    adopt(built)
    assert why_not_ours(built) is None
    digest(built).unlink()
    os.chown(built, STRANGER, -1)
    adopt(built)
    assert not digest(built).exists()


@pytest.mark.parametrize(
    ("script", "attacked"), [("build_native.py", 0), ("build_native.py", 1), ("build_horovod.py", 0)]
)
def test_build_scripts_do_not_take_a_cached_file_that_others_may_write(tmp_path, script, attacked):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); sys.argv = [{script!r}]\n"
        f"import {script[:-3]} as script, building\n"
        "from pathlib import Path\n"
        "def build(*_): print('BUILT'); raise RuntimeError('enough')\n"
        "script.build = build; script.find_spec = lambda name: True\n"
        "script.install = lambda place: print('INSTALLED'); script.check = script.python = lambda *_: 'ok'\n"
        "from afm_ctr.io.ownership import record_digest\n"
        "if script.__name__ == 'build_native':\n"
        "    place = building.cache() / 'native' / f'{script.library.key()}-{script.platform.machine()}.so'\n"
        "else:\n"
        "    import importlib.metadata as m\n"
        "    place = script.cache_folder(m.version('tensorflow'), 'cpu') / 'horovod.whl'\n"
        "places = [place, place.with_suffix('.plain.so')]\n"
        "place.parent.mkdir(parents=True); [(p.write_bytes(b'x'), record_digest(p)) for p in places]\n"
        f"script.main(); places[{attacked}].chmod(0o666); script.main()\n"
    )
    environment = os.environ | {"AFM_CTR_CACHE": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 0, result.stderr
    before, after = result.stdout.split("not from the cache: ")
    assert "INSTALLED" in before and "BUILT" not in before
    assert "can be written by other users" in after and "BUILT" in after and "INSTALLED" not in after
