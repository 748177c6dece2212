"""Keys of hashed fields: read from files, and recognised by a digest that does not reveal them."""

from __future__ import annotations

import hashlib
import hmac
import re

from afm_ctr.errors import UserError
from afm_ctr.io.inputs import read_settings

_CHECK = b"afm-ctr: which key is it"


def read_key(path: str) -> bytes:
    """The 16 bytes of a key file.

    Raises:
        UserError: it cannot be read, or does not hold 32 hexadecimal digits. The content is never shown.
    """
    try:
        text = read_settings(path).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"key_file: {path}: cannot be read: {why}") from None
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise UserError(f"key_file: {path}: must hold 32 hexadecimal digits (`openssl rand -hex 16` makes them)")
    return bytes.fromhex(text)


def key_check(path: str) -> str:
    """The digest by which a resolved schema recognises a key: 16 hexadecimal digits."""
    return hmac.new(read_key(path), _CHECK, hashlib.sha256).hexdigest()[:16]


def checked_key(path: str, check: str) -> bytes:
    """Read the key that a resolved schema was made with. Raises UserError: as :func:`read_key`, or another key."""
    key = read_key(path)
    if not hmac.compare_digest(key_check(path), check):
        raise UserError(f"key_file: {path}: is not the key that the data was prepared with; restore it")
    return key
