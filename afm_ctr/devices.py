"""One GPU per process, with memory growth."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from afm_ctr.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

VISIBLE = "CUDA_VISIBLE_DEVICES"
_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"


def grow_gpu_memory() -> None:
    """Let TensorFlow allocate GPU memory as needed, here and in child processes; call before importing TensorFlow.

    By default it takes all memory of all GPUs at its first operation. A value in the environment takes precedence.
    """
    os.environ.setdefault(_GROWTH, "true")


def hide_gpus() -> None:
    """Hide GPUs from this process and its children; call before importing TensorFlow."""
    os.environ[VISIBLE] = ""


def pin_gpu(local_rank: int = 0, local_size: int = 1, config: Any = None) -> Any | None:
    """Let this process see only the GPU of its local rank, with memory growth. Call it before anything uses a GPU.

    If ``CUDA_VISIBLE_DEVICES`` already limits each rank to one GPU, as under Slurm (``--gpus-per-task``) and
    Kubernetes, that one is used.

    Args:
        local_size: ranks on this machine; a single process uses one GPU too.
        config: replaces ``tf.config`` in tests.

    Returns:
        The device that this rank computes on, or None on a machine without GPUs.

    Raises:
        UserError: there are fewer GPUs than ranks.
        RuntimeError: TensorFlow has initialised the GPUs already.
    """
    if config is None:
        import tensorflow as tf

        config = tf.config
    devices = config.list_physical_devices("GPU")
    if not devices:
        return None
    handed_out = len(devices) == 1 and bool(os.environ.get(VISIBLE))
    if local_size > len(devices) and not handed_out:
        raise UserError(
            f"{local_size} ranks on this machine, but {len(devices)} GPU(s): start at most {len(devices)} here "
            f"(horovodrun -H host:slots), give each rank its own GPU by {VISIBLE}, or hide them by {VISIBLE}="
        )
    mine = devices[0 if handed_out else local_rank]
    config.experimental.set_memory_growth(mine, True)
    config.set_visible_devices([mine], "GPU")
    return mine


def ahead_on_gpu(batches: tf.data.Dataset, config: Any = None, device: str = "/GPU:0") -> tf.data.Dataset:
    """The same batches, each copied to the GPU while the step before it computes; unchanged without a GPU.

    Args:
        batches: without strings, which stay on the host. Apply no further transformation to the result.
        device: the GPU that :func:`pin_gpu` has left visible; another device in tests.
    """
    import tensorflow as tf

    if not (tf.config if config is None else config).get_visible_devices("GPU"):
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device(device, buffer_size=1))
