"""Check the GPU kernels of attentional pooling on a machine with an NVIDIA GPU, and time them against PyTorch.

    python3 scripts/gpu_check.py --out gpu.md                 # under four minutes
    python3 scripts/gpu_check.py --out gpu.md --variants      # and other layouts of the kernels, timed

It needs NumPy, PyTorch with CUDA, and NVRTC (included in PyTorch's wheels), but not TensorFlow, nor this package
installed. It compares with a float64 oracle in NumPy, runs everything twice and with other numbers of blocks, whose
results must have the same bits, and measures rows per second, forward and backward, and memory.
Exit code: 0 all exact, 1 a check failed, 2 no GPU or a required library is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from afm_ctr.native import gpu_plan, nvrtc  # noqa: E402
from afm_ctr.native.gpu_plan import Layout  # noqa: E402

NAMES = ("pooled", "u", "W", "b", "h")
# Relative to the largest value: forward, gradients. The same as in the tests of the op for CPUs.
LIMITS = (1e-5, 1e-4, 1e-4, 1e-4, 1e-4)
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("u", "W", "b", "h", "present", "rows", "plan")]
    + [(name, np.int32) for name in ("batch", "threshold", "scale_by_pairs")]
    + [("keep", np.float32), ("base", np.uint64)]
)
GOLDEN = 0x9E3779B97F4A7C15
START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


class Problem(NamedTuple):
    """Inputs of a pooling; ``u`` of absent slots is NaN, which must not be read."""

    u: np.ndarray
    present: np.ndarray
    W: np.ndarray
    b: np.ndarray
    h: np.ndarray
    rows: np.ndarray
    pairs: np.ndarray
    upstream: np.ndarray
    rate: float
    scale_by_pairs: bool
    by_slot: bool
    base: int = 0x9123456789ABCDEF

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        return self.u.shape[1], self.u.shape[2], self.W.shape[1], self.by_slot

    def arguments(self, pointers: dict[str, int]) -> np.ndarray:
        """The first parameter of every kernel."""
        found = np.zeros(1, ARGUMENTS)
        for name, pointer in pointers.items():
            found[name] = pointer
        found["batch"], found["threshold"] = len(self.u), round(self.rate * 2**24)
        found["scale_by_pairs"], found["keep"], found["base"] = self.scale_by_pairs, 1 / (1 - self.rate), self.base
        return found


def make_problem(
    shape: tuple[int, int, int, int],
    *,
    absent: float = 0.2,
    rate: float = 0.0,
    scale_by_pairs: bool = False,
    by_slot: bool = False,
    listed: float = 1.0,
    seed: int = 0,
) -> Problem:
    slots, k, t, batch = shape
    rng = np.random.default_rng(seed)
    present = rng.random((batch, slots)) >= absent
    if batch > 2 and absent:
        present[:2] = False  # a row without slots, one with a single slot
        present[1, 0] = True
    u = rng.normal(size=(batch, slots, k)).astype(np.float32)
    u[~present] = np.nan
    W = (rng.normal(size=(k, t)) / np.sqrt(k)).astype(np.float32)
    b, h = (rng.normal(size=t) * 0.3).astype(np.float32), (rng.normal(size=t) / np.sqrt(t)).astype(np.float32)
    pairs = np.array(list(itertools.combinations(range(slots), 2)), np.int32).reshape(-1, 2)
    pairs = pairs[rng.random(len(pairs)) < listed]
    upstream = rng.normal(size=(batch, slots, k) if by_slot else (batch, k)).astype(np.float32)
    rows = rng.integers(-(1 << 40), 1 << 40, batch)
    return Problem(u, present, W, b, h, rows, pairs, upstream, rate, scale_by_pairs, by_slot)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keep_factors(problem: Problem) -> np.ndarray:
    """Dropout factors, ``[B, P]``."""
    with np.errstate(over="ignore"):
        keys = mix(problem.rows.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(problem.base))
        numbers = np.arange(1, len(problem.pairs) + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        draw = (mix(keys[:, None] + numbers) >> np.uint64(40)).astype(np.int64)
    return (draw >= round(problem.rate * 2**24)) / (1 - problem.rate)


def oracle(problem: Problem) -> list[np.ndarray]:
    """The pooled vectors and the gradients by u, W, b and h, in float64, one row at a time."""
    u = np.where(problem.present[..., None], problem.u, 0).astype(np.float64)
    W, b, h, upstream = (x.astype(np.float64) for x in (problem.W, problem.b, problem.h, problem.upstream))
    keep = keep_factors(problem)
    pooled, by_u = np.zeros(upstream.shape), np.zeros_like(u)
    by_W, by_b, by_h = np.zeros_like(W), np.zeros_like(b), np.zeros_like(h)
    for row, present in enumerate(problem.present):
        i, j = problem.pairs.T
        here = present[i] & present[j]
        if not here.any():
            continue
        i, j = i[here], j[here]
        products = u[row, i] * u[row, j]
        hidden = np.maximum(products @ W + b, 0)
        scores = hidden @ h
        attention = np.exp(scores - scores.max())
        attention /= attention.sum()
        factor = keep[row, here] * (len(i) if problem.scale_by_pairs else 1)
        weights = (attention * factor)[:, None]
        if problem.by_slot:
            np.add.at(pooled[row], i, weights * products)
            np.add.at(pooled[row], j, weights * products)
            by_sum = upstream[row, i] + upstream[row, j]
        else:
            pooled[row] = (weights * products).sum(axis=0)
            by_sum = upstream[row]
        by_attention = (by_sum * products).sum(axis=1) * factor
        by_scores = attention * (by_attention - (attention * by_attention).sum())
        by_hidden = by_scores[:, None] * h * (hidden > 0)
        by_h += by_scores @ hidden
        by_b += by_hidden.sum(axis=0)
        by_W += products.T @ by_hidden
        by_products = by_hidden @ W.T + weights * by_sum
        np.add.at(by_u[row], i, by_products * u[row, j])
        np.add.at(by_u[row], j, by_products * u[row, i])
    return [pooled, by_u, by_W, by_b, by_h]


def errors(found: list[np.ndarray], expected: list[np.ndarray]) -> list[float]:
    """The largest error of each kind, relative to the largest value.

    Where terms of size one cancel (a softmax over one pair has no gradient) their rounding remains, about 1e-7 per
    row: so no value counts as less than 0.01, and no sum over rows as less than 0.01 times the root of their number.
    """
    worst = []
    for name, have, want in zip(NAMES, found, expected, strict=True):
        least = 1e-2 * (1 if name in ("pooled", "u") else np.sqrt(len(found[0])))
        error = np.abs(have - want).max(initial=0) / max(least, np.abs(want).max(initial=0))
        worst.append(float(error) if np.isfinite(have).all() else float("inf"))
    return worst


class Driver:
    """The required calls of the CUDA driver, in the context and on the stream of PyTorch."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name: str, *values: Any) -> None:
        if code := getattr(self.cuda, name)(*values):
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()}")


