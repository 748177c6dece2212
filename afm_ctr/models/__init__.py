"""AFM, FM and LR, the trunk they share, and the registry that other models plug into."""

from __future__ import annotations

from afm_ctr.models.base import Interaction, InteractionInputs, InteractionOptions, parse_options
from afm_ctr.models.ctr_model import CTRModel
from afm_ctr.models.registry import interaction_class, names, register

__all__ = [
    "CTRModel",
    "Interaction",
    "InteractionInputs",
    "InteractionOptions",
    "interaction_class",
    "names",
    "parse_options",
    "register",
]
