"""Writes a schema with comments as YAML."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from afm_ctr.visible import visible

_WIDTH = 112
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_ -]*[A-Za-z0-9_]|[A-Za-z]")
# Words that YAML 1.1 or 1.2 does not read as text.
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else _quoted(value)
    return str(yaml.safe_dump(value, default_flow_style=True).split("\n")[0])


def _quoted(text: str) -> str:
    # YAML requires escapes for unprintable characters, and does not support JSON's surrogate pairs.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))


def comment(lines: Sequence[str], indent: int = 0) -> list[str]:
    """Comment lines, wrapped."""
    before = " " * indent + "# "
    wrapped: list[str] = []
    for line in lines:
        wrapped += textwrap.wrap(visible(line), _WIDTH - len(before), break_long_words=False) or [""]
    return [(before + line).rstrip() for line in wrapped]


def columns(names: Sequence[Any]) -> list[str]:
    """The list of a format's columns: names side by side, or one per line if some have a header, too."""
    if not all(isinstance(name, str) for name in names):
        return [f"    - {flow(name)}" for name in names]
    lines, line = [], "    ["
    for number, name in enumerate(names):
        piece = flow(name) + ("]" if number == len(names) - 1 else ",")
        if len(line) + len(piece) + 1 > _WIDTH:
            lines.append(line.rstrip())
            line = "     "
        line += piece + " "
    return [*lines, line.rstrip()]
