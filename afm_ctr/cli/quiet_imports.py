"""Loading TensorFlow without its start-up messages, which hide the one line that matters."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from afm_ctr.devices import grow_gpu_memory, pin_gpu
from afm_ctr.process_setup import hidden, load_tensorflow_without_keras, share_memory

# Messages of the C++ code before its log level applies, and of a missing GPU driver on a machine without a GPU.
CHATTER = re.compile(
    rb"^(WARNING: All log messages before absl|[IWE]\d{4} [\d:.]+ +\d+ |To enable the following |"
    rb"WARNING:root:apitools |Could not find a compatible bson )"
)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Drop TensorFlow's known start-up lines from stderr, at the level of the file descriptor; keep the rest.

    Python's garbage collector is paused meanwhile and later skips the objects that exist by then: imports create
    hundreds of thousands, which it would scan repeatedly, and hardly any of them is garbage.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    collects = gc.isenabled()
    gc.disable()
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            gc.freeze()
            if collects:
                gc.enable()
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            kept = [line for line in caught if not CHATTER.match(line)]
            os.write(2, b"".join(kept))


def load_tensorflow(*, keras: bool = True) -> None:
    """Import TensorFlow and look for GPUs once, quietly; float32 is IEEE float32 there until a run enables TF32.

    Args:
        keras: whether Keras will be needed; without it the import takes little more than half the time.

    Raises:
        ModuleNotFoundError: TensorFlow is not installed.
    """
    grow_gpu_memory()
    with without_chatter():
        if not keras:
            load_tensorflow_without_keras()
        import tensorflow as tf

        if "HOROVOD_RANK" in os.environ:
            tf.config.list_physical_devices("GPU")
        else:
            pin_gpu()
        tf.config.experimental.enable_tensor_float_32_execution(False)


def load_beam(arguments: Sequence[str]) -> None:
    """Import Beam quietly, and check its options.

    Of Beam's optional imports ``prepare`` needs only boto3, and that only for s3:// (see
    :func:`beam_jobs.files.share_client`), and pyarrow, which it imports itself for Parquet. Whether it needs
    TensorFlow is decided later. Commands do not run in IPython, which Beam imports to find out.

    Raises:
        ModuleNotFoundError: one of them is not installed.
    """
    share_memory()
    sys.modules.setdefault("IPython", None)  # type: ignore[arg-type]
    with (
        without_chatter(),
        hidden("pandas", "pyarrow", "pymongo", "bson", "boto3", "apache_beam.io.gcp.bigquery"),
    ):
        from beam_jobs.runners import Engine

        if importlib.util.find_spec("tensorflow") is None:
            raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
    Engine(arguments)
