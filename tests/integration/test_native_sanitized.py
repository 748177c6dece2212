"""The ops in C++ under AddressSanitizer and checks of overflow: their own tests, with a build that ends there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afm_ctr import native

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,bounds,shift,signed-integer-overflow")
BUILD = """
import sys
from pathlib import Path
import build_native
from afm_ctr.native import library
build_native.build(library.library_path(), Path(sys.argv[1]), sys.argv[2:])
print("", library.library_path(), sep="\\n")
"""
# Python's own allocator would leave no room between its blocks for what marks their ends.
OVERRUN = "import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p; p = c.malloc(8); "
OVERRUN += "ctypes.memset(p, 0, SIZE)"
TESTS = (
    "native",
    "native_table",
    "deep_afm",
    "records_native",
    "records_order",
    "frames",
    "frames_beam",
    "json_spans",
    "records_writing",
    "rows_native",
    "texts",
)


@pytest.mark.soak
@pytest.mark.skipif(not native.prepares(), reason="the ops in C++ are not built")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_ops_touch_no_memory_but_theirs(tmp_path: Path) -> None:
    for folder in ("afm_ctr", "beam_jobs", "serving", "scripts", "tests", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("_afm-*", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(tmp_path / "scripts")])}
    run = [sys.executable, "-c", BUILD, str(tmp_path / "log"), *CHECKS]
    built = subprocess.run(run, env=os.environ | paths, capture_output=True, text=True, check=True, timeout=1200)
    library = Path(built.stdout.split()[-1])
    assert library.is_relative_to(tmp_path) and b"__asan_report_load" in library.read_bytes()

    def runtime(name: str) -> str:
        asked = ["g++", f"-print-file-name={name}.so"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    checked = os.environ | paths | {
        "LD_PRELOAD": " ".join(map(runtime, ["libasan", "libubsan", "libstdc++"])),
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }  # fmt: skip
    for size in (8, 9):
        overrun = [sys.executable, "-c", OVERRUN.replace("SIZE", str(size))]
        done = subprocess.run(overrun, env=checked, capture_output=True, text=True, check=False)
        assert ("heap-buffer-overflow" in done.stderr) == (size == 9), done.stderr
    tests = [f"tests/unit/test_{name}.py" for name in TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-s", *tests],
        **{"cwd": tmp_path, "env": checked, "capture_output": True, "text": True, "timeout": 3000},
    )
    assert done.returncode == 0 and " passed" in done.stdout, (done.stdout + done.stderr)[-5000:]
