"""Parses JSON like TensorFlow Serving's parser (RapidJSON), where that differs from Python's."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from serving.server.request_errors import invalid

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_INF = re.compile(r'("(?:[^"\\]|\\.)*")|\bInf\b', re.DOTALL)


def parse_json(body: bytes) -> Any:
    """Parse the value at the beginning of a body; anything after it is ignored.

    NaN, Inf and Infinity are numbers; of duplicate keys the first counts; bytes in a string that are not UTF-8
    become lone surrogates (``surrogateescape``).

    Raises:
        RequestError: INVALID_ARGUMENT: not JSON, nested too deeply, a number out of a double's range, or an escaped
            half of a surrogate pair.
    """
    text = body.decode("utf-8", "surrogateescape").lstrip(" \t\r\n")
    if not text:
        raise invalid("JSON Parse error: The document is empty")
    _check_surrogates(text)
    try:
        return _parse(text)
    except RecursionError:
        raise invalid("JSON Parse error: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except OverflowError:
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None


def _parse(text: str) -> Any:
    try:
        return _DECODER.raw_decode(text)[0]
    except json.JSONDecodeError:
        if "Inf" not in text:
            raise
    return _DECODER.raw_decode(_INF.sub(lambda found: found[1] or "Infinity", text))[0]


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else dict(reversed(pairs))


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise OverflowError
    return value


def _whole(text: str) -> int | float:
    """Integers beyond 64 bits become doubles."""
    value = int(text) if len(text) <= 20 else None
    return value if value is not None and -(1 << 63) <= value < 1 << 64 else _real(text)


def _check_surrogates(text: str) -> None:
    if not _SURROGATE.search(text):
        return
    high_ends_at = None
    for found in _ESCAPE.finditer(text):
        code = int(found[1] or "0", 16)
        is_low = 0xDC00 <= code < 0xE000
        if is_low if high_ends_at is None else not is_low or found.start() != high_ends_at:
            break
        high_ends_at = found.end() if 0xD800 <= code < 0xDC00 else None
    else:
        if high_ends_at is None:
            return
    raise invalid("JSON Parse error: The surrogate pair in string is invalid.")


_DECODER = json.JSONDecoder(object_pairs_hook=_first_of_each, parse_float=_real, parse_int=_whole)
