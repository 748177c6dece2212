"""Arrays and counts of byte strings as bytes. Reading them never runs code, so they need not be trusted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

_HEAD = 8  # bytes of the header's length


def pack(facts: Any, arrays: Sequence[np.ndarray] = ()) -> bytes:
    """Facts, as JSON values, and arrays of numbers (any shape) as one byte string."""
    head = json.dumps([facts, [[array.dtype.str, array.shape] for array in arrays]]).encode()
    return b"".join([len(head).to_bytes(_HEAD, "little"), head, *(array.tobytes() for array in arrays)])


def unpack(content: bytes) -> tuple[Any, list[np.ndarray]]:
    """The arguments of :func:`pack`; the arrays are read-only. Raises ValueError if the bytes are not from it."""
    start = _HEAD + int.from_bytes(content[:_HEAD], "little")
    try:
        facts, listed = json.loads(content[_HEAD:start])
        arrays = []
        for name, shape in listed:
            kind = np.dtype(name)
            count = int(np.prod(shape, dtype=np.int64))
            if kind.kind not in "biuf" or count < 0:
                raise ValueError(f"{name} is not a numeric type")
            arrays.append(np.frombuffer(content, kind, count, start).reshape(shape))
            start += count * kind.itemsize
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not packed arrays: {error}") from None
    if start != len(content):
        raise ValueError(f"not packed arrays: {len(content) - start} bytes too many")
    return facts, arrays


def pack_pairs(texts: Sequence[bytes], numbers: Iterable[int]) -> list[np.ndarray]:
    """Byte strings and their numbers as three arrays: the bytes, the lengths, the numbers."""
    lengths = np.array([len(text) for text in texts], np.int64)
    return [np.frombuffer(b"".join(texts), np.uint8), lengths, np.array(list(numbers), np.int64)]


def unpack_pairs(arrays: Sequence[np.ndarray]) -> tuple[list[bytes], list[int]]:
    """The byte strings and numbers of :func:`pack_pairs`. Raises ValueError if the arrays do not match."""
    joined, lengths, numbers = arrays
    ends = np.cumsum(lengths)
    if len(lengths) != len(numbers) or (lengths < 0).any() or len(joined) != (ends[-1] if len(ends) else 0):
        raise ValueError("not packed byte strings: the lengths do not fit the bytes")
    whole = joined.tobytes()
    bounds = [0, *ends.tolist()]
    return [whole[a:b] for a, b in pairwise(bounds)], numbers.tolist()
