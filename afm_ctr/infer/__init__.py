"""A first schema out of a look at raw logs. No TensorFlow."""

from __future__ import annotations

from afm_ctr.infer.schema import Inference, infer_schema, labelled_advice, save

__all__ = ["Inference", "infer_schema", "labelled_advice", "save"]
