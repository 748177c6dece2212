"""Training and evaluation: Keras ``fit`` in a form that can stop and resume at any step, on any number of ranks."""

from __future__ import annotations

from afm_ctr.training.config import TrainConfig
from afm_ctr.training.defaults import default_config
from afm_ctr.training.evaluate import evaluate
from afm_ctr.training.loop import TrainSummary, train
from afm_ctr.training.model_io import build_model, load_model

__all__ = ["TrainConfig", "TrainSummary", "build_model", "default_config", "evaluate", "load_model", "train"]
