"""What the fused pooling needs on a GPU, without one: the plan, the layouts, the choice, the op as it is traced."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from afm_ctr import native, optimizers
from afm_ctr.errors import UserError
from afm_ctr.interactions import training_attentional_pooling, uses_fused
from afm_ctr.native import gpu, gpu_plan, nvrtc
from afm_ctr.native.gpu_plan import Layout

needs_library = pytest.mark.skipif(bool(native.why_not()), reason=f"fused pooling: {native.why_not()}")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on a machine with an H100; the compiler's place is taken by one that keeps the programs."""
    compiled: list[str] = []

    def cubin(source: str, capability: int, options: tuple[str, ...] = ()) -> bytes:
        compiled.append(source)
        return b"\x7fELF"

    monkeypatch.delenv("AFM_CTR_POOLING", raising=False)
    for module in (native.op, native.table):
        monkeypatch.setattr(module, "uses_gpu", lambda: True)
    monkeypatch.setattr(gpu, "capability", lambda: 90)
    monkeypatch.setattr(nvrtc, "cubin", cubin)
    for cached in (gpu.kernels_for, gpu.step_program):
        cached.cache_clear()
    yield compiled
    for cached in (gpu.kernels_for, gpu.step_program):
        cached.cache_clear()


def all_pairs(slots: int) -> np.ndarray:
    return np.array(list(itertools.combinations(range(slots), 2)), np.int32).reshape(-1, 2)


