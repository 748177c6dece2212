"""Infers a first schema from a sample of raw logs. Does not need TensorFlow, except to try penalties."""

from __future__ import annotations

from afm_ctr.infer.schema import Inference, infer_schema, labelled_advice, save

__all__ = ["Inference", "infer_schema", "labelled_advice", "save"]