class Kernels:
    """A layout, compiled and loaded."""

    def __init__(self, layout: Layout, cubin: bytes, driver: Driver) -> None:
        self.layout, self.driver = layout, driver
        module = ctypes.c_void_p()
        driver("cuModuleLoadData", ctypes.byref(module), cubin)
        self.functions: dict[str, ctypes.c_void_p] = {}
        self.shared = dict(zip(("afm_forward", "afm_backward"), layout.shared_bytes(), strict=True))
        self.shared["afm_collect"] = 4 * gpu_plan.COLLECT
        self.threads = {"afm_forward": layout.NF, "afm_backward": layout.N, "afm_collect": gpu_plan.COLLECT}
        for name, shared in self.shared.items():
            self.functions[name] = function = ctypes.c_void_p()
            driver("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            driver("cuFuncSetAttribute", function, 8, shared)  # MAX_DYNAMIC_SHARED_SIZE_BYTES

    def attribute(self, name: str, which: int) -> int:
        value = ctypes.c_int()
        self.driver("cuFuncGetAttribute", ctypes.byref(value), which, self.functions[name])
        return value.value

    def resources(self) -> str:
        """Registers, spilled bytes and blocks on a multiprocessor, forward and backward."""
        found = []
        for name in ("afm_forward", "afm_backward"):
            blocks = ctypes.c_int()
            self.driver(
                "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                ctypes.byref(blocks),
                self.functions[name],
                self.threads[name],
                ctypes.c_size_t(self.shared[name]),
            )
            spilled = self.attribute(name, 3)
            found.append(f"{self.attribute(name, 4)} reg {spilled} B spilled {blocks.value} blocks")
        return "; ".join(found)

    def launch(self, name: str, grid: int, *values: Any) -> None:
        import torch

        held = [value if isinstance(value, np.ndarray) else pointer(value) for value in values]
        table = (ctypes.c_void_p * len(held))(*[value.ctypes.data for value in held])
        threads = self.threads[name]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = (grid, 1, 1, threads, 1, 1, self.shared[name])
        self.driver("cuLaunchKernel", self.functions[name], *sizes, stream, table, None)


def pointer(value: Any) -> np.ndarray:
    return np.array([value.data_ptr()], np.uint64)


class OnGpu:
    """A problem on the GPU, and the kernels for it."""

    def __init__(self, problem: Problem, kernels: Kernels) -> None:
        import torch

        self.problem, self.kernels, layout = problem, kernels, kernels.layout
        arrays = {name: getattr(problem, name) for name in ("u", "W", "b", "h", "rows")}
        arrays |= {"present": problem.present.astype(np.uint8), "plan": gpu_plan.plan_table(layout, problem.pairs)}
        self.tensors = {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}
        self.upstream = torch.from_numpy(problem.upstream).cuda()
        self.arguments = problem.arguments({name: tensor.data_ptr() for name, tensor in self.tensors.items()})
        batch = len(problem.u)
        self.per_chunk = layout.chunk_rows(batch)
        self.chunks = -(-batch // self.per_chunk)
        self.blocks = -(-batch // layout.R)
        self.empty = torch.empty

    def forward(self, grid: int | None = None) -> list[Any]:
        pooled = self.empty(self.problem.upstream.shape, device="cuda")
        lse = self.empty(len(self.problem.u), device="cuda")
        self.kernels.launch("afm_forward", grid or self.blocks, self.arguments, pooled, lse)
        return [pooled, lse]

    def backward(self, pooled: Any, lse: Any, grid: int | None = None) -> list[Any]:
        by = [self.empty(self.tensors[name].shape, device="cuda") for name in ("u", "W", "b", "h")]
        partial = self.empty((self.chunks, self.kernels.layout.partial_size()), device="cuda")
        counts = np.array([self.chunks], np.int32), np.array([self.per_chunk], np.int32)
        values = (self.arguments, pooled, lse, self.upstream, by[0], partial, *counts)
        self.kernels.launch("afm_backward", grid or self.chunks, *values)
        self.kernels.launch("afm_collect", len(self.problem.b), self.arguments, partial, counts[0], *by[1:])
        return by

    def all(self, grid: int | None = None) -> list[np.ndarray]:
        pooled, lse = self.forward(grid)
        return [x.cpu().numpy() for x in (pooled, *self.backward(pooled, lse, grid))]


class Library:
    """Layouts compiled in advance, many in parallel, and loaded when they are needed."""

    def __init__(self, capability: int) -> None:
        self.capability, self.driver = capability, Driver()
        self.cubins: dict[Layout, Any] = {}
        self.loaded: dict[Layout, Kernels] = {}
        self.seconds: dict[Layout, float] = {}
        self.pool = ThreadPoolExecutor(12)

    def compile(self, layout: Layout) -> bytes:
        start = time.monotonic()
        made = nvrtc.compile_program(gpu_plan.source(layout), nvrtc.target(self.capability))
        self.seconds[layout] = time.monotonic() - start
        return made

    def ahead(self, layouts: list[Layout]) -> None:
        for layout in layouts:
            if layout not in self.cubins:
                self.cubins[layout] = self.pool.submit(self.compile, layout)

    def choose(self, *shape: Any) -> Layout:
        layout = gpu_plan.choose(*shape, self.capability)
        if layout is None:
            raise RuntimeError(f"no layout for {shape}")
        return layout

    def kernels(self, layout: Layout) -> Kernels:
        if layout not in self.loaded:
            self.ahead([layout])
            self.loaded[layout] = Kernels(layout, self.cubins[layout].result(), self.driver)
        return self.loaded[layout]


def exact_problems() -> Iterator[tuple[tuple[int, int, int, int], dict[str, Any]]]:
    """Shapes and options; every option occurs with small and with large shapes."""
    all_on = {"rate": 0.3, "scale_by_pairs": True}
    small = [(2, 1, 1, 300), (3, 5, 2, 100), (7, 10, 5, 65), (10, 16, 16, 500), (39, 16, 16, 133), (39, 32, 32, 50)]
    wide = [(24, 64, 64, 20), (39, 10, 64, 20), (100, 16, 16, 9), (100, 33, 7, 5), (200, 16, 16, 4), (200, 64, 64, 3)]
    for shape in small:
        for by_slot in (False, True):
            yield shape, {"by_slot": by_slot}
            yield shape, {"by_slot": by_slot, **all_on}
    for shape in wide:
        yield shape, {"by_slot": False, **all_on, "absent": 0.1}
        yield shape, {"by_slot": True, "absent": 0.0}
    yield (20, 8, 8, 50), {"listed": 0.4, **all_on}
    yield (20, 8, 8, 50), {"listed": 0.4, "by_slot": True, **all_on}
    yield (20, 8, 8, 50), {"listed": 0.0}
    yield (1, 8, 8, 5), {}
    yield (12, 16, 16, 50), {"absent": 0.95}
    yield (39, 16, 16, 1), {}
    yield (39, 16, 16, 5000), {"rate": 0.1}


def check_exact(library: Library, lines: list[str], few: bool) -> bool:
    cases = list(exact_problems())
    if few:
        cases = [(shape, options) for shape, options in cases if shape[3] <= 20 and shape[0] < 100]
    library.ahead([library.choose(*shape[:3], options.get("by_slot", False)) for shape, options in cases])
    lines += [
        "",
        "| F, k, t, rows | options | largest error: pooled, by u, W, b, h | twice, other grids |",
        "|---|---|---|---|",
    ]
    fine = True
    for shape, options in cases:
        named = ", ".join(f"{name} {value}" for name, value in options.items() if value) or "none"
        try:
            problem = make_problem(shape, **options)
            on_gpu = OnGpu(problem, library.kernels(library.choose(*problem.shape)))
            found = on_gpu.all()
            alike = all(
                np.array_equal(x, y) for grid in (None, 1, 7) for x, y in zip(found, on_gpu.all(grid), strict=True)
            )
            worst = errors(found, oracle(problem))
            good = alike and all(error <= limit for error, limit in zip(worst, LIMITS, strict=True))
            text = " ".join(f"{error:.0e}" for error in worst)
            row = f"| {shape} | {named} | {text} | {'same bits' if alike else '**DIFFERENT**'} |"
        except Exception as error:
            good, row = False, f"| {shape} | {named} | **failed: {str(error).splitlines()[0]}** | |"
            traceback.print_exc()
        fine &= good
        lines.append(row)
        say(("ok   " if good else "FAIL ") + row)
    return fine


def check_large(library: Library, lines: list[str]) -> bool:
    """A batch as in training, against PyTorch in float64 on the GPU."""
    import torch

    problem = make_problem((39, 16, 16, 8192), absent=0.1)
    reference = [torch.from_numpy(np.nan_to_num(x)).double().cuda() for x in (problem.u, *problem[2:5])]
    u, W, b, _ = reference
    i, j = (torch.from_numpy(x.astype(np.int64)).cuda() for x in problem.pairs.T)
    # A hidden unit within float32's rounding of 0 may be on its other side, with another gradient: among 97 million
    # there are some, and their rows are left out.
    close = torch.cat(
        [((u[r : r + 512, i] * u[r : r + 512, j]) @ W + b).abs().amin((1, 2)) for r in range(0, 8192, 512)]
    )
    problem.present[(close < 1e-6).cpu().numpy()] = False
    on_gpu = OnGpu(problem, library.kernels(library.choose(*problem.shape)))
    found = on_gpu.all()
    inputs = [x.requires_grad_() for x in reference]
    pooled = plain(inputs[0], torch.from_numpy(problem.present).cuda(), *inputs[1:], i, j)
    pooled.backward(torch.from_numpy(problem.upstream).double().cuda())
    expected = [x.cpu().numpy() for x in (pooled.detach(), *(x.grad for x in inputs))]
    worst = errors(found, expected)
    good = all(error <= limit for error, limit in zip(worst, LIMITS, strict=True))
    rows = int(problem.present.any(axis=1).sum())
    row = f"{rows} rows of F = 39, k = t = 16 against PyTorch in float64: " + " ".join(
        f"{error:.0e}" for error in worst
    )
    lines += ["", row]
    say(("ok   " if good else "FAIL ") + row)
    return good


def plain(u: Any, present: Any, W: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    """The usual implementation in PyTorch."""
    import torch

    products = u.index_select(1, i) * u.index_select(1, j)
    mask = present[:, i] & present[:, j]
    scores = torch.relu(products @ W + b) @ h
    attention = torch.softmax(scores.masked_fill(~mask, -1e30), dim=1) * mask
    return (attention.unsqueeze(1) @ products).squeeze(1)


def milliseconds(work: Callable[[], Any], repeats: int = 20) -> float:
    """Median of several runs by the GPU's clock, after two warm-up runs."""
    import torch

    times = []
    for repeat in range(repeats + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        if repeat >= 2:
            times.append(begin.elapsed_time(end))
    return float(np.median(times))


SPEED = [(F, width, batch) for F in (39, 10, 100) for width in (16, 32) for batch in (4096, 16384)]


def speed_problem(F: int, width: int, batch: int, by_slot: bool = False) -> Problem:
    """All slots present, no dropout, arbitrary numbers."""
    small = make_problem((F, width, width, 64), absent=0.0, by_slot=by_slot)
    many = batch // 64
    repeated = {name: np.concatenate([getattr(small, name)] * many) for name in ("u", "present", "rows", "upstream")}
    return small._replace(**repeated)


def time_kernels(problem: Problem, kernels: Kernels) -> dict[str, float]:
    import torch

    on_gpu = OnGpu(problem, kernels)
    state = on_gpu.forward()
    forward, backward = milliseconds(on_gpu.forward), milliseconds(lambda: on_gpu.backward(*state))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    on_gpu.backward(*on_gpu.forward())
    peak = torch.cuda.max_memory_allocated() - before
    return {"forward": forward, "backward": backward, "MB": peak / 2**20}


def time_torch(problem: Problem, compiled: bool) -> dict[str, float]:
    import torch

    function = torch.compile(plain) if compiled else plain
    inputs = [torch.from_numpy(x).cuda().requires_grad_() for x in (problem.u, *problem[2:5])]
    present, upstream = torch.from_numpy(problem.present).cuda(), torch.from_numpy(problem.upstream).cuda()
    i, j = (torch.from_numpy(x.astype(np.int64)).cuda() for x in problem.pairs.T)

    def step() -> None:
        for x in inputs:
            x.grad = None
        function(inputs[0], present, *inputs[1:], i, j).backward(upstream)

    step()
    both = milliseconds(step, 8)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return {"both": both, "MB": (torch.cuda.max_memory_allocated() - before) / 2**20}


def compiled_alone(until: float) -> None:
    """For a separate process: torch.compile of every shape, one line of JSON each, large batches first."""
    import torch

    for F, width, batch in sorted(SPEED, key=lambda shape: -shape[2]):
        if time.monotonic() - START > until:
            return
        torch._dynamo.reset()
        try:
            found: dict[str, Any] = dict(time_torch(speed_problem(F, width, batch), compiled=True))
        except Exception as error:
            found = {"failed": type(error).__name__}
        torch.cuda.empty_cache()
        print(json.dumps({"shape": [F, width, batch], **found}), flush=True)


def run_compiled(seconds: float) -> dict[tuple[int, ...], dict[str, Any]]:
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    if seconds < 20:
        say(f"torch.compile: left out, {seconds:.0f} s are left")
        return found
    command = [sys.executable, __file__, "--compiled-alone", str(seconds - 15)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        text = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0]
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            found[tuple(entry.pop("shape"))] = entry
            say(f"torch.compile {line}")
    return found


def measure(library: Library, lines: list[str], until: float) -> None:
    import torch

    library.ahead([library.choose(F, width, width, by_slot) for F, width, _ in SPEED for by_slot in (False, True)])
    ours: dict[tuple[int, ...], dict[str, float]] = {}
    slots: dict[tuple[int, ...], dict[str, float]] = {}
    eager: dict[tuple[int, ...], dict[str, Any]] = {}
    for shape in SPEED:
        F, width, batch = shape
        ours[shape] = time_kernels(speed_problem(*shape), library.kernels(library.choose(F, width, width, False)))
        slots[shape] = time_kernels(
            speed_problem(*shape, True), library.kernels(library.choose(F, width, width, True))
        )
        try:
            eager[shape] = dict(time_torch(speed_problem(*shape), compiled=False))
        except Exception as error:
            eager[shape] = {"failed": type(error).__name__}
        torch.cuda.empty_cache()
        say(f"{shape}: {ours[shape]} by slot {slots[shape]} eager {eager[shape]}")
    compiled = run_compiled(until - (time.monotonic() - START))
    lines += [
        "",
        "Million rows a second, forward and backward together; memory is what the step takes next to its inputs:",
        "",
        "| F | k = t | batch | kernels: ms forward, backward | kernels | by slot | eager | torch.compile "
        "| MB: kernels, eager, compiled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def rate(found: dict[str, Any] | None, batch: int) -> str:
        if found is None:
            return "not run"
        if "failed" in found:
            return str(found["failed"])
        return f"{batch / 1e3 / (found['both'] if 'both' in found else found['forward'] + found['backward']):.2f}"

    for shape in SPEED:
        F, width, batch = shape
        mine, others = ours[shape], (eager.get(shape), compiled.get(shape))
        memory = ", ".join(f"{x['MB']:.0f}" if x and "MB" in x else "-" for x in (mine, *others))
        lines.append(
            f"| {F} | {width} | {batch} | {mine['forward']:.3f}, {mine['backward']:.3f} | **{rate(mine, batch)}** | "
            f"{rate(slots[shape], batch)} | {rate(others[0], batch)} | {rate(others[1], batch)} | {memory} |"
        )


def variants(layout: Layout) -> list[Layout]:
    """Other layouts of the same shape, each with one change."""
    F = layout.F
    found = [layout]
    threads, rows = (64, 128, 256), (1, 2, 3, 4, 6, 8)
    several = [{"NF": NF, "N": N, "R": R} for NF, N in zip(threads, threads, strict=True) for R in rows]
    for changes in (
        *several,
        {"YC": 8},
        {"PJ": 4, "YC": 8},
        {"TX": 4},
        {"TY": 4},
        *({"G": G, "R": 1, "NF": N, "N": N} for G in (32, 48) for N in (64, 128)),
    ):
        changed = layout._replace(**changes)
        if changed.G >= F:
            changed = changed._replace(G=-(-F // changed.PJ) * changed.PJ)
        lanes_fit = changed.lanes <= changed.N and changed.YC <= changed.T
        fits = max(changed.shared_bytes()) <= gpu_plan.shared_limit(90) and (changed.R == 1 or changed.G >= F)
        if lanes_fit and fits and changed not in found:
            found.append(changed)
    return found


def measure_variants(library: Library, lines: list[str], until: float) -> None:
    shapes = [(39, 16), (10, 16), (100, 16), (39, 32)]
    tried = {shape: variants(library.choose(shape[0], shape[1], shape[1], False)) for shape in shapes}
    library.ahead([layout for layouts in tried.values() for layout in layouts])
    lines += [
        "",
        "| F | k = t | changed | ms forward, backward at 16,384 rows | resources |",
        "|---|---|---|---|---|",
    ]
    for (F, width), layouts in tried.items():
        problem = speed_problem(F, width, 16384)
        for layout in layouts:
            if time.monotonic() - START > until:
                say("variants: no time left")
                return
            differs = {n: v for n, v in layout._asdict().items() if v != getattr(layouts[0], n)}
            named = ", ".join(f"{n}={v}" for n, v in differs.items()) or str(tuple(layout[4:]))
            try:
                kernels = library.kernels(layout)
                found = time_kernels(problem, kernels)
                times = f"{found['forward']:.3f}, {found['backward']:.3f}"
                row = f"| {F} | {width} | {named} | {times} | {kernels.resources()} |"
            except Exception as error:
                row = f"| {F} | {width} | {named} | failed: {str(error).splitlines()[0]} | |"
            lines.append(row)
            say(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a Markdown file for the tables")
    parser.add_argument("--seconds", type=float, default=230, help="the time that all may take")
    parser.add_argument("--variants", action="store_true", help="time other layouts of the kernels too")
    parser.add_argument("--few", action="store_true", help="a few exact cases and no times, for compute-sanitizer")
    parser.add_argument("--once", action="store_true", help="launch each kernel once, for a profiler")
    parser.add_argument("--compiled-alone", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError as error:
        print(f"gpu_check: {error}: it needs PyTorch with CUDA", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("gpu_check: PyTorch finds no GPU here", file=sys.stderr)
        return 2
    if arguments.compiled_alone is not None:
        compiled_alone(arguments.compiled_alone)
        return 0
    if nvrtc.library() is None:
        print("gpu_check: NVRTC is not here: pip install nvidia-cuda-nvrtc", file=sys.stderr)
        return 2
    torch.zeros(1, device="cuda")  # creates the context that the kernels are loaded into
    major, minor = torch.cuda.get_device_capability()
    library = Library(10 * major + minor)
    if arguments.once:
        problem = speed_problem(39, 16, 16384)
        OnGpu(problem, library.kernels(library.choose(*problem.shape))).all()
        return 0
    header = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, PyTorch {torch.__version__}"
    lines = [f"{header}, NVRTC {'.'.join(map(str, nvrtc.version() or ()))}", ""]
    say(lines[0])
    fine = True

    def part(name: str, work: Callable[[], Any]) -> None:
        nonlocal fine
        say(f"--- {name}")
        try:
            fine &= work() is not False
        except Exception as error:
            fine = False
            traceback.print_exc()
            lines.append(f"\n{name}: **failed**: {str(error).splitlines()[0]}")
        if arguments.out:
            arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def compile_times() -> None:
        for shape in ((10, 16, 16, False), (39, 16, 16, False), (39, 32, 32, True), (39, 64, 64, False)):
            layout = library.choose(*shape)
            library.cubins[layout] = library.pool.submit(library.compile, layout)
            cubin = library.cubins[layout].result()
            seconds = library.seconds[layout]
            resources = library.kernels(layout).resources()
            lines.append(
                f"- F = {shape[0]}, k = t = {shape[1]}: compiled in {seconds:.1f} s, {len(cubin)} B, {resources}"
            )
            say(lines[-1])

    if not arguments.few:
        part("compile times, one at a time", compile_times)
    part("exact", lambda: check_exact(library, lines, arguments.few))
    if not arguments.few:
        part("a batch as in training", lambda: check_large(library, lines))
        if arguments.variants:
            part("variants", lambda: measure_variants(library, lines, arguments.seconds - 110))
        part("speed", lambda: measure(library, lines, arguments.seconds))
    lines += ["", "All exact." if fine else "**Something failed.**"]
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(lines[-1])
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