@pytest.mark.parametrize(
    "layout", [(9, 64, 2, 12, 2, 4), (9, 64, 1, 4, 2, 4), (9, 64, 1, 4, 2, 2), (8, 64, 1, 8, 2, 2)]
)
@pytest.mark.parametrize("listed", [1.0, 0.4, 0.0])
def test_every_listed_pair_is_computed_once_for_each_group_that_has_one_of_its_slots(
    layout: tuple[int, ...], listed: float
) -> None:
    slots, N, R, G, PI, PJ = layout
    made = Layout(slots, 4, 4, False, N, N, R, G, PI, PJ)
    pairs = all_pairs(slots)
    pairs = pairs[np.random.default_rng(1).random(len(pairs)) < listed]
    plan = gpu_plan.plan_table(made, pairs)
    groups = made.groups
    end = plan[groups]
    partners, number = plan[end : end + slots], plan[end + slots :].reshape(slots, slots)
    expected = np.full((slots, slots), -1)
    for index, (i, j) in enumerate(pairs):
        expected[i, j] = expected[j, i] = index
    np.testing.assert_array_equal(number, expected)
    assert partners.tolist() == [sum(1 << j for j in range(slots) if expected[i, j] >= 0) for i in range(slots)]
    for group in range(groups):
        inside = range(group * G, min(slots, group * G + G))
        seen = []
        for tile in plan[plan[group] : plan[group + 1]]:
            i0, j0 = tile & 0xFF, tile >> 8 & 0xFF
            assert i0 in inside and i0 + PI <= group * G + G and j0 % PJ == 0
            seen += [number[i0 + q // PJ, j0 + q % PJ] for q in range(PI * PJ) if tile >> (16 + q) & 1]
        assert sorted(seen) == [index for index, pair in enumerate(pairs) if set(pair) & set(inside)]


@pytest.mark.parametrize("capability", [70, 75, 80, 86, 89, 90, 100, 120, 999])
def test_layouts_fit_the_gpu(capability: int) -> None:
    for slots, width, by_slot in itertools.product((1, 2, 10, 39, 100, 200), (1, 16, 33, 64), (False, True)):
        layout = gpu_plan.choose(slots, width, width, by_slot, capability)
        if capability in (80, 90, 100):  # the GPUs of a data centre take every shape
            assert layout is not None, (slots, width, by_slot)
        if layout is None:
            continue
        assert max(layout.shared_bytes()) <= gpu_plan.shared_limit(capability)
        assert layout.N % 32 == layout.NF % 32 == layout.N % layout.lanes == 0
        assert layout.G % layout.PJ == 0 and layout.PJ % layout.PI == 0
        assert layout.K % layout.TX == 0 and layout.T % layout.TY == 0 and layout.T % layout.YC == 0


def test_chunks_of_rows_do_not_depend_on_anything_but_the_batch() -> None:
    layout = Layout(39, 16, 16, False, 64, 64, 2, 40)
    assert layout.chunk_rows(0) == layout.chunk_rows(2 * gpu_plan.CHUNKS) == 2
    assert layout.chunk_rows(2 * gpu_plan.CHUNKS + 1) == 4


def test_wide_layers_and_many_slots_take_tensorflows_form(on_gpu: list[str]) -> None:
    assert gpu.why_not(39, 65, 16) == "k = 65, t = 16: the GPU's kernels take up to 64"
    assert gpu.why_not(201, 16, 16) == "201 slots: the GPU's kernels take up to 200"
    assert not uses_fused(tf.float32, 39, 16, 65)
    assert not on_gpu


def test_a_gpu_without_the_compiler_takes_tensorflows_form_and_says_why(
    on_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    monkeypatch.setattr(nvrtc, "cubin", lambda source, capability, options=(): nvrtc.target(capability))
    if native.op.load().module is not None:
        assert native.describe() == f"TensorFlow form: {nvrtc.MISSING}"
    assert not uses_fused(tf.float32, 39, 16, 16)


@needs_library
@pytest.mark.parametrize("by_slot", [False, True])
def test_the_op_is_traced_with_program_and_plan_and_its_gradient_has_them_too(
    on_gpu: list[str], by_slot: bool
) -> None:
    pairs = all_pairs(7)

    @tf.function(autograph=False)
    def step(u: tf.Tensor, W: tf.Tensor, b: tf.Tensor, h: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([u, W, b, h])
            pooled = training_attentional_pooling(u, tf.ones([5, 7], tf.bool), W, b, h, pairs, by_slot=by_slot)
        return [pooled, *tape.gradient(pooled, [u, W, b, h])]

    shapes = [[5, 7, 3], [3, 4], [4], [4]]
    traced = step.get_concrete_function(*(tf.TensorSpec(shape) for shape in shapes))
    assert [list(x.shape) for x in traced.outputs] == [[5, 7, 3] if by_slot else [5, 3], *shapes]
    layout = gpu_plan.choose(7, 3, 4, by_slot, 90)
    assert layout is not None and on_gpu == [gpu_plan.source(layout)]  # compiled once, though asked for twice
    ops = {op.type: op for op in traced.graph.get_operations() if op.type.startswith("AfmCtr")}
    assert sorted(ops) == ["AfmCtrPooling", "AfmCtrPoolingGrad"]
    for op in ops.values():
        assert op.get_attr("gpu_program") == b"\x7fELF" and op.get_attr("by_slot") == by_slot
        assert op.get_attr("gpu_plan") == gpu_plan.plan_table(layout, pairs).tobytes()
        assert op.get_attr("gpu_sizes")[:6] == [7, 3, 4, layout.NF, layout.N, layout.R]
        assert op.get_attr("gpu_sizes")[9:] == list(layout.shared_bytes())


@needs_library
def test_a_graph_made_for_a_gpu_runs_on_a_cpu_too(on_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    values = [tf.constant(rng.normal(size=shape), tf.float32) for shape in ([5, 7, 3], [3, 4], [4], [4])]
    present = tf.ones([5, 7], tf.bool)
    found = training_attentional_pooling(values[0], present, *values[1:], all_pairs(7))
    monkeypatch.setattr(native.op, "uses_gpu", lambda: False)
    expected = training_attentional_pooling(values[0], present, *values[1:], all_pairs(7))
    np.testing.assert_array_equal(found, expected)
    assert len(on_gpu) == 1


@needs_library
def test_tensorflow_knows_kernels_for_gpus() -> None:
    from tensorflow.python.framework import kernels

    for name in ("AfmCtrPooling", "AfmCtrPoolingGrad"):
        found = {kernel.device_type: kernel for kernel in kernels.get_registered_kernels_for_op(name).kernel}
        assert sorted(found) == ["CPU", "GPU"]
        assert list(found["GPU"].host_memory_arg) == ["pairs"]


class Compiler:
    """In NVRTC's place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.calls: list[tuple[Any, ...]] = []
        monkeypatch.setenv("AFM_CTR_CACHE", str(folder))
        monkeypatch.setattr(nvrtc, "target", lambda capability: capability)
        monkeypatch.setattr(nvrtc, "version", lambda: (12, 9))
        monkeypatch.setattr(nvrtc, "compile_program", self.compile)

    def compile(self, *what: Any) -> bytes:
        self.calls.append(what)
        return f"cubin {len(self.calls)}".encode()


def test_compiled_programs_are_kept_by_source_gpu_and_version(monkeypatch: Any, tmp_path: Path) -> None:
    compiler = Compiler(monkeypatch, tmp_path)
    first = nvrtc.cubin("a", 90)
    assert [nvrtc.cubin("a", 90), nvrtc.cubin("b", 90), nvrtc.cubin("a", 80)] == [first, b"cubin 2", b"cubin 3"]
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    assert nvrtc.cubin("a", 90) == b"cubin 4"
    assert [nvrtc.cubin("a", 90, ("--fmad=false",)) for _ in range(2)] == [b"cubin 5"] * 2
    assert compiler.calls[-1] == ("a", 90, ("--fmad=false",))
    assert len(compiler.calls) == len(list((tmp_path / "gpu").iterdir())) == 5


def test_a_damaged_or_read_only_cache_is_done_without(monkeypatch: Any, tmp_path: Path) -> None:
    compiler = Compiler(monkeypatch, tmp_path)
    nvrtc.cubin("a", 90)
    (file,) = (tmp_path / "gpu").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert nvrtc.cubin("a", 90) == b"cubin 2"
    assert file.read_bytes() == hashlib.sha256(b"cubin 2").digest() + b"cubin 2"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AFM_CTR_CACHE", str(tmp_path / "file"))
    assert nvrtc.cubin("a", 90) == b"cubin 3"
    assert len(compiler.calls) == 3 and os.listdir(tmp_path / "gpu") == [file.name]


def operations(step: Any, *arguments: Any) -> Counter[str]:
    return Counter(
        op.type for op in tf.function(step, autograph=False).get_concrete_function(*arguments).graph.get_operations()
    )


@needs_library
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "ftrl", "rowwise_adagrad"])
def test_on_a_gpu_a_step_of_a_variable_is_one_op(on_gpu: list[str], name: str) -> None:
    """But where a slot has one number a row, or weights are averaged, or they are no float32."""
    table, bias = keras.Variable(np.ones([9, 4], np.float32)), keras.Variable(np.float32(1))
    table.placement = "here"
    optimizer = optimizers.build(name, learning_rate=0.1)
    optimizer.build([table, bias])

    def step(values: tf.Tensor, by_bias: tf.Tensor) -> None:
        optimizer.apply([tf.IndexedSlices(values, [3, 5, 3], [9, 4]), by_bias], [table, bias])

    found = operations(step, tf.ones([3, 4]), tf.ones([]))
    alike = name != "rowwise_adagrad"  # whose biases step by Adagrad
    assert found["AfmCtrStepOnGpu"] == (2 if alike else 1)
    assert found["ResourceScatterUpdate"] == (0 if alike else 2)
    assert found["Pow"] == (2 if name == "adam" else 0)  # once, for both variables
    (program,) = on_gpu
    rule = name.removeprefix("rowwise_").capitalize()
    assert program.startswith(f"#define RULE {rule}\n") and f"struct {rule}" in program

    averaged = optimizers.build(name, learning_rate=0.1, average=0.9)
    averaged.build([bias])
    assert not operations(lambda g: averaged.apply([g], [bias]), tf.ones([]))["AfmCtrStepOnGpu"]
    double = keras.Variable(np.ones([2]), dtype="float64")
    other = optimizers.build(name, learning_rate=0.1)
    other.build([double])
    assert not operations(lambda g: other.apply([g], [double]), tf.ones([2], tf.float64))["AfmCtrStepOnGpu"]


@needs_library
def test_a_gpu_without_the_compiler_steps_by_tensorflow(on_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    variable = tf.Variable(tf.ones([3]))
    assert native.steps_on_gpu("adam", [variable])
    monkeypatch.setenv("AFM_CTR_TABLE", "tensorflow")
    assert not native.steps_on_gpu("adam", [variable])
    monkeypatch.setenv("AFM_CTR_TABLE", "native")

    def refuses(*what: Any) -> bytes:
        raise nvrtc.CompileError(nvrtc.MISSING)

    monkeypatch.setattr(nvrtc, "cubin", refuses)
    gpu.step_program.cache_clear()
    with pytest.raises(UserError, match="AFM_CTR_TABLE=native, but: NVRTC"):
        native.steps_on_gpu("adam", [variable])
    monkeypatch.delenv("AFM_CTR_TABLE")
    assert not native.steps_on_gpu("adam", [variable])


@needs_library
def test_the_step_is_registered_for_gpus_only_and_its_variables_are_handles_of_the_host() -> None:
    from tensorflow.python.framework import kernels

    native.op.load()
    found = {kernel.device_type: kernel for kernel in kernels.get_registered_kernels_for_op("AfmCtrStepOnGpu").kernel}
    assert list(found) == ["GPU"] and list(found["GPU"].host_memory_arg) == ["variables"]
