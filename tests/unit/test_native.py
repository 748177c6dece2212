"""The fused pooling against the oracle and against the TensorFlow form, on every instruction set of this machine."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_ctr import doctor, native
from afm_ctr.errors import UserError
from afm_ctr.interactions import (
    Dropout,
    attentional_pooling,
    fused_attentional_pooling,
    stateless_keep,
    training_attentional_pooling,
    uses_fused,
)
from afm_ctr.native import nvrtc, op
from afm_ctr.native.op import load

needs_library = pytest.mark.skipif(bool(native.why_not()), reason=f"fused pooling: {native.why_not()}")
SETS = native.instruction_sets()
NAMES = ["u", "W", "b", "h"]


class Case:
    """Inputs of a pooling, rounded to float32; about a fifth of the slots are absent and a tenth hold zeros."""

    def __init__(
        self, rows: int, slots: int, k: int, t: int, seed: int, absent: float = 0.2, by_slot: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        self.present = rng.random((rows, slots)) >= absent
        u = rng.normal(size=(rows, slots, k)) * (rng.random((rows, slots, 1)) >= 0.1)
        u *= self.present[..., None]
        scale = 1 / np.sqrt(k)  # scores of wide products would otherwise pick one pair alone
        arrays = [u, scale * rng.normal(size=(k, t)), rng.normal(size=t), rng.normal(size=t) / np.sqrt(t)]
        self.inputs = [x.astype(np.float32) for x in arrays]
        self.upstream = rng.normal(size=(rows, slots, k) if by_slot else (rows, k)).astype(np.float32)
        self.pairs = oracle.all_pairs(slots)

    def largest_term(self) -> float:
        """About the largest summand of a gradient; where a row has one pair alone, two of that size cancel."""
        u, upstream = self.inputs[0], self.upstream if self.upstream.ndim == 3 else self.upstream[:, np.newaxis]
        size = np.abs(u).max(initial=1.0) ** 2
        return float(size * size * np.abs(upstream).sum(axis=-1).max(initial=0.0))


def test_threads_that_need_the_library_at_once_load_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def path() -> Path:
        asked.append(1)
        time.sleep(0.05)
        return tmp_path / "none"

    monkeypatch.setattr(op, "library_path", path)
    monkeypatch.setattr(op, "_opened", cache(op.open_library))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: op.load(), range(4)))
    assert len(asked) == 1 and found == [found[0]] * 4 and found[0].module is None


def answers(pooling: Any, case: Case, dtype: Any, graph: bool = False, **options: Any) -> list[np.ndarray]:
    """The pooled vectors, and the gradients of their product with the upstream by u, W, b and h.

    In a graph a kernel is made anew, so that it sees which instructions it may use; tracing one takes a second.
    """
    inputs = [tf.constant(x, dtype) for x in case.inputs]

    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            pooled = pooling(inputs[0], tf.constant(case.present), *inputs[1:], case.pairs, **options)
            pooled = pooled[0] if isinstance(pooled, tuple) else pooled
            total = tf.reduce_sum(pooled * tf.constant(case.upstream, dtype))
        return [pooled, *tape.gradient(total, inputs, unconnected_gradients="zero")]

    return [answer.numpy() for answer in (tf.function(run, autograph=False) if graph else run)()]


def fused(case: Case, **options: Any) -> list[np.ndarray]:
    return answers(fused_attentional_pooling, case, tf.float32, graph=True, **options)


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], term: float = 0.0) -> None:
    """Forward within 1e-5, gradients within 1e-4 of the largest of their kind.

    Where terms of size one cancel (a softmax over one pair passes nothing back) their rounding is left, about 1e-7;
    of larger terms more, so that 1e-7 of ``term`` is allowed for gradients.
    """
    for name, have, want in zip(["pooled", *NAMES], found, expected, strict=True):
        limit = 1e-5 if name == "pooled" else 1e-4
        atol = max(limit * max(1e-2, np.abs(want).max()), 0.0 if name == "pooled" else 1e-7 * term)
        np.testing.assert_allclose(have, want, rtol=limit, atol=atol, err_msg=name)


def oracle_answers(case: Case, scale: bool, keep: np.ndarray | None = None) -> list[np.ndarray]:
    """The same from the oracle: a feature for each slot of each row, p = a row's upstream, one row at a time."""
    u, W, b, h = (x.astype(np.float64) for x in case.inputs)
    rows, slots, k = u.shape
    pooled, by_u = np.zeros((rows, k)), np.zeros_like(u)
    sums = [np.zeros_like(x) for x in (W, b, h)]
    for row in range(rows):
        parameters = {
            "w0": np.zeros(()),
            "w": np.zeros(slots + 1),
            "v": np.vstack([np.zeros(k), u[row]]),
            "W": W,
            "b": b,
            "h": h,
            "p": case.upstream[row].astype(np.float64),
        }
        ids = np.where(case.present[row], np.arange(1, slots + 1), 0)
        row_keep = None if keep is None else keep[row : row + 1]
        _, _, by = oracle.afm(parameters, ids[None], np.ones((1, slots)), case.pairs, np.ones(1), scale, row_keep)
        pooled[row], by_u[row] = by["p"], by["v"][1:]
        sums = [total + by[name] for total, name in zip(sums, "Wbh", strict=True)]
    return [pooled, by_u, *sums]


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AFM_CTR_INSTRUCTIONS", request.param)
    return request.param


