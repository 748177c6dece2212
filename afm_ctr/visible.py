"""Texts out of logs, shown to people: no character of them breaks out of a line, a terminal or a spreadsheet's cell.

Names of columns, values and files may hold what they like: line separators that YAML also knows, escape sequences
that a terminal obeys, marks that turn the direction of what follows, a formula.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import TextIO

# What a spreadsheet takes for the beginning of a formula; a plain number is none.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def visible(text: str, keep: str = "") -> str:
    """A text with every character that is not printable as JSON escapes it: ``\\u001b``, ``\\u2028``, ``\\u202e``.

    Args:
        keep: characters that stay, such as a line's end.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in text)


def short(text: str, longest: int) -> str:
    """A text made visible; of one with more characters than ``longest`` its beginning."""
    plain = visible(text)
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def csv_text(text: str) -> str:
    """A text for a cell of a CSV file: visible, and with ``'`` before what a spreadsheet would take for a formula."""
    return f"'{visible(text)}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else visible(text)


def fitted(text: str, stream: TextIO) -> str:
    """A text for a stream: a terminal's lines break between words, where it would break within one; else as it is."""
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
