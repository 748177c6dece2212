"""Training and evaluation: Keras ``fit`` that can stop and resume at any step, on any number of ranks.

Names are loaded on first use: a config is checked without TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from afm_ctr.lazy_names import lazy_names

if TYPE_CHECKING:
    from afm_ctr.training.config import TrainConfig
    from afm_ctr.training.defaults import default_config
    from afm_ctr.training.evaluation import evaluate
    from afm_ctr.training.loop import TrainSummary, train
    from afm_ctr.training.model_io import build_model, load_model

__all__ = ["TrainConfig", "TrainSummary", "build_model", "default_config", "evaluate", "load_model", "train"]

_MODULES = {
    "TrainConfig": "config",
    "TrainSummary": "loop",
    "build_model": "model_io",
    "default_config": "defaults",
    "evaluate": "evaluation",
    "load_model": "model_io",
    "train": "loop",
}

__getattr__ = lazy_names(__name__, _MODULES)