@needs_library
@pytest.mark.parametrize("shape", [(4, 1, 3, 2), (3, 2, 1, 1), (5, 7, 3, 5), (4, 12, 17, 9), (2, 9, 33, 40)], ids=str)
@pytest.mark.parametrize("scale", [False, True])
def test_forward_and_gradients_equal_the_oracle(instructions: str, shape: tuple[int, ...], scale: bool) -> None:
    case = Case(*shape, seed=1)
    assert_close(fused(case, scale_by_pairs=scale), oracle_answers(case, scale))


@needs_library
def test_dropout_equals_the_oracle_with_the_masks_of_the_tensorflow_form(instructions: str) -> None:
    case = Case(6, 8, 5, 3, seed=2)
    rows = tf.constant([3, 1, 4, 2**62 + 5, -9, 2], tf.int64)
    keep = stateless_keep(rows, len(case.pairs), 0.4, seed=-7, salt=1, dtype=tf.float64).numpy()
    assert 0.2 < np.mean(keep == 0) < 0.6
    found = fused(case, scale_by_pairs=True, dropout=Dropout(rows, 0.4, -7, 1))
    assert_close(found, oracle_answers(case, True, keep))


@needs_library
@pytest.mark.parametrize(
    "shape", [(3, 39, 16, 16), (3, 40, 10, 20), (2, 100, 7, 64), (1, 196, 16, 64), (1, 200, 20, 3)], ids=str
)
@pytest.mark.parametrize("absent", [0.0, 0.3])
@pytest.mark.parametrize("by_slot", [False, True])
def test_many_slots_equal_the_plain_form_in_float64(
    instructions: str, shape: tuple[int, ...], absent: float, by_slot: bool
) -> None:
    case = Case(*shape, seed=3, absent=absent, by_slot=by_slot)
    rows = tf.range(100, 100 + shape[0], dtype=tf.int64)
    options: dict[str, Any] = {"scale_by_pairs": True, "by_slot": by_slot, "dropout": Dropout(rows, 0.1, 5, 1)}
    expected = answers(attentional_pooling, case, tf.float64, **options)
    assert_close(fused(case, **options), expected)


@needs_library
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 70), st.integers(1, 20), st.integers(1, 37), st.integers(1, 37)),
    seed=st.integers(0, 2**31),
    scale=st.booleans(),
    rate=st.sampled_from([0.0, 0.5]),
    absent=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    listed=st.sampled_from([0.3, 1.0]),
    by_slot=st.booleans(),
)
def test_any_shape_equals_the_plain_form(
    shape: tuple[int, ...], seed: int, scale: bool, rate: float, absent: float, listed: float, by_slot: bool
) -> None:
    rows = shape[0]
    case = Case(*shape, seed, absent, by_slot)
    case.pairs = case.pairs[np.random.default_rng(seed).random(len(case.pairs)) < listed]
    options: dict[str, Any] = {"scale_by_pairs": scale, "by_slot": by_slot}
    if rate:
        options["dropout"] = Dropout(tf.range(rows, dtype=tf.int64), rate, seed, 1)
    expected = answers(attentional_pooling, case, tf.float64, graph=not rows, **options)
    found = fused(case, **options)
    if rows:
        assert_close(found, expected, case.largest_term())
    assert [x.shape for x in found] == [x.shape for x in expected]


