"""Texts from logs, shown to people: no character can break out of a line, a terminal or a spreadsheet's cell.

Names of columns, values and files may hold anything: line separators of YAML, escape sequences of a terminal,
characters that reverse the direction of text, a formula.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import TextIO

# What a spreadsheet takes for the start of a formula; a plain number is not one.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def visible(text: str, keep: str = "") -> str:
    """A text with every non-printable character escaped as in JSON: ``\\u001b``, ``\\u2028``, ``\\u202e``.

    Args:
        keep: characters that stay, such as a line's end.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in text)


def short(text: str, longest: int) -> str:
    """A text made visible, cut to ``longest`` characters."""
    plain = visible(text)
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def csv_text(text: str) -> str:
    """A text for a cell of a CSV file: visible, with ``'`` before what a spreadsheet would take for a formula."""
    return f"'{visible(text)}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else visible(text)


def fitted(text: str, stream: TextIO) -> str:
    """A text for a stream: wrapped between words if it is a terminal and the text is longer than a line."""
    width = shutil.get_terminal_size().columns
    if len(text) <= width or not stream.isatty():
        return text
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def counted(number: int, thing: str) -> str:
    """``1 shard``, ``2,000 shards``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
