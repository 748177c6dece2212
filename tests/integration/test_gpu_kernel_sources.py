"""The GPU's kernels of attentional pooling without a GPU: run by threads of the CPU, and compiled by NVRTC."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import native
from afm_ctr.native import gpu, gpu_plan, nvrtc
from afm_ctr.native.gpu_plan import Layout

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
needs_nvrtc = pytest.mark.skipif(
    nvrtc.library() is None, reason="NVRTC is not installed: the extra gpu-dev brings it"
)

Build = Callable[[Layout], ctypes.CDLL]


@pytest.fixture(scope="module")
def check(root: Path) -> ModuleType:
    """scripts/gpu_check.py, whose problems and oracle are used here too."""
    spec = importlib.util.spec_from_file_location("gpu_check", root / "scripts" / "gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def compile_shim(root: Path, folder: Path, program: str, target: Path, *options: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.cu").write_text(program)
    place = f'-DPROGRAM="{folder / "program.cu"}"'
    shim = str(root / "tests" / "gpu_shim.cc")
    subprocess.run(["g++", "-std=c++20", "-w", "-pthread", place, *options, shim, "-o", str(target)], check=True)


@pytest.fixture(scope="module")
def build(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("shims")
    made: dict[Layout, ctypes.CDLL] = {}

    def get(layout: Layout) -> ctypes.CDLL:
        if layout not in made:
            own = folder / str(len(made))
            compile_shim(root, own, gpu_plan.source(layout), own.with_suffix(".so"), "-O1", "-fPIC", "-shared")
            made[layout] = ctypes.CDLL(str(own.with_suffix(".so")))
        return made[layout]

    return get


def run(problem: Any, layout: Layout, shim: ctypes.CDLL, grid: int) -> list[np.ndarray]:
    """The pooled vectors and the gradients by u, W, b and h, where memory that nobody wrote is NaN."""
    arrays = {name: getattr(problem, name) for name in ("u", "W", "b", "h", "rows")}
    arrays |= {"present": problem.present.astype(np.uint8), "plan": gpu_plan.plan_table(layout, problem.pairs)}
    arguments = problem.arguments({name: array.ctypes.data for name, array in arrays.items()})
    batch, per_chunk = len(problem.u), layout.chunk_rows(len(problem.u))
    chunks = -(-batch // per_chunk)
    pooled, lse, partial, *by = (
        np.full(shape, np.nan, np.float32)
        for shape in (
            problem.upstream.shape,
            batch,
            (chunks, layout.partial_size()),
            *(getattr(problem, name).shape for name in ("u", "W", "b", "h")),
        )
    )

    def at(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    forward, backward = layout.shared_bytes()
    shim.run_forward(at(arguments), grid, forward, at(pooled), at(lse))
    values = [at(x) for x in (pooled, lse, problem.upstream, by[0], partial)]
    shim.run_backward(at(arguments), grid, backward, *values, chunks, per_chunk)
    shim.run_collect(at(arguments), at(partial), chunks, *(at(x) for x in by[1:]))
    return [pooled, *by]


def chosen(slots: int, k: int, t: int, by_slot: bool = False) -> Layout:
    layout = gpu_plan.choose(slots, k, t, by_slot, 90)
    assert layout is not None
    return layout


ALL_ON = {"rate": 0.3, "scale_by_pairs": True}
CASES = [
    pytest.param(chosen(10, 16, 16), 19, ALL_ON, id="many rows at a time"),
    pytest.param(chosen(39, 16, 16, True), 5, ALL_ON, id="by slot"),
    pytest.param(chosen(39, 16, 16, True), 5, {"absent": 0.9}, id="by slot, mostly absent"),
    pytest.param(
        Layout(21, 7, 3, True, 64, 64, 1, 8), 5, {"listed": 0.4, "rate": 0.1}, id="groups, some pairs, by slot"
    ),
    pytest.param(Layout(21, 7, 3, False, 128, 64, 1, 8), 5, ALL_ON, id="groups"),
    pytest.param(Layout(21, 7, 3, False, 128, 64, 1, 8), 5, {"listed": 0.0}, id="groups, no pairs"),
    pytest.param(chosen(12, 64, 64), 3, ALL_ON, id="a slot takes two warps"),
    pytest.param(chosen(2, 1, 1), 40, ALL_ON, id="one pair"),
]


@needs_compiler
@pytest.mark.parametrize(("layout", "batch", "options"), CASES)
def test_the_kernels_equal_the_oracle_whatever_the_number_of_blocks(
    check: ModuleType, build: Build, layout: Layout, batch: int, options: dict[str, Any]
) -> None:
    options = options | {"by_slot": layout.BY_SLOT}
    problem = check.make_problem((layout.F, layout.KR, layout.TR, batch), **options)
    found = run(problem, layout, build(layout), grid=3)
    errors = check.errors(found, check.oracle(problem))
    assert all(error <= limit for error, limit in zip(errors, check.LIMITS, strict=True)), errors
    for have, again in zip(found, run(problem, layout, build(layout), grid=1), strict=True):
        np.testing.assert_array_equal(have, again)


@needs_compiler
def test_scores_far_apart_and_numbers_that_are_none(check: ModuleType, build: Build) -> None:
    layout = chosen(10, 16, 16)
    problem = check.make_problem((10, 16, 16, 5), absent=0.0)
    sharp = problem._replace(h=200 * problem.h)  # attention is all on one pair or two
    errors = check.errors(run(sharp, layout, build(layout), 2)[:1] * 5, check.oracle(sharp)[:1] * 5)
    assert errors[0] <= 1e-5
    problem.u[1, 2, 3] = np.nan
    pooled, by_u, *_ = run(problem, layout, build(layout), 2)
    assert np.isnan(pooled[1]).all() and np.isnan(by_u[1]).any()
    rest = [0, 2, 3, 4]
    assert np.isfinite(pooled[rest]).all() and np.isfinite(by_u[rest]).all()


@needs_compiler
def test_hidden_units_at_zero_pass_nothing_back(check: ModuleType, build: Build) -> None:
    layout = chosen(10, 16, 16)
    problem = check.make_problem((10, 16, 16, 7), absent=0.0)
    problem = problem._replace(b=np.zeros_like(problem.b))
    problem.u[:, 3] = 0.0  # present, with the value 0
    found, expected = run(problem, layout, build(layout), 2), check.oracle(problem)
    assert all(error <= 1e-5 for error in check.errors(found, expected))
    assert np.abs(found[1][:, 3]).max() > 0.01


@needs_nvrtc
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_class_of_shapes_compiles(arch: int) -> None:
    shapes = [(2, 1, 1, False), (39, 16, 16, False), (39, 16, 16, True), (39, 64, 64, False), (200, 64, 64, True)]
    for shape in shapes:
        layout = gpu_plan.choose(*shape, arch)
        assert layout is not None
        cubin = nvrtc.compile_program(gpu_plan.source(layout), arch)
        assert cubin[:4] == b"\x7fELF"
        assert all(name in cubin for name in (b"afm_forward", b"afm_backward", b"afm_collect"))


STEP_SHIM = """
#define __global__
struct Place3 { unsigned x; } blockIdx, blockDim, gridDim, threadIdx;
#include "program.cu"
extern "C" void run(unsigned blocks, unsigned threads, float* w, float* a, float* b, const long long* rows,
                    const float* g, const float* o, const bool* counts, long long count, long long width,
                    long long limit) {
  gridDim.x = blocks, blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
      afm_step(w, a, b, rows, g, o, counts, count, width, limit);
}
"""
OPTIONS = {
    "sgd": [0.1],
    "adagrad": [0.1, 1e-7],
    "adam": [0.02, 0.1, 0.001, 1e-4],
    "ftrl": [0.1, 1.0, 0.03, 0.01],
}


@needs_compiler
@pytest.mark.skipif(bool(native.op.load().reason), reason=f"the ops: {native.op.load().reason}")
@pytest.mark.parametrize("rule, slots", [("sgd", 0), ("adagrad", 1), ("adam", 2), ("ftrl", 2)])
def test_a_step_on_a_gpu_has_the_bits_of_one_on_a_cpu(rule: str, slots: int, tmp_path: Path) -> None:
    """Rows that the variable lacks are left out, rows not named stay, and so does all where nothing counts."""
    (tmp_path / "program.cu").write_text(gpu.step_source(rule))
    (tmp_path / "shim.cc").write_text(STEP_SHIM)
    library = tmp_path / "shim.so"
    strict = ["-O2", "-ffp-contract=off", "-fPIC", "-shared"]
    subprocess.run(["g++", "-std=c++17", "-w", *strict, str(tmp_path / "shim.cc"), "-o", str(library)], check=True)
    shim = ctypes.CDLL(str(library))
    rng = np.random.default_rng(len(rule))

    def at(array: np.ndarray | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if array is None else array.ctypes.data)

    def step(arrays: list[np.ndarray], rows: np.ndarray | None, gradient: np.ndarray, counts: bool = True) -> None:
        held = [*arrays, *[None] * (3 - len(arrays))]
        options, flag = np.array(OPTIONS[rule], np.float32), np.array(counts)
        count, width = (gradient.size, 1) if rows is None else gradient.shape
        limit = count if rows is None else len(arrays[0])
        sizes = [ctypes.c_longlong(size) for size in (count, width, limit)]
        shim.run(3, 32, *map(at, held), at(rows), at(gradient), at(options), at(flag), *sizes)

    for width in (1, 5, 16):
        first = [rng.normal(size=(40, width)).astype(np.float32) for _ in range(1 + slots)]
        first[1:] = [np.abs(array) for array in first[1:]]
        rows = rng.permutation(40)[:23].astype(np.int64)
        gradient = rng.normal(size=(23, width)).astype(np.float32)
        gradient[4] = 0
        ours = [array.copy() for array in first]
        step(ours, np.append(rows, [40, -1]), np.append(gradient, np.ones([2, width], np.float32), axis=0))
        variables = [tf.Variable(array) for array in first]
        native.step_rows(rule, variables, rows, gradient, OPTIONS[rule])
        for array, variable in zip(ours, variables, strict=True):
            np.testing.assert_array_equal(array, variable.numpy())
        assert not np.array_equal(ours[0][rows[0]], first[0][rows[0]])
        before = [array.copy() for array in ours]
        step(ours, rows, gradient, counts=False)
        for array, kept in zip(ours, before, strict=True):
            np.testing.assert_array_equal(array, kept)
        whole = rng.normal(size=(40, width)).astype(np.float32)
        step(ours, None, whole)
        native.step_rows(rule, variables, np.arange(40), whole, OPTIONS[rule])
        for array, variable in zip(ours, variables, strict=True):
            np.testing.assert_array_equal(array, variable.numpy())


@needs_nvrtc
@pytest.mark.parametrize("rule", sorted(OPTIONS))
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_steps_compile(rule: str, arch: int) -> None:
    cubin = nvrtc.compile_program(gpu.step_source(rule), arch, nvrtc.ROUNDED)
    assert cubin[:4] == b"\x7fELF" and b"afm_step" in cubin


@needs_nvrtc
def test_what_the_compiler_refuses_is_said_in_a_line() -> None:
    with pytest.raises(nvrtc.CompileError, match=r"^NVRTC refuses the program: pooling\.cu\(1\): error: .*$"):
        nvrtc.compile_program("this is no program;", 90)
    with pytest.raises(nvrtc.CompileError, match=r"knows no GPU like sm_35"):
        nvrtc.target(35)
    assert nvrtc.target(90) == 90


@pytest.mark.soak
@needs_compiler
@pytest.mark.parametrize(
    "layout", [Layout(21, 16, 16, True, 128, 64, 2, 24), Layout(21, 7, 3, False, 128, 64, 1, 8)], ids=str
)
def test_no_thread_reads_what_another_writes(root: Path, tmp_path: Path, layout: Layout) -> None:
    """ThreadSanitizer finds nothing; without one of the barriers it does."""
    pairs = np.array([(i, j) for i in range(layout.F) for j in range(i + 1, layout.F)], np.int32)
    gpu_plan.plan_table(layout, pairs).tofile(tmp_path / "plan")
    program = gpu_plan.source(layout)
    barriers = program.split("AFM_SYNC();")
    broken = "AFM_SYNC();".join(barriers[:4]) + "".join(barriers[4:5]) + "AFM_SYNC();".join(["", *barriers[5:]])
    warnings = []
    for name, text in (("right", program), ("broken", broken)):
        target = tmp_path / name
        compile_shim(root, tmp_path / f"{name}-source", text, target, "-O1", "-g", "-fsanitize=thread", "-DAFM_MAIN")
        sizes = [str(size) for size in layout.shared_bytes()]
        done = subprocess.run([target, tmp_path / "plan", "3", *sizes], capture_output=True, text=True, timeout=600)
        warnings.append(done.stderr.count("WARNING: ThreadSanitizer"))
    assert warnings[0] == 0 and warnings[1] > 0, warnings
