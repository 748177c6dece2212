"""Keys of hashed fields: read from their files, and known again by a check that says nothing of them."""

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
        UserError: it cannot be read, or holds something else than 32 hexadecimal digits. The content is not shown.
    """
    try:
        text = read_settings(path).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no text"
        raise UserError(f"key_file: {path}: cannot be read: {why}") from None
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise UserError(f"key_file: {path}: must hold 32 hexadecimal digits (`openssl rand -hex 16` makes such)")
    return bytes.fromhex(text)


def key_check(path: str) -> str:
    """What a resolved schema keeps of a key, to know it again: 16 hexadecimal digits."""
    return hmac.new(read_key(path), _CHECK, hashlib.sha256).hexdigest()[:16]


def checked_key(path: str, check: str) -> bytes:
    """The key that a resolved schema was made with. Raises UserError: see :func:`read_key`; or it is another key."""
    key = read_key(path)
    if not hmac.compare_digest(key_check(path), check):
        raise UserError(f"key_file: {path}: is not the key that the data was prepared with; restore it")
    return key