@needs_library
@pytest.mark.parametrize("by_slot", [False, True])
def test_all_pairs_in_another_order_keep_their_numbers(instructions: str, by_slot: bool) -> None:
    case = Case(21, 9, 16, 16, seed=12, absent=0.3, by_slot=by_slot)
    case.pairs = np.random.default_rng(1).permutation(case.pairs)
    options: dict[str, Any] = {"by_slot": by_slot, "dropout": Dropout(tf.range(21, dtype=tf.int64), 0.5, 2, 1)}
    assert_close(fused(case, **options), answers(attentional_pooling, case, tf.float64, **options))


@needs_library
def test_what_is_too_large_to_keep_is_computed_again() -> None:
    """Scores and hidden units of 65,600 rows with t = 4,096 are above 512 MiB, those of each half below."""
    case = Case(65_600, 2, 1, 4096, seed=8)
    _, W, b, h = case.inputs
    raw = {"scale_by_pairs": False, "threshold": 2**22, "keep_scale": 4 / 3, "key": 0}
    rows = np.arange(65_600)
    found, kept = [], []
    for part in (slice(None), slice(32_800), slice(32_800, None)):
        some = copy.copy(case)
        some.inputs = [case.inputs[0][part], W, b, h]
        some.present, some.upstream = case.present[part], case.upstream[part]
        dropout = Dropout(tf.constant(rows[part]), 0.25, 1, 1)
        found.append(answers(fused_attentional_pooling, some, tf.float32, dropout=dropout))
        inputs = (some.inputs[0], some.present, W, b, h, rows[part], case.pairs)
        kept.append(load().module.afm_ctr_pooling(*inputs, **raw).kept.shape.num_elements())
    assert kept[0] == 0 and 0 < kept[1] == kept[2] <= 2**27
    whole, one, other = found
    for place in (0, 1):
        np.testing.assert_array_equal(whole[place], np.concatenate([one[place], other[place]]))
    halves = [one[place] + other[place] for place in (2, 3, 4)]
    assert_close(whole, [*whole[:2], *halves])


@needs_library
def test_rows_without_pairs_pool_to_zero_and_get_no_gradient(instructions: str) -> None:
    case = Case(4, 5, 3, 4, seed=4, absent=0.0)
    case.present[0] = False
    case.present[1, 1:] = False
    case.pairs = case.pairs[case.pairs[:, 0] > 0]
    case.present[2, 2:] = False  # two slots are present, but their pair is not listed
    pooled, by_u, *_ = fused(case, scale_by_pairs=True)
    assert not pooled[:3].any() and not by_u[:3].any()
    assert pooled[3].all() and not by_u[3, 0].any() and by_u[3, 1:].all()


@needs_library
@pytest.mark.parametrize(("slots", "k"), [(2, 1), (9, 16), (12, 33)])
def test_sums_by_slot_with_the_same_gradient_for_all_are_twice_the_whole(
    instructions: str, slots: int, k: int
) -> None:
    whole, by_slot = (Case(5, slots, k, 6, seed=11, by_slot=by_slot) for by_slot in (False, True))
    by_slot.upstream[:] = whole.upstream[:, np.newaxis]
    found = fused(by_slot, by_slot=True)
    twice = [2 * x for x in oracle_answers(whole, False)]
    assert not found[0][~by_slot.present].any()
    assert_close([found[0].sum(axis=1), *found[1:]], twice)


@needs_library
@pytest.mark.parametrize("by_slot", [False, True])
def test_what_an_absent_slot_holds_is_not_read(instructions: str, by_slot: bool) -> None:
    case = Case(5, 9, 4, 3, seed=5, by_slot=by_slot)
    expected = fused(case, by_slot=by_slot)
    case.inputs[0][~case.present] = np.nan
    for found, want in zip(fused(case, by_slot=by_slot), expected, strict=True):
        np.testing.assert_array_equal(found, want)


@needs_library
def test_scores_far_apart_and_numbers_that_are_none(instructions: str) -> None:
    case = Case(3, 6, 4, 5, seed=6, absent=0.0)
    case.inputs[3] *= 200  # attention is all on one pair or two
    assert_close(
        fused(case)[:1] + [np.zeros(1)] * 4,
        answers(attentional_pooling, case, tf.float64)[:1] + [np.zeros(1)] * 4,
    )
    case.inputs[0][1, 2, 3] = np.nan
    pooled, by_u, by_W, *_ = fused(case)
    assert np.isnan(pooled[1]).all() and np.isnan(by_u[1]).any() and np.isnan(by_W).all()
    assert np.isfinite(pooled[[0, 2]]).all() and np.isfinite(by_u[[0, 2]]).all()


