"""Damaged copies of messages, for tests of what reads them."""

from __future__ import annotations

import random


def damaged(data: bytes, rng: random.Random, most: int = 4) -> bytes:
    """Bytes changed, left out, put in, doubled or cut off, at most ``most`` times."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0 if changed:
                changed[at % len(changed)] = rng.randrange(256)
            case 1:
                del changed[at : at + rng.randint(1, 5)]
            case 2:
                changed[at:at] = bytes([rng.randrange(256)])
            case 3:
                changed[at:at] = changed[at : at + 9]
            case _:
                changed[at:] = rng.randbytes(rng.randrange(8))
    return bytes(changed)
