"""NumPy arrays to TensorProto and back.

Works on any message with TensorProto's fields: the client's and TensorFlow's. Needs numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class _Kind(NamedTuple):
    name: str  # as TensorFlow prints it
    number: int  # DataType
    values: str  # the list field of the message
    dtype: np.dtype[Any]


_KINDS = [
    _Kind("float", 1, "float_val", np.dtype("<f4")),
    _Kind("double", 2, "double_val", np.dtype("<f8")),
    _Kind("int32", 3, "int_val", np.dtype("<i4")),
    _Kind("uint8", 4, "int_val", np.dtype("u1")),
    _Kind("int16", 5, "int_val", np.dtype("<i2")),
    _Kind("int8", 6, "int_val", np.dtype("i1")),
    _Kind("string", 7, "string_val", np.dtype(object)),
    _Kind("int64", 9, "int64_val", np.dtype("<i8")),
    _Kind("bool", 10, "bool_val", np.dtype(bool)),
    _Kind("uint16", 17, "int_val", np.dtype("<u2")),
    _Kind("half", 19, "half_val", np.dtype("<f2")),
    _Kind("uint32", 22, "uint32_val", np.dtype("<u4")),
    _Kind("uint64", 23, "uint64_val", np.dtype("<u8")),
]
_BY_NUMBER = {kind.number: kind for kind in _KINDS}
_BY_DTYPE = {kind.dtype: kind for kind in _KINDS}

# A message may give one value for a whole shape. Without a limit, ten bytes could claim all memory.
MAX_REPEATED = 1 << 20


def type_name(number: int) -> str:
    """TensorFlow's name for a DataType, such as ``float``."""
    kind = _BY_NUMBER.get(number)
    return kind.name if kind else f"type {number}"


def numpy_type(number: int) -> np.dtype[Any] | None:
    """The NumPy type of a DataType (object for strings); None if it is not supported."""
    kind = _BY_NUMBER.get(number)
    return kind.dtype if kind else None


def numpy_type_of(name: str) -> np.dtype[Any] | None:
    """The NumPy type by TensorFlow's name; None if it is not supported."""
    return next((kind.dtype for kind in _KINDS if kind.name == name), None)


def objects(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """An object array [n] of the values, even if they are sequences."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """An array ready to be sent: strings become an object array of bytes (str as UTF-8).

    NumPy's byte strings drop trailing zero bytes, so a list of bytes never passes through them.

    Raises:
        ValueError: an element among strings is neither bytes nor str, or the type cannot be sent.
    """
    array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=object)
    if array is not value and not any(isinstance(item, (bytes, str)) for item in array.flat):
        array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return objects([_as_bytes(item) for item in array.reshape(-1).tolist()]).reshape(array.shape)
    if array.dtype.newbyteorder("<") not in _BY_DTYPE:
        raise ValueError(f"an array of {array.dtype} cannot be sent")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def to_proto(value: Any, proto: Any, *, compact: bool = True) -> None:
    """Write an array into an empty TensorProto.

    Args:
        value: Array of any shape, or anything that :func:`as_array` takes.
        compact: Write numbers as raw bytes (``tensor_content``); otherwise as a list, as in TF Serving's answers,
            for clients that read ``float_val``.

    Raises:
        ValueError: As in :func:`as_array`.
    """
    array = as_array(value)
    kind = _BY_DTYPE[array.dtype]
    proto.dtype = kind.number
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if kind.name == "string":
        proto.string_val.extend(array.reshape(-1).tolist())
    elif compact:
        proto.tensor_content = array.tobytes()
    else:
        flat = array.reshape(-1)
        getattr(proto, kind.values).extend((flat.view("<u2") if kind.name == "half" else flat).tolist())


def to_array(proto: Any) -> np.ndarray[Any, Any]:
    """Read a TensorProto.

    As in TensorFlow, if there are fewer values than elements, the last one is repeated (without any: 0 or "").

    Returns:
        Array of the message's shape; strings as an object array of bytes.

    Raises:
        ValueError: unknown type, shape that is not fixed, or number of values that does not match the shape.
    """
    kind = _BY_NUMBER.get(proto.dtype)
    if kind is None:
        raise ValueError(f"tensors of type {proto.dtype} are not supported")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if any(size < 0 for size in shape):  # like TensorFlow, ignores unknown_rank
        raise ValueError(f"the shape {format_shape(shape)} is not fixed")
    size = math.prod(shape)
    if proto.tensor_content and kind.name != "string":
        if len(proto.tensor_content) != size * kind.dtype.itemsize:
            raise ValueError(f"{len(proto.tensor_content)} bytes of {kind.name} do not fill {format_shape(shape)}")
        return np.frombuffer(proto.tensor_content, dtype=kind.dtype).reshape(shape)
    return _repeat_last(_listed(proto, kind), size).reshape(shape)


def format_shape(shape: Iterable[int]) -> str:
    """A shape as TensorFlow prints it: ``[2,39]``."""
    return f"[{','.join(str(size) for size in shape)}]"


def _listed(proto: Any, kind: _Kind) -> np.ndarray[Any, Any]:
    values = getattr(proto, kind.values)
    if kind.name == "string":
        return objects(list(values))
    if kind.name == "half":
        return np.array(values, dtype=np.int64).astype("<u2").view("<f2")
    if kind.values == "int_val":  # several narrow types share one list; out-of-range values wrap, as in C
        return np.array(values, dtype=np.int64).astype(kind.dtype)
    return np.array(values, dtype=kind.dtype)


def _repeat_last(values: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    if len(values) == size:
        return values
    if len(values) > size:
        raise ValueError(f"{len(values)} values for a shape of {size}")
    if size > MAX_REPEATED:
        raise ValueError(f"{len(values)} values for a shape of {size}: too many to repeat")
    filled = np.empty(size, dtype=values.dtype)
    filled[: len(values)] = values
    filled[len(values) :] = values[-1] if len(values) else (b"" if values.dtype == object else 0)
    return filled


def _as_bytes(item: Any) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode("utf-8")
    raise ValueError(f"{item!r} among strings is neither bytes nor text")