@needs_library
@pytest.mark.parametrize("by_slot", [False, True])
def test_an_example_does_not_see_its_batch(instructions: str, by_slot: bool) -> None:
    case = Case(67, 8, 16, 16, seed=7, by_slot=by_slot)
    together = fused(case, by_slot=by_slot)
    case.inputs[0], case.present, case.upstream = case.inputs[0][41:42], case.present[41:42], case.upstream[41:42]
    apart = fused(case, by_slot=by_slot)
    np.testing.assert_array_equal(apart[0][0], together[0][41])
    np.testing.assert_array_equal(apart[1][0], together[1][41])


@needs_library
def test_wrong_shapes_and_pairs_are_refused() -> None:
    case = Case(2, 3, 4, 5, seed=9)
    u, W, b, h = map(tf.constant, case.inputs)
    present = tf.constant(case.present)
    for arguments, text in [
        ((u[0], present, W, b, h), "rank 3|\\[batch, slots, k\\]"),
        ((u, present[:1], W, b, h), "present must be"),
        ((u, present, W[1:], b, h), "W must be"),
        ((u, present, W, b[1:], h), "b must be"),
        ((u, present, W, b, h[1:]), "h must be"),
    ]:
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=text):
            native.fused_pooling(*arguments, case.pairs)
    with pytest.raises(tf.errors.InvalidArgumentError, match="slot 3 of 3"):
        native.fused_pooling(u, present, W, b, h, [(0, 3)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="rows must be"):
        native.fused_pooling(u, present, W, b, h, case.pairs, threshold=1)
    for pairs in ([(1, 0)], [(0, 3)], [(0, 1), (0, 1)]):
        with pytest.raises(ValueError, match="distinct"):
            fused_attentional_pooling(u, present, W, b, h, np.array(pairs))


def test_the_form_is_chosen_by_the_library_the_type_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFM_CTR_POOLING", raising=False)
    assert uses_fused(tf.float32) == (not native.why_not())
    assert not uses_fused(tf.float64)
    monkeypatch.setenv("AFM_CTR_POOLING", "tensorflow")
    assert not uses_fused(tf.float32)
    monkeypatch.setenv("AFM_CTR_POOLING", "quick")
    with pytest.raises(UserError, match="fused or tensorflow"):
        uses_fused(tf.float32)
    monkeypatch.setenv("AFM_CTR_POOLING", "fused")
    monkeypatch.setattr(native, "why_not", lambda *shape: "not built")
    with pytest.raises(UserError, match=r"not built; build it by `python scripts/build_native\.py`"):
        uses_fused(tf.float32)


@pytest.mark.parametrize("form", ["tensorflow", pytest.param("fused", marks=needs_library)])
def test_training_takes_the_form_that_the_variable_names(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFM_CTR_POOLING", form)
    case = Case(3, 4, 2, 2, seed=10)

    @tf.function(autograph=False)
    def pool(u: tf.Tensor, W: tf.Tensor, b: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
        return training_attentional_pooling(u, tf.constant(case.present), W, b, h, case.pairs)

    operations = {op.type for op in pool.get_concrete_function(*map(tf.constant, case.inputs)).graph.get_operations()}
    assert ("AfmCtrPooling" in operations) == (form == "fused")


def test_a_package_without_the_library_says_so() -> None:
    code = (
        "from afm_ctr import native; from afm_ctr.native import op; from pathlib import Path;"
        "op.library_path = lambda: Path('/none/_afm.so'); op.FOLDER = Path('/none'); print(native.describe())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "TensorFlow form: not built\n"


def test_set_up_without_a_compiler_says_so_in_one_line(root: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "AFM_CTR_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, root / "scripts" / "build_native.py", "--rebuild"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "'g++' is not on the PATH" in line and "TensorFlow form" in line


@pytest.mark.parametrize(
    ("state", "mend"),
    [
        ("fused (avx2)", ""),
        ("fused (GPU sm_90, NVRTC 12.9: kernels for 39 slots, k = t = 16 compiled in 2.3 s, once a shape)", ""),
        ("TensorFlow form: not built", "python scripts/build_native.py"),
        (f"TensorFlow form: {nvrtc.MISSING}", "pip install nvidia-cuda-nvrtc-cu12"),
    ],
)
def test_doctor_names_the_form_and_what_mends_it(state: str, mend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout=f"{state}\n", stderr="")
    monkeypatch.setattr(doctor, "run_code", lambda code: answer)
    finding = doctor.pooling()
    assert (finding.ok, finding.state, finding.optional) == (not mend, state, True)
    assert finding.remedy == mend
