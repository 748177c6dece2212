"""Attentional factorization machines for click-through rate, from raw logs to a scored request.

Names in ``__all__`` are public; everything else may move. They are loaded on first use, so ``import afm_ctr`` is
cheap and TensorFlow is loaded by the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afm_ctr import distributed, layers, metrics, optimizers
    from afm_ctr.errors import UserError
    from afm_ctr.export import export_model
    from afm_ctr.features import FeatureTransform
    from afm_ctr.frames import FrameData, from_pandas
    from afm_ctr.infer import infer_schema
    from afm_ctr.models import CTRModel, Interaction
    from afm_ctr.prediction import predict
    from afm_ctr.records import Reader
    from afm_ctr.schema import FeatureSchema, ResolvedSchema
    from afm_ctr.training import TrainConfig, build_model, load_model, train
    from afm_ctr.training.evaluation import evaluate

__version__ = "0.1.0"

__all__ = [
    "CTRModel",
    "FeatureSchema",
    "FeatureTransform",
    "FrameData",
    "Interaction",
    "Reader",
    "ResolvedSchema",
    "TrainConfig",
    "UserError",
    "build_model",
    "distributed",
    "evaluate",
    "export_model",
    "from_pandas",
    "infer_schema",
    "layers",
    "load_model",
    "metrics",
    "optimizers",
    "predict",
    "train",
]

_MODULES = {
    "afm_ctr.errors": ("UserError",),
    "afm_ctr.export": ("export_model",),
    "afm_ctr.features": ("FeatureTransform",),
    "afm_ctr.frames": ("FrameData", "from_pandas"),
    "afm_ctr.infer": ("infer_schema",),
    "afm_ctr.models": ("CTRModel", "Interaction"),
    "afm_ctr.prediction": ("predict",),
    "afm_ctr.records": ("Reader",),
    "afm_ctr.schema": ("FeatureSchema", "ResolvedSchema"),
    "afm_ctr.training": ("TrainConfig", "build_model", "evaluate", "load_model", "train"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in __all__:
        return importlib.import_module(f"afm_ctr.{name}")
    raise AttributeError(f"module 'afm_ctr' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
