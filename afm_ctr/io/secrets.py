"""Secrets in command lines: masked before they reach a file, a page or a message.

They are recognised by name: ``--s3_secret_access_key=…``, ``--password …``, ``token=…``, the user part of
``https://user:password@host``, and the values of environment variables with such names.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

MASK = "***"
_SECRET = (
    r"(?:secret|passw(?:or)?d|passphrase|pwd|token|credential|api[_-]?key|access[_-]?key|account[_-]?key|"
    r"private[_-]?key|connection[_-]?string|authorization|amz[_-]signature|(?<![a-z])sig(?![a-z])|"
    r"(?<![a-z])sas(?![a-z]))"
)
# The location or kind of a secret is not one.
_HARMLESS = re.compile(r"(file|path|dir|folder|name|type|tokenizer|email|url|endpoint|location)$", re.IGNORECASE)
_NAME = re.compile(_SECRET, re.IGNORECASE)
# name=value, "name": value of JSON, and the header of a request.
_PAIR = re.compile(
    rf"""(?P<name>["']?[\w.-]*{_SECRET}[\w.-]*["']?)"""
    r"""(?P<between>\s*=\s*["']?|(?<=["'])\s*:\s*["']?|(?<=authorization):\s*(?:bearer |basic )?)"""
    r"""(?P<value>[^\s,;&"'}\]]+)""",
    re.IGNORECASE,
)
_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^/\s:@]*):[^/\s@]+@")
_FOLDERS = {"PWD", "OLDPWD"}  # of the shell: folders, which any message may name
_SHORTEST = 8  # length of a variable's value: a shorter one would occur in any text


def is_secret(name: str) -> bool:
    """Whether an option or variable of this name holds a secret."""
    return _NAME.search(name) is not None and _HARMLESS.search(name.strip("\"'")) is None


def mask_words(words: Sequence[str]) -> list[str]:
    """A command line's words with ``***`` for every secret, in both spellings: ``--x=secret`` and ``--x secret``."""
    masked: list[str] = []
    value_follows = False
    for word in words:
        option, equals, _ = word.partition("=")
        if value_follows and not word.startswith("--"):
            masked.append(MASK)
        elif word.startswith("-") and equals and is_secret(option):
            masked.append(f"{option}={MASK}")
        else:
            masked.append(mask_text(word))
        value_follows = word.startswith("-") and not equals and is_secret(option)
    return masked


def mask_command(command: str) -> str:
    """The same for a command line as one text, quoted for a shell."""
    try:
        words = shlex.split(command)
    except ValueError:  # not quoted by us
        return mask_text(command)
    masked = mask_words(words)
    return command if masked == words else shlex.join(masked).replace(shlex.quote(MASK), MASK)


def without_secrets(run: Any) -> Any:
    """An entry of ``run.json``, perhaps written by an earlier version, with its ``command`` masked."""
    if not isinstance(run, dict) or not isinstance(run.get("command"), list):
        return run
    return {**run, "command": mask_words([str(word) for word in run["command"]])}


def mask_text(text: str) -> str:
    """A text with ``***`` for passwords in URLs, for the value after a secret's name, and environment secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret(name) and name not in _FOLDERS:
            text = text.replace(value, MASK)
    text = _USER.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
    return _PAIR.sub(_masked_pair, text)


def _masked_pair(found: re.Match[str]) -> str:
    return found[0] if not is_secret(found["name"]) else f"{found['name']}{found['between']}{MASK}"
