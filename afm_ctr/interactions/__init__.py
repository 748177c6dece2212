"""Attentional pooling over pairs of features, and the plain pooling of factorization machines.

It is independent of tables, models and training. Attentional pooling has three implementations with the same results:
the plain one, which is the reference and is exported, where it computes a large request in blocks; one that computes
blocks of rows; and one in C++. Training uses the last if it can (:func:`training_attentional_pooling`).
"""

from __future__ import annotations

from afm_ctr.interactions.blocked import block_rows, blocked_attentional_pooling, request_attentional_pooling
from afm_ctr.interactions.choice import fused_attentional_pooling, training_attentional_pooling, uses_fused
from afm_ctr.interactions.dropout import Dropout, stateless_keep
from afm_ctr.interactions.pooling import (
    attention_scores,
    attentional_pooling,
    count_pairs,
    fm_pooling,
    masked_softmax,
    pair_presence,
    pair_products,
    pool_by_slot,
)

__all__ = [
    "Dropout",
    "attention_scores",
    "attentional_pooling",
    "block_rows",
    "blocked_attentional_pooling",
    "count_pairs",
    "fm_pooling",
    "fused_attentional_pooling",
    "masked_softmax",
    "pair_presence",
    "pair_products",
    "pool_by_slot",
    "request_attentional_pooling",
    "stateless_keep",
    "training_attentional_pooling",
    "uses_fused",
]
