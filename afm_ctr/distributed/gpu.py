"""One GPU a rank, and no more of its memory than is used."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from afm_ctr.errors import UserError


def pin_gpu(local_rank: int, local_size: int, config: Any = None) -> Any | None:
    """Let this process see the GPU of its local rank alone, with memory growth. Call it before anything uses a GPU.

    Args:
        local_rank: this rank among those on its machine; a single process (``local_size`` 1) keeps all its GPUs.
        local_size: ranks on this machine.
        config: stands in for ``tf.config`` in tests.

    Returns:
        The device that this rank computes on, or None on a machine without GPUs.

    Raises:
        UserError: there are GPUs, but fewer than ranks.
        RuntimeError: TensorFlow has touched the GPUs already.
    """
    config = tf.config if config is None else config
    devices = config.list_physical_devices("GPU")
    if not devices:
        return None
    if local_size > len(devices):
        raise UserError(
            f"{local_size} ranks on this machine, but {len(devices)} GPU(s): start at most {len(devices)} here "
            "(horovodrun -H host:slots), or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    mine = devices if local_size == 1 else [devices[local_rank]]
    for device in mine:
        config.experimental.set_memory_growth(device, True)
    config.set_visible_devices(mine, "GPU")
    return mine[0]
