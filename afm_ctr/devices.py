"""One GPU a process, and no more of its memory than is used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from afm_ctr.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

VISIBLE = "CUDA_VISIBLE_DEVICES"
_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"


def grow_gpu_memory() -> None:
    """Have TensorFlow take GPU memory as it needs it, here and in child processes; call it before it is imported.

    By itself it takes all memory of all GPUs at its first operation. The environment has its way.
    """
    os.environ.setdefault(_GROWTH, "true")


def hide_gpus() -> None:
    """No GPU for this process and its children, which compute on CPUs; call it before TensorFlow is imported."""
    os.environ[VISIBLE] = ""


def pin_gpu(local_rank: int = 0, local_size: int = 1, config: Any = None) -> Any | None:
    """Let this process see the GPU of its local rank only, with memory growth. Call it before anything uses a GPU.

    Where ``CUDA_VISIBLE_DEVICES`` leaves each rank one GPU of its own, as Slurm (``--gpus-per-task``) and Kubernetes
    hand them out, that one is taken.

    Args:
        local_size: ranks on this machine; a single process takes one GPU too.
        config: stands in for ``tf.config`` in tests.

    Returns:
        The device that this rank computes on, or None on a machine without GPUs.

    Raises:
        UserError: there are GPUs, but fewer than ranks.
        RuntimeError: TensorFlow has touched the GPUs already.
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
            f"(horovodrun -H host:slots), give each rank one of its own by {VISIBLE}, or hide them by {VISIBLE}="
        )
    mine = devices[0 if handed_out else local_rank]
    config.experimental.set_memory_growth(mine, True)
    config.set_visible_devices([mine], "GPU")
    return mine


def ahead_on_gpu(batches: tf.data.Dataset, config: Any = None, device: str = "/GPU:0") -> tf.data.Dataset:
    """The same batches, each copied to the GPU while the step before it computes; unchanged where there is no GPU.

    Args:
        batches: without texts, which stay on the host. Nothing may be applied to the result.
        device: the GPU that :func:`pin_gpu` has left visible, and another device in tests.
    """
    import tensorflow as tf

    if not (tf.config if config is None else config).get_visible_devices("GPU"):
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device(device, buffer_size=1))
