"""The pooling op on a GPU: whether its kernels can be used, and compiling them for a shape."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np

from afm_ctr.native import gpu_plan, library, nvrtc

# The shape that doctor compiles to measure the time: Criteo's slots, the paper's width.
_USUAL = (39, 16, 16, False)


def capability() -> int | None:
    """Compute capability of the first visible GPU, such as 90; None if there is none or TensorFlow cannot say."""
    import tensorflow as tf

    for device in tf.config.get_visible_devices("GPU"):
        found = tf.config.experimental.get_device_details(device).get("compute_capability")
        return found and 10 * found[0] + found[1]
    return None


@lru_cache(maxsize=256)
def kernels_for(slots: int, k: int, t: int, by_slot: bool, capability: int) -> tuple[gpu_plan.Layout, bytes] | str:
    """The layout and the cubin for a shape, or why it cannot be compiled."""
    if reason := gpu_plan.why_not(slots, k, t):
        return reason
    layout = gpu_plan.choose(slots, k, t, by_slot, capability)
    if layout is None:
        return f"sm_{capability} has too little shared memory for {slots} slots and k = {k}"
    try:
        return layout, nvrtc.cubin(gpu_plan.source(layout), capability)
    except nvrtc.CompileError as error:
        return str(error)


def why_not(slots: int, k: int, t: int, by_slot: bool = False) -> str:
    """Why the kernels cannot be used for a shape, in a few words; "" if they can. Compiles them."""
    found = capability()
    if found is None:
        return "the GPU's compute capability is not known"
    compiled = kernels_for(slots, k, t, by_slot, found)
    return compiled if isinstance(compiled, str) else ""


def attributes(slots: int, k: int, t: int, by_slot: bool, pairs: np.ndarray) -> dict[str, Any]:
    """The op's attributes for GPUs. Raises RuntimeError: the kernels cannot be used, see :func:`why_not`."""
    if reason := why_not(slots, k, t, by_slot):
        raise RuntimeError(f"fused pooling on the GPU: {reason}")
    compiled = kernels_for(slots, k, t, by_slot, capability() or 0)
    assert not isinstance(compiled, str)
    layout, cubin = compiled
    sizes = [slots, k, t, layout.NF, layout.N, layout.R, gpu_plan.CHUNKS, layout.partial_size(), gpu_plan.COLLECT]
    plan = gpu_plan.plan_table(layout, pairs).tobytes()
    return {"gpu_program": cubin, "gpu_plan": plan, "gpu_sizes": [*sizes, *layout.shared_bytes()]}


def step_source(rule: str) -> str:
    """The CUDA program of an optimizer's step: "sgd", "adagrad", "adam" or "ftrl"."""
    parts = [(library.FOLDER / name).read_text(encoding="utf-8") for name in ("rules.h", "step.cu")]
    return f"#define RULE {rule.capitalize()}\n" + "".join(parts)


@lru_cache(maxsize=16)
def step_program(rule: str, capability: int) -> bytes | str:
    """The cubin of an optimizer's step, or why it cannot be compiled."""
    try:
        return nvrtc.cubin(step_source(rule), capability, nvrtc.ROUNDED)
    except nvrtc.CompileError as error:
        return str(error)


def describe() -> str:
    """For a report: "GPU sm_90, NVRTC 13.0: compiled in 2.3 s", or "… found in …" if it was compiled before."""
    start = time.monotonic()
    reason = why_not(*_USUAL)
    seconds = time.monotonic() - start
    if reason:
        return reason
    program = f"GPU sm_{capability()}, NVRTC {'.'.join(map(str, nvrtc.version() or ()))}"
    if seconds < 0.5:
        return f"{program}: kernels are kept in {nvrtc.cache()}"
    return f"{program}: kernels for 39 slots, k = t = 16 compiled in {seconds:.1f} s, once a shape"
