"""Layouts of the GPU kernels of attentional pooling (``pooling.cu``) for a shape. Must not import TensorFlow."""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

SOURCE = Path(__file__).with_name("pooling.cu")
MOST_WIDE, MOST_SLOTS = 64, 200
COLLECT = 512
# Maximum shared memory of a block, in KB, by compute capability; and registers of a multiprocessor.
_SHARED = {70: 96, 75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
_REGISTERS = 65536
# Chunks of rows: enough to fill any GPU, and fixed, since the order of sums depends on it.
CHUNKS = 1056
_THREADS = (64, 128, 256)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16)


class Layout(NamedTuple):
    """A shape, and the kernels' parameters for it; the letters are the macros of ``pooling.cu``."""

    F: int
    KR: int  # k, the width of the vectors
    TR: int  # t, the width of the attention network
    BY_SLOT: bool  # whether each slot's pairs are pooled apart
    NF: int  # threads of a block, forward
    N: int  # threads of a block, backward
    R: int  # rows that a block processes at a time
    G: int  # slots of a row that it processes at a time, a multiple of PJ
    PI: int = 2  # slots i of a thread's tile of pairs
    PJ: int = 4  # slots j of the tile, a multiple of PI
    YC: int = 8  # hidden units that a thread computes at a time
    TX: int = 8  # rows of a thread's part of the matrices of the backward pass
    TY: int = 8  # columns of that part

    @property
    def K(self) -> int:
        """k padded to a power of two."""
        return _power(self.KR)

    @property
    def T(self) -> int:
        """t padded to a power of two."""
        return _power(self.TR)

    @property
    def lanes(self) -> int:
        """Threads per slot in the backward pass."""
        return self.K // self.TX * (self.T // self.TY)

    @property
    def groups(self) -> int:
        """Groups of slots."""
        return -(-self.F // self.G)

    def shared_bytes(self) -> tuple[int, int]:
        """Shared memory of a block, in bytes: forward, backward."""
        K, T, R = self.K, self.T, self.R
        padded = -(-self.F // self.PJ) * self.PJ
        vectors, cells = R * padded * (K + 4), R * self.G * (padded | 1)
        words = -(-self.F // 32)
        common = K * T + 2 * T + vectors + _up4(2 * R + R * words + -(-R * padded // 4))
        forward = 4 * (common + vectors + cells + 2 * R * padded + R) + cells
        by_pooled = vectors if self.BY_SLOT else R * K
        pairs = by_pooled + _up4(R) + cells * 2 + (-(-cells // 2) if T <= 16 else cells * -(-T // 32))
        backward = 4 * (common + max(pairs, T * (K + 1)))
        return _up4(forward), backward

    def chunk_rows(self, batch: int) -> int:
        """Rows of a chunk in the backward pass; the chunks' sums are added at the end."""
        return self.R * max(1, -(-batch // (self.R * CHUNKS)))

    def partial_size(self) -> int:
        """Floats of a chunk's sums."""
        return self.T * (self.K + 1)


def source(layout: Layout) -> str:
    """The CUDA program. Macros are in its text, because options would also define them in NVRTC's headers."""
    macros = {**layout._asdict(), "K": layout.K, "T": layout.T, "COLLECT": COLLECT}
    lines = [f"#define {name} {int(value)}\n" for name, value in macros.items()]
    return "".join(lines) + SOURCE.read_text(encoding="utf-8")


def plan_table(layout: Layout, pairs: np.ndarray) -> np.ndarray:
    """The list of pairs as the kernels read it: int32, one part after the other.

    For each group of slots the index of its first tile, then the end of the tiles; the tiles ``i0 | j0 << 8``, with
    a bit from the 16th on for each pair that the tile computes; for each slot the set of its partners, in words of
    32 bits; for each (i, j) the pair's index in the list, or -1.

    Args:
        pairs: int ``[P, 2]``, distinct (i, j) with i < j.
    """
    F, PI, PJ, G = layout.F, layout.PI, layout.PJ, layout.G
    number = np.full((F, F), -1, np.int32)
    if len(pairs):
        number[pairs[:, 0], pairs[:, 1]] = number[pairs[:, 1], pairs[:, 0]] = np.arange(len(pairs))
    listed = number >= 0
    words = -(-F // 32)
    bits = np.zeros((F, words * 32), bool)
    bits[:, :F] = listed
    partners = np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32).view(np.int32)
    tiles: list[int] = []
    starts: list[int] = []
    slots = np.arange(F)
    for g0 in range(0, F, G):
        starts.append(len(tiles))
        inside = (slots >= g0) & (slots < g0 + G)
        # A pair within a group is computed once, a pair across groups once in each of the two.
        wanted = listed & inside[:, None] & ~(inside[None, :] & (slots[None, :] <= slots[:, None]))
        for i0 in range(g0, min(g0 + G, F), PI):
            for j0 in range(0, F, PJ):
                tile = np.zeros((PI, PJ), bool)
                part = wanted[i0 : i0 + PI, j0 : j0 + PJ]
                tile[: part.shape[0], : part.shape[1]] = part
                if tile.any():
                    tiles.append(i0 | j0 << 8 | int(tile.ravel() @ (1 << np.arange(16, 16 + PI * PJ))))
    head = np.array([*starts, len(tiles)], np.int32) + np.int32(layout.groups + 1)
    return np.concatenate([head, np.array(tiles, np.int32), partners.ravel(), number.ravel()]).astype(np.int32)


def shared_limit(capability: int) -> int:
    """Maximum shared memory of a block, in bytes; for an unknown capability, that of the nearest below it."""
    return 1024 * _SHARED[max((known for known in _SHARED if known <= capability), default=70)]


def why_not(slots: int, k: int, t: int) -> str:
    """Why the kernels cannot take a shape, in a few words; "" if they can."""
    if max(k, t) > MOST_WIDE:
        return f"k = {k}, t = {t}: the GPU's kernels take up to {MOST_WIDE}"
    return f"{slots} slots: the GPU's kernels take up to {MOST_SLOTS}" if slots > MOST_SLOTS else ""


@lru_cache(maxsize=256)
def choose(slots: int, k: int, t: int, by_slot: bool, capability: int) -> Layout | None:
    """Choose the layout for a shape by a rough count of instructions; None if none fits the shared memory.

    Args:
        k: width of the vectors, up to 64.
        t: width of the attention network, up to 64.
        capability: of the GPU, such as 90.
    """
    best, best_cost = None, float("inf")
    limit = shared_limit(capability)
    for PI, PJ in ((2, 2), (2, 4)):
        full = -(-slots // PJ) * PJ
        groups = sorted({full, *(group for group in (4, 8, 16, 32, 64) if group < full)})
        for NF, N, R, G in itertools.product(_THREADS, _THREADS, _ROWS, groups):
            layout = Layout(slots, k, t, by_slot, NF, N, R, G, PI, PJ, YC=min(16, _power(t)))
            if layout.lanes > N or (R > 1 and full > G) or max(layout.shared_bytes()) > limit:
                continue
            cost = _cost(layout, limit)
            if cost < best_cost:
                best, best_cost = layout, cost
    return best


def _cost(layout: Layout, limit: int) -> float:
    """Instructions per row, forward and backward, with a penalty for too few warps to hide latency."""
    F, K, T, N, R, G = layout.F, layout.K, layout.T, layout.N, layout.R, layout.G
    halves, wide = _tiles(F, layout.PI, layout.PJ)
    # Of all groups together; pairs across groups are computed twice.
    tiles = R * (halves * G + wide * max(0, F - G)) // max(F, G)
    by_tile = layout.PI * layout.PJ * (K * T + 4 * T + 60)

    def rounds(items: int, threads: int) -> int:
        return layout.groups * -(-items // (layout.groups * threads)) * threads

    def hidden(threads: int, shared: int, registers: int) -> float:
        blocks = min((limit + 1024) // (shared + 1024), _REGISTERS // (registers * threads))
        return 1 + 4 / (max(1, blocks) * threads // 32)

    forward, backward = layout.shared_bytes()
    first = rounds(tiles, layout.NF) * by_tile + rounds(R * F, layout.NF // 4) * F * 8
    slots = rounds(R * F, N // layout.lanes) * (F * (layout.TX * layout.TY + 50) + 400)
    second = rounds(tiles, N) * by_tile + slots
    return (first * hidden(layout.NF, forward, 120) + second * hidden(N, backward, 250)) / R


@lru_cache(maxsize=1024)
def _tiles(slots: int, PI: int, PJ: int) -> tuple[int, int]:
    """Number of tiles of the pairs i < j, and of all (i, j)."""
    halves = sum(1 for i in range(0, slots, PI) for j in range(0, slots, PJ) if j + PJ > i + 1)
    return halves, -(-slots // PI) * -(-slots // PJ)


def _power(width: int) -> int:
    return max(8, 1 << (width - 1).bit_length())


def _up4(count: int) -> int:
    return -(-count // 4) * 4
