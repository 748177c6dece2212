"""The pairs of fields with the most attention, by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidArgument


class PairShare(NamedTuple):
    """A pair of slots, such as ``C1 x C2``, and its share of the row's attention; a row's shares sum to 1."""

    name: str
    share: float


def read_pair_names(path: str | Path) -> list[str]:
    """The names of the pairs, in the model's order, from ``assets.extra/pairs.json`` of an exported version.

    The gRPC API does not serve that file: copy it to where the client runs.

    Raises:
        ValueError: the file is not a pairs.json.
        OSError: the file cannot be read.
    """
    try:
        pairs = json.loads(Path(path).read_text(encoding="utf-8"))["pairs"]
        return [str(pair["name"]) for pair in pairs]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not the pairs.json of an exported version: {error!r}") from None


def top_pairs(attention: np.ndarray[Any, Any], names: Sequence[str], top: int) -> list[list[PairShare]]:
    """The pairs with the largest shares of each row, largest first; pairs with a share of 0 are left out.

    Args:
        attention: Shares [B, pairs].

    Raises:
        InvalidArgument: the number of names is not the number of pairs.
    """
    if attention.ndim != 2 or attention.shape[1] != len(names):
        raise InvalidArgument(
            f"the model has {attention.shape[-1] if attention.ndim else 0} pairs, but {len(names)} names were given: "
            "they belong to another version"
        )
    order = np.argsort(-attention, axis=1, kind="stable")[:, :top]
    return [
        [PairShare(names[pair], float(shares[pair])) for pair in pairs if shares[pair] > 0]
        for shares, pairs in zip(attention, order, strict=True)
    ]
