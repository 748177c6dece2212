"""AFM, FM and LR, the model around them, and the registry for other models.

Names are loaded on first use: a model's options are checked without TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from afm_ctr.lazy_names import lazy_names

if TYPE_CHECKING:
    from afm_ctr.models.base import Interaction, InteractionInputs
    from afm_ctr.models.ctr_model import CTRModel
    from afm_ctr.models.options import InteractionOptions, parse_options
    from afm_ctr.models.registry import check_model, interaction_class, names, register

__all__ = [
    "CTRModel",
    "Interaction",
    "InteractionInputs",
    "InteractionOptions",
    "check_model",
    "interaction_class",
    "names",
    "parse_options",
    "register",
]

_MODULES = {
    "CTRModel": "ctr_model",
    "Interaction": "base",
    "InteractionInputs": "base",
    "InteractionOptions": "options",
    "check_model": "registry",
    "interaction_class": "registry",
    "names": "registry",
    "parse_options": "options",
    "register": "registry",
}

__getattr__ = lazy_names(__name__, _MODULES)
