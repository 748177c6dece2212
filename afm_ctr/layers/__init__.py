"""Keras layers for your own models: attentional pooling and the AFM, on embeddings ``[B, F, k]``."""

from __future__ import annotations

from afm_ctr.layers.afm import AFM
from afm_ctr.layers.attentional_pooling import AttentionalPooling

__all__ = ["AFM", "AttentionalPooling"]
