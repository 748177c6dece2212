"""Loads the library; the pooling op with its gradient."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from afm_ctr.errors import UserError
from afm_ctr.native import gpu
from afm_ctr.native.library import FOLDER, library_path, why_not_trusted

if TYPE_CHECKING:
    import tensorflow as tf

BUILD = "python scripts/build_native.py"
INSTRUCTIONS = "AFM_CTR_INSTRUCTIONS"


class _Loaded(NamedTuple):
    """The module of ops and the instruction sets that it can use here; or the reason why it was not loaded."""

    module: Any = None
    instructions: tuple[str, ...] = ()
    reason: str = ""


_loading = Lock()


def load() -> _Loaded:
    """The library, opened once per process; thread-safe."""
    with _loading:
        return _opened()


def why_not_there(path: Path) -> str:
    """Why a library cannot be loaded, without trying to; "" if nothing speaks against it."""
    if not path.exists():
        others = any(FOLDER.glob("_afm-*.so"))
        return "built for another TensorFlow or from other sources" if others else "not built"
    why = why_not_trusted(path)
    return f"not trusted: {why}" if why else ""


def open_library() -> _Loaded:
    """Open the library."""
    path = library_path()
    if why := why_not_there(path):
        return _Loaded(reason=why)
    import tensorflow as tf

    try:
        module = tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError, RuntimeError) as error:
        return _Loaded(reason=f"{path.name} does not load: {str(error).splitlines()[0]}")
    tf.RegisterGradient("AfmCtrPooling")(_gradient)
    tf.RegisterGradient("AfmCtrNormalise")(_normalise_gradient)
    tf.RegisterGradient("AfmCtrReadRows")(_slices)
    with tf.init_scope():  # a training step may be being traced
        names = module.afm_ctr_instructions().numpy()
    return _Loaded(module, tuple(name.decode() for name in names))


_opened = cache(open_library)


def asked_for(variable: str, ours: str, other: str, reason: str) -> bool:
    """Whether to use the op: if it is available, unless an environment variable chooses the other form.

    Args:
        variable: the environment variable that may choose a form.
        ours: its value for the op.
        other: its value for the other form.
        reason: why the op is not available, "" if it is.

    Raises:
        UserError: the variable has another value, or chooses an op that is not available.
    """
    wanted = os.environ.get(variable, "")
    if wanted not in ("", ours, other):
        raise UserError(f"{variable}={wanted}: choose {ours} or {other}, or leave it out")
    if wanted == ours and reason:
        remedy = "leave it out" if uses_gpu() and not load().reason else f"build it by `{BUILD}`"
        raise UserError(f"{variable}={ours}, but: {reason}; {remedy}")
    return not reason and wanted != other


def uses_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.get_visible_devices("GPU"))


def why_not(slots: int = 2, k: int = 1, t: int = 1, by_slot: bool = False) -> str:
    """Why the op cannot be used here for a shape, in a few words; "" if it can."""
    if reason := load().reason:
        return reason
    if uses_gpu():
        return gpu.why_not(slots, k, t, by_slot)
    return ""


def instruction_sets() -> list[str]:
    """Instruction sets of this machine that have kernels, the best first; empty without the library."""
    return list(load().instructions)


def _instructions() -> str:
    """The instruction set that ``AFM_CTR_INSTRUCTIONS`` chooses; "" is the best."""
    wanted = os.environ.get(INSTRUCTIONS, "")
    if wanted and wanted not in instruction_sets():
        raise UserError(f"{INSTRUCTIONS}={wanted}: this machine has {', '.join(instruction_sets()) or 'no library'}")
    return wanted


def describe() -> str:
    """For a report: "fused (avx512)", "fused (GPU …)", or "TensorFlow form: " and why."""
    if reason := why_not():
        return f"TensorFlow form: {reason}"
    return f"fused ({gpu.describe() if uses_gpu() else _instructions() or instruction_sets()[0]})"


def fused_pooling(
    u: tf.Tensor,
    present: tf.Tensor,
    W: tf.Tensor,
    b: tf.Tensor,
    h: tf.Tensor,
    pairs: Any,
    *,
    scale_by_pairs: bool = False,
    by_slot: bool = False,
    rows: tf.Tensor | None = None,
    threshold: int = 0,
    keep_scale: float = 1.0,
    key: int = 0,
) -> tf.Tensor:
    """Σ c·m_ij·a_ij (u_i ⊙ u_j) over the pairs of present slots: ``[B, k]``; once differentiable by u, W, b and h.

    By slot: over each slot's pairs, ``[B, F, k]``. On a GPU the kernels for a shape are compiled at its first use,
    and cached on disk.

    Memory: inputs, outputs, B floats, and a workspace per thread for the rows that it computes at once, as many as a
    register holds floats: (20 + t / 4) bytes per pair and 8·F·k bytes for each of these rows, and about 100·k·t. For
    the backward pass a CPU keeps 4 + t / 8 bytes per pair, up to 512 MiB in all; beyond that it recomputes them. The
    result does not depend on the number of threads; between instruction sets it differs by rounding.

    Args:
        u: float32 ``[B, F, k]``.
        present: bool ``[B, F]``.
        W: float32 ``[k, t]``.
        b: float32 ``[t]``.
        h: float32 ``[t]``.
        pairs: int32 ``[P, 2]``.
        by_slot: whether to pool each slot's pairs separately.
        scale_by_pairs: whether c is the number of the row's pairs instead of 1.
        rows: int64 ``[B]``; required for dropout.
        threshold: a pair is dropped if the upper 24 bits of its hash are below this; 0: no dropout.
        keep_scale: factor for the weights of the other pairs.
        key: unsigned 64 bits, added to the multiple of the row's number that is hashed.

    Raises:
        RuntimeError: the library cannot be used.
        tf.errors.InvalidArgumentError: shapes do not match.
    """
    loaded = load()
    if loaded.module is None:
        raise RuntimeError(f"fused pooling: {loaded.reason}; build it by `{BUILD}`")
    import tensorflow as tf

    for_gpu = {}
    if uses_gpu():
        for_gpu = gpu.attributes(u.shape[1], W.shape[0], W.shape[1], by_slot, np.reshape(pairs, (-1, 2)))
    pooled, *_ = loaded.module.afm_ctr_pooling(
        u=u,
        present=present,
        attention_matrix=W,
        bias=b,
        projection=h,
        rows=tf.zeros([0], tf.int64) if rows is None else rows,
        pairs=tf.constant(pairs, tf.int32, shape=(len(pairs), 2)),
        scale_by_pairs=scale_by_pairs,
        by_slot=by_slot,
        threshold=threshold,
        keep_scale=keep_scale,
        key=key - (1 << 64) if key >= 1 << 63 else key,  # attributes of ops are signed
        instructions=_instructions(),
        **for_gpu,
    )
    return pooled


def _gradient(op: Any, by_pooled: tf.Tensor, *_: tf.Tensor) -> list[Any]:
    """By u, W, b and h; the other outputs only serve this function and have no gradient."""
    names = ["scale_by_pairs", "by_slot", "threshold", "keep_scale", "key", "instructions"]
    names += ["gpu_program", "gpu_plan", "gpu_sizes"]
    by_u, by_W, by_b, by_h = load().module.afm_ctr_pooling_grad(
        *op.inputs, *op.outputs, by_pooled, **{name: op.get_attr(name) for name in names}
    )
    return [by_u, None, by_W, by_b, by_h, None, None]


def normalise(values: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Each row with mean 0 and variance 1, and its sum over the slots; once differentiable; on CPUs.

    Args:
        values: float32 ``[B, F, k]``.
        epsilon: added to the variance.

    Returns:
        ``[B, F·k]`` and ``[B, k]``.
    """
    normalised, total, _ = load().module.afm_ctr_normalise(values=values, epsilon=epsilon)
    return normalised, total


def _normalise_gradient(op: Any, by_normalised: tf.Tensor, by_total: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    normalised, _, factor = op.outputs
    return load().module.afm_ctr_normalise_grad(
        normalised=normalised, factor=factor, upstream=by_normalised, by_total=by_total
    )


def _slices(op: Any, by_rows: tf.Tensor) -> list[Any]:
    """By the variable: the rows read, repeated as often as they were read."""
    import tensorflow as tf

    variable, rows = op.inputs
    return [tf.IndexedSlices(by_rows, rows, tf.raw_ops.VariableShape(input=variable, out_type=tf.int64)), None]
