"""Loads a SavedModel and answers requests, in a process without this package.

    python -I clean_process.py SAVED_MODEL REQUESTS ANSWERS

REQUESTS is a pickled list of (signature, inputs by name); ANSWERS becomes a pickled dict, see :func:`inspect`. Needs
only TensorFlow and NumPy: what works here works with any TensorFlow installation.
"""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path
from typing import Any

# Registered in a Python process, but they call back into it, which a server cannot.
_NEED_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction"}


def inspect(folder: str, requests: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Describe a SavedModel and its answers.

    Args:
        requests: signature and arrays by input name; strings as object arrays of bytes.

    Returns:
        ``signatures``: by name ``{"method", "inputs", "outputs"}``, tensors by name as (type, shape or None);
        ``foreign_ops``: ops of the graph that TensorFlow lacks or a server cannot run;
        ``error``: why it cannot be loaded, else None; ``seconds``: loading time;
        ``answers``: for each request its outputs by name, or the error's text;
        ``modules``: modules of this package in this process (there should be none).
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    message = saved_model_pb2.SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes())
    graph = message.meta_graphs[0]
    library = graph.graph_def.library.function
    ops = {node.op for nodes in (graph.graph_def.node, *(f.node_def for f in library)) for node in nodes}
    ops -= {function.signature.name for function in library}
    found: dict[str, Any] = {
        "signatures": {
            name: {
                "method": item.method_name,
                "inputs": {key: _spec(info, tf) for key, info in item.inputs.items()},
                "outputs": {key: _spec(info, tf) for key, info in item.outputs.items()},
            }
            for name, item in graph.signature_def.items()
            if item.method_name  # without one it belongs to the loader
        },
        "foreign_ops": sorted(op for op in ops if op_def_registry.get(op) is None or op in _NEED_PYTHON),
        "error": None,
        "answers": [],
    }
    began = time.perf_counter()
    try:
        loaded = tf.saved_model.load(folder)
    except Exception as error:
        found["error"] = _line(error)
    else:
        found["answers"] = [_answer(loaded, signature, inputs, tf) for signature, inputs in requests]
    found["seconds"] = time.perf_counter() - began
    found["modules"] = sorted(name for name in sys.modules if name.partition(".")[0] in ("afm_ctr", "serving"))
    return found


def _answer(loaded: Any, signature: str, inputs: dict[str, Any], tf: Any) -> dict[str, Any] | str:
    try:
        tensors = {name: _tensor(value, tf) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in loaded.signatures[signature](**tensors).items()}
    except Exception as error:
        return _line(error)


def _tensor(value: Any, tf: Any) -> Any:
    return tf.constant(value.tolist(), tf.string) if value.dtype == object else tf.constant(value)


def _spec(info: Any, tf: Any) -> tuple[str, list[int] | None]:
    shape = None if info.tensor_shape.unknown_rank else [dim.size for dim in info.tensor_shape.dim]
    return tf.dtypes.as_dtype(info.dtype).name, shape


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    answers = inspect(sys.argv[1], pickle.loads(Path(sys.argv[2]).read_bytes()))
    Path(sys.argv[3]).write_bytes(pickle.dumps(answers))
